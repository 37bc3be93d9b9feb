"""A training run in a process of its own that can be killed at any place."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Trainer
from transformers.trainer_callback import CallbackHandler

from ragtune import store
from ragtune.config import TuneConfig
from ragtune.generator import generate, train
from ragtune.generator.adapters import trainable
from ragtune.generator.examples import TrainingRow
from ragtune.generator.methods import METHODS

EVENTS = ("on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_log")
"""What a step goes through: at its beginning the steps before it are counted, from its end on it is, too."""
IN_A_CHECKPOINT = ("save_model", "_save_optimizer_and_scheduler", "_save_rng_state")
"""What writes a checkpoint, in order; its state and the list of its files come last."""


def train_until(
    rows: Sequence[TrainingRow], base: Path, config: TuneConfig, work: Path, place: str = "", step: int = 0
) -> None:
    """Train in fp32 with one thread, and write weights and losses down; die at a place and step, when given."""
    torch.set_num_threads(1)
    generate.best_dtype = train.best_dtype = lambda: torch.float32
    if place in EVENTS:
        _die_at_event(place, step)
    elif place:
        _die_before(place, step)
    model, result = train.train(rows, base, METHODS["lora"], config, work)
    save_file({name: w.detach() for name, w in trainable(model).items()}, work / "final.safetensors")
    store.write_json(work / "losses.json", list(result.losses))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at_event(place: str, step: int) -> None:
    call = CallbackHandler.call_event

    def call_event(self: Any, event: str, args: Any, state: Any, control: Any, **more: Any) -> Any:
        if event == place and state.global_step == step:
            _die()
        return call(self, event, args, state, control, **more)

    CallbackHandler.call_event = call_event


def _die_before(place: str, step: int) -> None:
    write = getattr(Trainer, place)

    def dying(self: Any, *args: Any, **more: Any) -> Any:
        if self.state.global_step == step:
            _die()
        return write(self, *args, **more)

    setattr(Trainer, place, dying)
