"""Training rows -> adapter, through the transformers Trainer with a loss on answer tokens only.

Rows are padded on the left, so all answers end at the last position and logits are computed for those positions
alone: the same loss without the prompt's share of a 49,152-wide output. A killed run continues from its newest
complete checkpoint.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from ragtune import store
from ragtune.config import TuneConfig
from ragtune.errors import MismatchError, StoreError, TrainingError
from ragtune.generator.examples import TrainingRow
from ragtune.generator.generate import load_tokenizer, load_weights
from ragtune.generator.machine import best_dtype, peak_memory
from ragtune.generator.methods import Method, keep_in_nf4, round_to_nf4
from ragtune.generator.quiet import calm_libraries

IGNORED = -100
_PLAIN_ATTENTION_TOKENS = 256
_CHECKPOINT_FILES = ("adapter_model.safetensors", "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth")
_TORCH_CANNOT_WRITE = ("PytorchStreamWriter", "iostream error")


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run reports after each optimiser step. `tokens` counts all trained tokens so far, prompts included."""

    step: int
    steps: int
    loss: float
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a finished run measured. `losses` holds one mean loss (nats per answer token) per optimiser step.

    `peak_memory` is in bytes, of the whole process on a CPU.
    """

    steps: int
    seconds: float
    trained_tokens: int
    losses: tuple[float, ...]
    trainable_parameters: int
    all_parameters: int
    peak_memory: int


def encode_row(tokenizer: Any, row: TrainingRow) -> tuple[list[int], int]:
    """Token ids of prompt + target + end of turn, and the number of prompt tokens.

    Raises: TrainingError when the chat template does not give the prompt back as the beginning of the whole chat.
    """
    chat = [{"role": m.role, "content": m.content} for m in row.messages]
    prompt: list[int] = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    answer: list[int] = tokenizer(row.target, add_special_tokens=False)["input_ids"]
    ids = [*prompt, *answer, tokenizer.eos_token_id]
    whole: list[int] = tokenizer.apply_chat_template(
        [*chat, {"role": "assistant", "content": row.target}], return_dict=False
    )
    if whole[: len(prompt)] != prompt:
        raise TrainingError(
            f"row {row.question_id}: the chat template changes the prompt when an answer follows; "
            "training and answering would see different prompts"
        )
    return ids, len(prompt)


def answer_loss(logits: torch.Tensor, labels: torch.Tensor, items: torch.Tensor | int | None) -> torch.Tensor:
    """Cross entropy (nats) of next-token predictions over labelled positions.

    logits: (batch, kept + 1, vocabulary) for the last kept + 1 positions; labels: (batch, kept), -100 = not counted.
    The sum is divided by `items` (labelled tokens of the whole optimiser step) or by those of this batch.
    """
    flat = logits[:, :-1].reshape(-1, logits.shape[-1]).float()
    total = cross_entropy(flat, labels.reshape(-1), ignore_index=IGNORED, reduction="sum")
    return total / (items if items is not None else (labels != IGNORED).sum())


class _AnswerTrainer(Trainer):
    """Trainer whose loss looks at the answers' positions alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs["labels"]
        width = labels.shape[1]
        kept = width - int((labels != IGNORED).any(0).nonzero()[0])
        attend_by_width(model, width)
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            position_ids=inputs["position_ids"],
            logits_to_keep=kept + 1,
            use_cache=False,
        )
        loss = answer_loss(outputs.logits, labels[:, -kept:], num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


def attend_by_width(model: Any, width: int) -> None:
    """On a CPU, plain attention for short rows: there the fused kernel's backward pass is slower."""
    if not torch.cuda.is_available():
        model.base_model.set_attn_implementation("eager" if width <= _PLAIN_ATTENTION_TOKENS else "sdpa")


@dataclass(frozen=True, slots=True)
class _LeftPad:
    """Collator: (ids, prompt length) rows -> left-padded batch with labels on the answers."""

    pad_token: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), width), self.pad_token)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        labels = torch.full((len(rows), width), IGNORED)
        for i, row in enumerate(rows):
            own = torch.tensor(row["input_ids"])
            ids[i, width - len(own) :] = own
            mask[i, width - len(own) :] = 1
            labels[i, width - len(own) + row["prompt_length"] :] = own[row["prompt_length"] :]
        positions = mask.cumsum(-1).sub(1).clamp(min=0)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "labels": labels}


