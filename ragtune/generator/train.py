"""Training rows -> adapter, through the transformers Trainer with a loss on answer tokens only.

Logits are computed where an answer's tokens are predicted and nowhere else: the same loss without the prompt's share
of a 49,152-wide output. Rows are padded behind, so that attention is plainly causal. A killed run continues from its
newest complete checkpoint.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.nn.functional import cross_entropy, pad
from transformers import Trainer, TrainerCallback, TrainingArguments

from ragtune import store
from ragtune.config import TuneConfig
from ragtune.errors import StoreError, TrainingError
from ragtune.generator import causal_attention, compiled
from ragtune.generator.adapters import put_on, trainable
from ragtune.generator.checkpoints import Seal, load_trained, newest_checkpoint, save_trained, step_of
from ragtune.generator.early_stopping import EarlyStopping, Score, dev_scores
from ragtune.generator.examples import TrainingRow
from ragtune.generator.generate import load_tokenizer, load_weights
from ragtune.generator.guards import Guard, with_smaller_batches
from ragtune.generator.ledger import LEDGER, Ledger
from ragtune.generator.machine import best_dtype, peak_memory
from ragtune.generator.methods import Method
from ragtune.generator.quiet import calm_libraries
from ragtune.generator.trackers import tensorboard, tracking_arguments

IGNORED = -100
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

    `dev_scores` holds (step, score) where dev questions chose the weights: those of the first of the best.

    `peak_memory` is in bytes, of the whole process on a CPU.
    """

    steps: int
    seconds: float
    trained_tokens: int
    losses: tuple[float, ...]
    trainable_parameters: int
    all_parameters: int
    peak_memory: int
    dev_scores: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Following:
    """What goes along with a run: who is told what happened, how dev questions score it, what trackers call it."""

    say: Callable[[str], None] = lambda _: None
    score: Score | None = None
    project: str = "ragtune"


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


def answer_loss(logits: torch.Tensor, tokens: torch.Tensor, items: torch.Tensor | int | None) -> torch.Tensor:
    """Cross entropy (nats) of predictions: logits (answer tokens, vocabulary) against tokens (answer tokens,).

    The sum is divided by `items` (answer tokens of the whole optimiser step) or by those of this batch.
    """
    total = cross_entropy(logits.float(), tokens, reduction="sum")
    return total / (items if items is not None else len(tokens))


