"""The ledger of a run: one JSON line per optimiser step, on the disk before the next step begins.

{"step": 40, "loss": 1.92, "learning_rate": 0.00094, "gradient_norm": 0.71, "tokens": 61440,
 "tokens_per_second": 310.5, "peak_memory": 2147483648, "seconds": 198.2}

Loss in nats per answer token; the learning rate that this step's update was made with and the norm of its gradient
before clipping; tokens and seconds so far, memory in bytes; `dev_score` on the steps that were scored. A run that goes
on from a checkpoint drops the lines after it, so that each step stands there once, however often the run was cut off.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ragtune import store
from ragtune.generator.machine import peak_memory

LEDGER = "ledger.jsonl"
DEV_SCORE = "dev_score"


class Ledger(TrainerCallback):
    """Write a run's ledger as the Trainer logs; it must log every step (`logging_steps=1`).

    `tokens(state)` says how many tokens were trained on up to a Trainer's state.
    """

    def __init__(self, path: Path, tokens: Callable[[Any], int]) -> None:
        self.log = store.JsonlLog(path)
        self.tokens = tokens
        self.tokens_before = 0
        self.score: dict[str, float] = {}
        self.seconds_before = 0.0
        self.started = self.step_started = self.step_ended = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the lines up to the checkpoint that the run goes on from."""
        rows = keep_until(self.log, state.global_step)
        self.seconds_before = rows[-1]["seconds"] if rows else 0.0
        self.tokens_before = rows[-1]["tokens"] if rows else 0
        self.started = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the step's clock: what lies between two steps (checkpoints, scoring) is not counted in its speed."""
        self.step_started = time.perf_counter()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop the step's clock."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the loss is read right after this, and waits just as long
        self.step_ended = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        """Write the step's line; a score comes before the loss of the same step and waits for it.

        Raises: StoreError when the disk is full or read-only; lines written before stay good.
        """
        if DEV_SCORE in logs:
            self.score = {DEV_SCORE: logs[DEV_SCORE]}
        if "loss" not in logs:
            return
        tokens = self.tokens(state)
        line = {
            "step": state.global_step,
            "loss": float(logs["loss"]),
            "learning_rate": logs["learning_rate"],
            "gradient_norm": float(logs["grad_norm"]),
            "tokens": tokens,
            "tokens_per_second": round((tokens - self.tokens_before) / (self.step_ended - self.step_started), 1),
            "peak_memory": peak_memory(),
            "seconds": round(self.seconds_before + time.perf_counter() - self.started, 3),
            **self.score,
        }
        self.log.append([line])
        self.tokens_before, self.score = tokens, {}


def keep_until(log: store.JsonlLog, step: int) -> list[dict[str, Any]]:
    """Drop a ledger's lines after a step; gives those that are left.

    Raises: StoreError naming a line that is no JSON object, or when the disk is full or read-only.
    """
    rows = log.rows()
    kept = [row for row in rows if row["step"] <= step]
    if len(kept) < len(rows):
        store.write_text(log.path, "".join(json.dumps(row) + "\n" for row in kept))
    return kept
