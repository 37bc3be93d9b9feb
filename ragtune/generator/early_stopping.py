"""Stop when answers to dev questions get no better, and keep the weights that answered best."""

from __future__ import annotations

import contextlib
import math
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from ragtune.errors import StoreError, TrainingError
from ragtune.generator import shared_prefix
from ragtune.generator.checkpoints import damage, load_trained, save_trained, seal
from ragtune.generator.generate import LocalGenerator
from ragtune.generator.ledger import DEV_SCORE

Score = Callable[[Any], float]
"""How well a model in training answers dev questions; higher is better."""
_KEPT = 2
"""Best weights that are kept: a run that goes on from the checkpoint before the newest one may need the older ones."""


class EarlyStopping(TrainerCallback):
    """Score the model every `every` steps and at the last one; stop after `patience` scores without a better one.

    At the end the trained weights are those of the best step, bit by bit; of equal scores the earliest counts. Scoring
    leaves no trace in training. `log` is the Trainer's: scores go where losses go, and come back from checkpoints.
    """

    def __init__(self, score: Score, every: int, patience: int, log: Callable[[dict[str, float]], None]) -> None:
        self.score = score
        self.every = every
        self.patience = patience
        self.log = log

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        """Score when it is time.

        Raises: TrainingError for a score that is no number; StoreError when the disk is full or read-only.
        """
        last = state.global_step >= state.max_steps
        if state.global_step % self.every and not last:
            return
        with untouched(model):
            value = float(self.score(model))
        if not math.isfinite(value):
            raise TrainingError(f"the dev score is {value} at step {state.global_step}; expected a finite number")
        self.log({DEV_SCORE: value})
        control.should_log = True  # logging the score took this step's turn
        scores = dev_scores(state)
        best = best_step(scores)
        if best == state.global_step:
            _keep(model, Path(args.output_dir), best)
            control.should_save = True  # so that no checkpoint to go on from is older than the best weights
        elif not last and sum(step > best for step in scores) >= self.patience:
            control.should_training_stop = True
            control.should_save = False  # a run that goes on from here would make one step too many

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        """Put the best weights back.

        Raises: StoreError when they are damaged or gone.
        """
        folder = _folder(Path(args.output_dir), best_step(dev_scores(state)))
        if wrong := damage(folder):
            raise StoreError(f"{folder}, the best weights of this run: {wrong}; tune again without --resume")
        load_trained(model, folder)


def dev_scores(state: Any) -> dict[int, float]:
    """The dev score of each step that was scored, from a Trainer's state."""
    return {entry["step"]: entry[DEV_SCORE] for entry in state.log_history if DEV_SCORE in entry}


def best_step(scores: dict[int, float]) -> int:
    """The step of the highest score, of equal ones the earliest."""
    return max(scores, key=lambda step: (scores[step], -step))


def _folder(work: Path, step: int) -> Path:
    return work / f"best-{step}"


def _keep(model: Any, work: Path, step: int) -> None:
    folder = _folder(work, step)
    save_trained(model, folder)
    seal(folder)
    older = sorted(work.glob("best-*"), key=lambda path: path.stat().st_mtime_ns)
    for path in older[:-_KEPT]:
        shutil.rmtree(path)


@contextlib.contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Inside, the model is in eval mode; after it, its modes and all random states are what they were before."""
    modes = {module: module.training for module in model.modules()}
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (libraries use it)
    try:
        with torch.random.fork_rng():
            model.eval()
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def answering(model: Any, tokenizer: Any, name: str) -> Iterator[LocalGenerator]:
    """A model in training as a generator, on the path that a finished adapter answers on.

    Its attention and compiled layers are put back after. Its fingerprint is its name: keep nothing by it, since the
    weights change.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    attention = base.config._attn_implementation
    compiled = {module: call for module in model.modules() if (call := module._compiled_call_impl) is not None}
    base.set_attn_implementation("sdpa")
    shared_prefix.enable(base)
    for module in compiled:
        module._compiled_call_impl = None
    try:
        yield LocalGenerator(name, name, model, tokenizer)
    finally:
        base.set_attn_implementation(attention)
        for module, call in compiled.items():
            module._compiled_call_impl = call
