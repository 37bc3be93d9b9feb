"""`transformers.Trainer` over a peft model, a peer of scripts/bench_training.py, put together as in their quick tours.

`python scripts/peer_trainer.py JOB OUT` trains on the rows of the file JOB (see `Job`) and writes OUT/result.json and
OUT/adapter.

Everything is as the libraries have it by default: the checkpoint's dtype, adapters in fp32 over it, rows padded on the
right to the longest of their batch, logits at every position. Set by the job is what must be equal for equal learning:
rows, batches and their order, steps, AdamW with its learning rate, schedule and clipping. Gradient checkpointing stays
off; it would save memory and cost time. With `nf4` the base is loaded by bitsandbytes in 4 bits, double-quantised, and
computes in bf16; peft's `prepare_model_for_kbit_training`, which puts the rest of the model into fp32, is left out:
with it the peer would be slower. bitsandbytes can fetch further CPU kernels from a model hub; nothing is fetched here.

This file imports nothing of ragtune, so that the environment of scripts/peer_trl.py can use it, too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

IGNORED = -100


class Job(TypedDict):
    """What every contender is given. `ids[i]` is a whole chat, of which the first `prompt_lengths[i]` tokens are read.

    `rows` are the same rows as ragtune writes them, and `held_out` those on which the adapters are compared, as pairs
    (ids, prompt length).
    """

    model: str
    ids: list[list[int]]
    prompt_lengths: list[int]
    rows: list[dict[str, Any]]
    held_out: list[tuple[list[int], int]]
    batch: int
    passes: int
    learning_rate: float
    rank: int
    alpha: int
    seed: int
    nf4: bool


class Clock(TrainerCallback):
    """When each optimiser step ended, in seconds of `time.perf_counter`."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def shared_arguments(job: Job, out: Path) -> dict[str, Any]:
    """The training arguments that are the same for every contender, as ragtune sets them.

    Rows of similar length go together, as they do in ragtune: equal seeds then give equal batches in equal order.
    """
    return {
        "output_dir": str(out / "checkpoints"),
        "num_train_epochs": job["passes"],
        "per_device_train_batch_size": job["batch"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "train_sampling_strategy": "group_by_length",
        "seed": job["seed"],
        "data_seed": job["seed"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def lora_config(job: Job) -> LoraConfig:
    """LoRA beside every linear layer but the head."""
    return LoraConfig(
        r=job["rank"],
        lora_alpha=job["alpha"],
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def load_base(job: Job) -> Any:
    """The base model in the dtype of its files; with `nf4` in bitsandbytes' 4 bits."""
    if not job["nf4"]:
        return AutoModelForCausalLM.from_pretrained(job["model"])
    packed = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return AutoModelForCausalLM.from_pretrained(job["model"], quantization_config=packed)


def pad_right(rows: Sequence[dict[str, list[int]]], pad_token: int) -> dict[str, torch.Tensor]:
    """A batch, padded behind to its longest row, as `DataCollatorForSeq2Seq` does."""
    width = max(len(row["input_ids"]) for row in rows)

    def padded(values: Sequence[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([own + [filler] * (width - len(own)) for own in values])

    return {
        "input_ids": padded([row["input_ids"] for row in rows], pad_token),
        "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
        "labels": padded([row["labels"] for row in rows], IGNORED),
    }


def labelled(job: Job) -> list[dict[str, list[int]]]:
    """The rows with labels on their answers."""
    return [
        {"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]}
        for ids, prompt in zip(job["ids"], job["prompt_lengths"], strict=True)
    ]


def peak_bytes() -> int:
    """The most memory that this process ever held. ru_maxrss would count what it was started from, too (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak) * 1024


def write_result(out: Path, ends: Sequence[float], losses: Sequence[float], settings: dict[str, Any]) -> None:
    """Put what was measured into OUT/result.json, with the versions that matter."""
    names = ("torch", "transformers", "peft", *(["trl"] if "trl" in sys.modules else []))
    result = {
        "ends": list(ends),
        "losses": list(losses),
        "peak_bytes": peak_bytes(),
        "threads": torch.get_num_threads(),
        "settings": settings,
        "versions": {name: version(name) for name in names},
    }
    (out / "result.json").write_text(json.dumps(result), encoding="utf-8")


def train(trainer: Trainer, out: Path, settings: dict[str, Any]) -> None:
    """Train, save the adapter, write the result."""
    clock = Clock()
    trainer.add_callback(clock)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.model.save_pretrained(out / "adapter")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    write_result(out, clock.ends, losses, settings)


def main(job_file: str, out: str) -> None:
    """Do what the command line says."""
    job: Job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    pad_token = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    trainer = Trainer(
        model=get_peft_model(load_base(job), lora_config(job)),
        args=TrainingArguments(**shared_arguments(job, Path(out)), remove_unused_columns=False),
        train_dataset=labelled(job),
        data_collator=lambda rows: pad_right(rows, pad_token),
    )
    train(trainer, Path(out), {"dtype": str(trainer.model.dtype), "adapter_dtype": "float32", "nf4": job["nf4"]})


if __name__ == "__main__":
    main(*sys.argv[1:])