class _Reporter(TrainerCallback):
    """Pass each step's loss on, and keep them all."""

    def __init__(self, tokens_per_epoch: int, report: Callable[[Progress], None]) -> None:
        self.tokens_per_epoch = tokens_per_epoch
        self.report = report
        self.started = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if loss != loss or loss == float("inf"):
            raise TrainingError(
                f"the loss is {loss} at step {state.global_step}; lower tune.learning_rate and tune again"
            )
        tokens = int(self.tokens_per_epoch * (state.epoch or 0.0))
        seconds = time.perf_counter() - self.started
        self.report(Progress(state.global_step, state.max_steps, float(loss), tokens, seconds))


def build_model(folder: Path, method: Method, config: TuneConfig) -> Any:
    """Base weights with a fresh adapter on top; only the adapter has gradients."""
    from peft import get_peft_model

    from ragtune.generator.fused_lora import fuse_lora

    set_seed(config.seed)
    model = load_weights(folder, best_dtype())
    if method.nf4:
        if keeps_nf4_packed(config):
            model = keep_in_nf4(model)
        else:
            round_to_nf4(model)
    with calm_libraries():
        model = get_peft_model(model, method.peft_config(config), autocast_adapter_dtype=False)
    fuse_lora(model)
    return model


def keeps_nf4_packed(config: TuneConfig) -> bool:
    """Whether QLoRA keeps weights in 4 bits (memory) or unpacks them once (speed; the default on a CPU)."""
    return config.dequantise == "each-use" or (config.dequantise == "auto" and torch.cuda.is_available())


def train(
    rows: Sequence[TrainingRow],
    folder: Path,
    method: Method,
    config: TuneConfig,
    work: Path,
    report: Callable[[Progress], None] = lambda _: None,
) -> tuple[Any, TrainResult]:
    """Train an adapter; `work` keeps checkpoints, and a run found there is continued. Returns (model, result).

    Raises: TrainingError when the loss stops being a number; StoreError when checkpoints cannot be written.
    """
    tokenizer = load_tokenizer(folder)
    encoded = [encode_row(tokenizer, row) for row in rows]
    data = [{"input_ids": ids, "prompt_length": prompt} for ids, prompt in encoded]
    tokens = sum(len(ids) for ids, _ in encoded)
    model = build_model(folder, method, config)
    trainer = _AnswerTrainer(
        model=model,
        args=_arguments(config, work),
        train_dataset=data,
        data_collator=_LeftPad(tokenizer.pad_token_id),
        callbacks=[_Reporter(tokens, report)],
    )
    _drop_printers(trainer)
    with calm_libraries(), disk_errors(work):
        trainer.train(resume_from_checkpoint=newest_checkpoint(work))
    model.base_model.set_attn_implementation("sdpa")  # as it answers
    losses = tuple(float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    result = TrainResult(
        steps=trainer.state.global_step,
        seconds=sum(e["train_runtime"] for e in trainer.state.log_history if "train_runtime" in e),
        trained_tokens=int(tokens * config.epochs),
        losses=losses,
        trainable_parameters=trainable,
        all_parameters=sum(p.numel() for p in model.parameters()),
        peak_memory=peak_memory(),
    )
    return model, result


@contextlib.contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn what libraries raise when they cannot write (each its own kind) into a StoreError.

    Raises: StoreError naming `target`; checkpoints written before stay good.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StoreError(f"cannot write {target}: {error}; what was finished before is kept") from error
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _TORCH_CANNOT_WRITE):
            raise
        raise StoreError(f"cannot write {target}: {error}; what was finished before is kept") from error


def _arguments(config: TuneConfig, work: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(work),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        weight_decay=0.0,
        max_grad_norm=1.0,
        train_sampling_strategy="group_by_length",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=config.save_steps,
        save_total_limit=2,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=config.seed,
        data_seed=config.seed,
    )


def _drop_printers(trainer: Trainer) -> None:
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def newest_checkpoint(work: Path) -> str | None:
    """The newest checkpoint that is whole. The Trainer itself would resume, silently, from one with files missing."""
    found = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for path in found:
        if all((path / name).exists() and (path / name).stat().st_size for name in _CHECKPOINT_FILES):
            return str(path)
    return None


def prepare_work_folder(work: Path, inputs: dict[str, Any], resume: bool) -> None:
    """Make `work` ready: continue only a run with exactly these inputs.

    Raises: MismatchError when `resume` finds a run with other inputs, naming what differs.
    """
    marker = work / "inputs.json"
    if resume and marker.exists():
        before = store.read_json(marker)
        changed = sorted(key for key in inputs.keys() | before.keys() if inputs.get(key) != before.get(key))
        if changed:
            raise MismatchError(
                f"{work} holds an interrupted run with other {', '.join(changed)}; "
                "tune without --resume to start afresh, or restore what it was started with"
            )
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    store.write_json(marker, inputs)
