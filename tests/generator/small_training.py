"""A small training run of the Trainer's own, to try callbacks on: LoRA on the tiny model, rows of random tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from ragtune.generator.checkpoints import Seal, newest_checkpoint
from ragtune.generator.generate import load_weights
from ragtune.generator.quiet import calm_libraries


@dataclass(frozen=True)
class Setting:
    """How a run goes: `at_a_time` rows in memory, `times` of them an optimiser step."""

    rows: int = 8
    epochs: float = 2.0
    at_a_time: int = 2
    times: int = 1
    save_steps: int = 1000
    learning_rate: float = 1e-2
    dropout: float = 0.0
    report_to: tuple[str, ...] = ()


def random_rows(count: int) -> list[dict[str, torch.Tensor]]:
    """Rows of 4 to 12 tokens, of which the first one is no label."""
    numbers = torch.Generator().manual_seed(1)
    lengths = torch.randint(4, 13, (count,), generator=numbers).tolist()
    return [{"input_ids": torch.randint(3, 380, (length,), generator=numbers)} for length in lengths]


def pad_behind(rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    ids = [row["input_ids"] for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    real = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    return {"input_ids": padded, "attention_mask": real, "labels": padded.where(real.bool(), -100)}


class SmallTrainer(Trainer):
    """Cross entropy summed over a batch, divided by the labels of the whole optimiser step."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
        labels = inputs["labels"][:, 1:].flatten()
        return cross_entropy(logits.flatten(0, 1), labels, ignore_index=-100, reduction="sum") / num_items_in_batch


def small_trainer(
    base: Path, work: Path, setting: Setting = Setting(), callbacks: Sequence[TrainerCallback] = ()
) -> SmallTrainer:
    torch.manual_seed(0)
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=setting.dropout, target_modules="all-linear")
    with calm_libraries():
        model = get_peft_model(load_weights(base, torch.float32), lora)
        trainer = SmallTrainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(work),
                num_train_epochs=setting.epochs,
                per_device_train_batch_size=setting.at_a_time,
                gradient_accumulation_steps=setting.times,
                learning_rate=setting.learning_rate,
                logging_steps=1,
                logging_nan_inf_filter=False,
                save_steps=setting.save_steps,
                save_total_limit=2,
                report_to=list(setting.report_to),
                disable_tqdm=True,
                remove_unused_columns=False,
                dataloader_pin_memory=False,
                include_num_input_tokens_seen="non_padding",
                use_cpu=True,
                seed=3,
            ),
            train_dataset=random_rows(setting.rows),
            data_collator=pad_behind,
            callbacks=[*callbacks, Seal()],
        )
    trainer.model_accepts_loss_kwargs = True
    trainer.remove_callback(PrinterCallback)
    return trainer


def go(trainer: SmallTrainer) -> SmallTrainer:
    """Train from the newest checkpoint, if there is one."""
    with calm_libraries():
        trainer.train(resume_from_checkpoint=newest_checkpoint(Path(trainer.args.output_dir)))
    return trainer


def weights(trainer: SmallTrainer) -> dict[str, torch.Tensor]:
    """What was trained."""
    return {name: w.detach().clone() for name, w in trainer.model.named_parameters() if w.requires_grad}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(weight, other[name]) for name, weight in one.items())


def losses(trainer: SmallTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@dataclass
class StopAt(TrainerCallback):
    """Break off at the end of a step, before it is logged or saved."""

    step: int

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt
