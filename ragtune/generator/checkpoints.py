"""The checkpoints of a run: sealed when finished, checked before they are used, continued by their own run only.

torch's files carry no checksum, and the Trainer goes on, silently, from a checkpoint whose optimizer is missing. So
each finished checkpoint gets a list of its files' sha256, last of all; one without it was cut off while it was written.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from ragtune import store
from ragtune.errors import MismatchError, StoreError
from ragtune.generator.adapters import trainable

SUMS = "sha256.json"
WEIGHTS = "weights.safetensors"
_HASH = re.compile("[0-9a-f]{64}")
_STATE_FILES = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth")


def seal(folder: Path) -> None:
    """Write the sha256 of each file of a finished folder, last of all.

    Raises: StoreError when the disk is full or read-only.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    store.write_json(folder / SUMS, {path.relative_to(folder).as_posix(): store.sha256_of_file(path) for path in files})


def damage(folder: Path) -> str:
    """What is wrong with a sealed folder, in a few words; empty when every file is as it was sealed."""
    try:
        sums = store.read_json(folder / SUMS)
    except StoreError:
        return f"it was not finished, or its {SUMS} is damaged"
    for name, expected in sums.items():
        if not (folder / name).exists():
            return f"{name} is missing"
        if store.sha256_of_file(folder / name) != expected:
            return f"{name} is damaged (its sha256 differs)"
    return ""


def save_trained(model: Any, folder: Path) -> None:
    """Write what a model trains into a folder, bit by bit and whatever the method.

    Raises: SafetensorError when the disk is full or read-only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.detach().contiguous() for name, weight in trainable(model).items()}, folder / WEIGHTS)


@torch.no_grad()
def load_trained(model: Any, folder: Path) -> None:
    """Put back what `save_trained` wrote; unlike peft, which casts what it loads to fp32, as it was."""
    saved = load_file(folder / WEIGHTS)
    for name, weight in trainable(model).items():
        weight.copy_(saved[name])


class Seal(TrainerCallback):
    """Seal each checkpoint as soon as the Trainer has written it."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seal the checkpoint of this step.

        Raises: StoreError when the disk is full or read-only.
        """
        seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def checkpoints(work: Path) -> list[Path]:
    """The checkpoint folders of a run, whole or not, the newest first."""
    return sorted(work.glob("checkpoint-*"), key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The optimiser steps that a checkpoint has behind it."""
    return int(checkpoint.name.rpartition("-")[2])


def newest_checkpoint(work: Path, say: Callable[[str], None] = lambda _: None) -> str | None:
    """The newest checkpoint that is whole; `say` is told of each newer one that is passed over, and why."""
    for path in checkpoints(work):
        wrong = damage(path) or _missing(path)
        if not wrong:
            return str(path)
        say(f"{path.name} is passed over: {wrong}")
    return None


def _missing(checkpoint: Path) -> str:
    """What the Trainer would go on without."""
    absent = [name for name in _STATE_FILES if not (checkpoint / name).exists()]
    if not any(checkpoint.rglob("*.safetensors")):
        absent.append("a file of weights")
    return f"{', '.join(absent)} missing" if absent else ""


def prepare_work_folder(work: Path, inputs: dict[str, Any], resume: bool) -> None:
    """Make `work` ready: continue only a run with exactly these inputs.

    Raises: MismatchError when `resume` finds a run with other inputs, showing what they were and what they are now.
    """
    marker = work / "inputs.json"
    if resume and marker.exists():
        changed = differences(store.read_json(marker), inputs)
        if changed:
            raise MismatchError(
                f"{work} holds an interrupted run with other inputs: {'; '.join(changed)}; "
                "tune without --resume to start afresh, or restore what it was started with"
            )
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    store.write_json(marker, inputs)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Each value that differs as `name was X, now Y`; names inside a table are joined by dots."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += [f"{key}.{line}" for line in differences(old, new)]
        elif old != new or (key in before) != (key in now):
            found.append(f"{key} was {_shown(before, key)}, now {_shown(now, key)}")
    return found


def _shown(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "not set"
    text = str(values[key])
    return f"{text[:12]}…" if _HASH.fullmatch(text) else text or "empty"