def batch_loss(model: Any, batch: Mapping[str, torch.Tensor], items: torch.Tensor | int | None = None) -> torch.Tensor:
    """The loss of a batch; the output layer works at the places before answer tokens alone.

    `input_ids` (rows, tokens) is padded behind, where what is real does not look, so that no mask is needed;
    `labels`, of the same shape, is -100 where nothing is learned.
    """
    wanted = batch["labels"][:, 1:]
    places = (pad(wanted, (0, 1), value=IGNORED).reshape(-1) != IGNORED).nonzero()[:, 0]

    def at_places(module: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        hidden = inputs[0]
        return (hidden.reshape(1, -1, hidden.shape[-1])[:, places],)

    hook = model.get_output_embeddings().register_forward_pre_hook(at_places)
    try:
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits
    finally:
        hook.remove()
    return answer_loss(logits[0], wanted[wanted != IGNORED], items)


class _AnswerTrainer(Trainer):
    """Trainer with the loss of answers alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        return batch_loss(model, inputs, num_items_in_batch)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """What is trained and nothing else, whatever the method."""
        save_trained(self.model, Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.model, Path(resume_from_checkpoint))


@dataclass(frozen=True, slots=True)
class _Pad:
    """Collator: (ids, prompt length) rows -> a batch padded behind, with labels on the answers."""

    pad_token: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), width), self.pad_token)
        labels = torch.full((len(rows), width), IGNORED)
        for i, row in enumerate(rows):
            own, prompt = torch.tensor(row["input_ids"]), row["prompt_length"]
            ids[i, : len(own)] = own
            labels[i, prompt : len(own)] = own[prompt:]
        return {"input_ids": ids, "labels": labels}


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
        tokens = int(self.tokens_per_epoch * (state.epoch or 0.0))
        seconds = time.perf_counter() - self.started
        self.report(Progress(state.global_step, state.max_steps, float(loss), tokens, seconds))


def train(
    rows: Sequence[TrainingRow],
    folder: Path,
    method: Method,
    config: TuneConfig,
    work: Path,
    report: Callable[[Progress], None] = lambda _: None,
    along: Following = Following(),
) -> tuple[Any, TrainResult]:
    """Train an adapter; `work` keeps checkpoints, and a run found there is continued. Returns (model, result).

    Raises: TrainingError when the loss stops being a number or explodes, or memory does not suffice for one row;
    StoreError when checkpoints cannot be written.
    """
    tokenizer = load_tokenizer(folder)
    encoded = [encode_row(tokenizer, row) for row in rows]
    data = [{"input_ids": ids, "prompt_length": prompt} for ids, prompt in encoded]
    tokens = sum(len(ids) for ids, _ in encoded)
    pays, why = compiled.decide(config, int(tokens * config.epochs))
    along.say(why)

    def run(at_a_time: int, times: int) -> tuple[Any, Trainer]:
        model = put_on(load_weights(folder, best_dtype()), method, config)
        checkpoint = newest_checkpoint(work, along.say)
        trainer = _AnswerTrainer(
            model=model,
            args=_arguments(config, method, work, (at_a_time, times), along.project),
            train_dataset=data,
            data_collator=_Pad(tokenizer.pad_token_id),
            callbacks=[
                Guard(),
                Ledger(work / LEDGER, lambda state: int(tokens * (state.epoch or 0.0))),
                _Reporter(tokens, report),
                Seal(),
            ],
        )
        _follow(trainer, config, work, along, checkpoint)
        causal_attention.enable(model)
        if pays:
            compiled.enable(model)
        trainer.train(resume_from_checkpoint=checkpoint)
        causal_attention.disable(model)
        compiled.disable(model)
        return model, trainer

    with calm_libraries(), disk_errors(work):
        model, trainer = with_smaller_batches(run, config.batch_size, along.say)
    return model, _result(model, trainer, work)


def _follow(trainer: Trainer, config: TuneConfig, work: Path, along: Following, checkpoint: str | None) -> None:
    """Add what the config asks for to a trainer, and drop what prints by itself."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    if "tensorboard" in config.report_to:
        log = work.with_name(f"{_arm(work)}.tensorboard")
        trainer.add_callback(tensorboard(log, step_of(Path(checkpoint)) if checkpoint else 0))
    if along.score and config.eval_steps:
        trainer.add_callback(EarlyStopping(along.score, config.eval_steps, config.patience, trainer.log))


def _arm(work: Path) -> str:
    """The arm that is trained in a work folder, `.ARM.training`."""
    return work.name.strip(".").removesuffix(".training")


def _result(model: Any, trainer: Trainer, work: Path) -> TrainResult:
    last = store.JsonlLog(work / LEDGER).rows()[-1]
    return TrainResult(
        steps=trainer.state.global_step,
        seconds=last["seconds"],
        trained_tokens=last["tokens"],
        losses=tuple(float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry),
        trainable_parameters=sum(p.numel() for p in trainable(model).values()),
        all_parameters=sum(p.numel() for p in model.parameters()),
        peak_memory=peak_memory(),
        dev_scores=tuple(dev_scores(trainer.state).items()),
    )


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


def _arguments(
    config: TuneConfig, method: Method, work: Path, rows: tuple[int, int], project: str
) -> TrainingArguments:
    """`rows`: how many at a time, and how many times a step."""
    return TrainingArguments(
        output_dir=str(work),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=rows[0],
        gradient_accumulation_steps=rows[1],
        learning_rate=config.learning_rate or method.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        weight_decay=0.0,
        max_grad_norm=1.0,
        train_sampling_strategy="group_by_length",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=config.save_steps,
        save_total_limit=2,
        **tracking_arguments(config.report_to, project, _arm(work)),
        optim="paged_adamw_32bit" if method.nf4 and torch.cuda.is_available() else "adamw_torch",
        gradient_checkpointing=config.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=config.seed,
        data_seed=config.seed,
    )
