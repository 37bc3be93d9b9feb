"""Trackers that follow a run through the Trainer's own integrations, beside the ledger that is always kept.

What they need to know about servers, projects and keys they take from their own environment variables and files;
ragtune reads and writes none of it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ragtune.errors import ConfigError


def check_trackers(names: Sequence[str]) -> None:
    """Refuse, before any work is done, a tracker whose package (of the same name) is not there.

    Raises: ConfigError with the line that installs it.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"tune.report_to names {', '.join(missing)}, which is not installed; install it with: "
            f"pip install {' '.join(missing)}"
        )


def tracking_arguments(names: Sequence[str], project: str, run: str) -> dict[str, Any]:
    """What the Trainer's arguments say on trackers. TensorBoard is not among them: see `tensorboard`."""
    return {
        "report_to": [name for name in names if name != "tensorboard"],
        "project": project,
        "run_name": run,
        "trackio_static_space_id": False,  # nothing goes to the hub at the end
    }


def tensorboard(folder: Path, step: int) -> TrainerCallback:
    """The Trainer's TensorBoard integration, writing into `folder` for a run that goes on after `step`.

    By itself it would write among the checkpoints, which go when the adapter is finished. Values that a cut-off run
    wrote after `step` are hidden.
    """
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(str(folder), purge_step=step + 1))
