"""Trackers: known names, packages that are missing, and what is written."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from small_training import Setting, StopAt, go, losses, small_trainer
from transformers.integrations import INTEGRATION_TO_CALLBACK

from ragtune.config import TuneConfig
from ragtune.errors import ConfigError
from ragtune.generator.checkpoints import newest_checkpoint, step_of
from ragtune.generator.trackers import check_trackers, tensorboard, tracking_arguments

KNOWN = ("tensorboard", "mlflow", "wandb", "trackio")


def test_the_names_are_those_of_the_trainer() -> None:
    assert set(KNOWN) <= INTEGRATION_TO_CALLBACK.keys()
    assert TuneConfig(report_to=KNOWN).report_to == KNOWN
    assert TuneConfig().report_to == ()
    with pytest.raises(ValidationError, match="'tensorboard', 'mlflow', 'wandb' or 'trackio'"):
        TuneConfig(report_to=("tensorbored",))


def test_a_missing_package_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    there: dict[str, Any] = {"mlflow": object()}
    monkeypatch.setattr(importlib.util, "find_spec", there.get)
    check_trackers(())
    check_trackers(("mlflow",))
    with pytest.raises(ConfigError) as error:
        check_trackers(("tensorboard", "mlflow", "trackio"))
    assert str(error.value) == (
        "tune.report_to names tensorboard, trackio, which is not installed; install it with: "
        "pip install tensorboard trackio"
    )


def test_tensorboard_is_not_left_to_write_among_the_checkpoints() -> None:
    arguments = tracking_arguments(("tensorboard", "wandb"), "harbour", "raft")
    assert arguments["report_to"] == ["wandb"]
    assert (arguments["project"], arguments["run_name"]) == ("harbour", "raft")


def test_tensorboard_holds_what_the_trainer_logs(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step once, though the run was cut off; and nothing of the environment."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("SOME_API_KEY", "environment-value-7f3a")
    work, log = tmp_path / "work", tmp_path / "raft.tensorboard"

    def run(*more: Any) -> Any:
        found = newest_checkpoint(work)
        callback = tensorboard(log, step_of(Path(found)) if found else 0)
        return go(small_trainer(tiny, work, Setting(save_steps=3), [callback, *more]))

    with pytest.raises(KeyboardInterrupt):
        run(StopAt(6))
    trainer = run()
    events = EventAccumulator(str(log))
    events.Reload()
    shown = events.Scalars("train/loss")
    assert [event.step for event in shown] == list(range(1, 9))
    assert [event.value for event in shown] == pytest.approx(losses(trainer))
    assert events.Scalars("train/learning_rate")[0].value == pytest.approx(0.01)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(log in file.parents for file in files)
    assert not [file for file in files if b"environment-value" in file.read_bytes()]
