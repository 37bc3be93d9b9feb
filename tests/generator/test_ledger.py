"""The ledger of a run: what a line holds, and that each step stands there once however often the run was cut off."""

from __future__ import annotations

import json
import resource
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from small_training import Setting, SmallTrainer, StopAt, go, losses, small_trainer

from ragtune import store
from ragtune.errors import StoreError
from ragtune.generator.ledger import Ledger, keep_until

SETTING = Setting(save_steps=3)
"""Eight rows, two at a time, twice: eight steps, with checkpoints after three and six."""


def tokens(state: Any) -> int:
    return int(state.num_input_tokens_seen)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def trained(tiny: Path, work: Path, *more: Any, setting: Setting = SETTING) -> SmallTrainer:
    return go(small_trainer(tiny, work, setting, [Ledger(work / "ledger.jsonl", tokens), *more]))


def test_a_line_for_each_step(tiny: Path, tmp_path: Path) -> None:
    trainer = trained(tiny, tmp_path)
    rows = lines(tmp_path / "ledger.jsonl")
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["loss"] for row in rows] == losses(trainer)
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.01 * (1 - i / 8) for i in range(8)])
    assert [row["gradient_norm"] for row in rows] == [entry["grad_norm"] for entry in logged]
    assert [row["tokens"] for row in rows] == [entry["num_input_tokens_seen"] for entry in logged]
    assert rows[-1]["tokens"] == 2 * sum(len(row["input_ids"]) for row in trainer.train_dataset)
    assert all(row["peak_memory"] > 2**20 for row in rows)


def test_speed_is_that_of_the_step(tiny: Path, tmp_path: Path) -> None:
    """Tokens a second times seconds gives the tokens, as long as nothing but steps takes time."""
    trained(tiny, tmp_path)
    rows = lines(tmp_path / "ledger.jsonl")
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    own = [b["tokens"] - a["tokens"] for a, b in pairwise(rows)]
    taken = [tokens / row["tokens_per_second"] for tokens, row in zip(own, rows[1:], strict=True)]
    assert 0 < sum(taken) <= seconds[-1] - seconds[0] + 0.002


@pytest.mark.parametrize("step", [2, 3, 5, 8])
def test_each_step_once_after_an_interruption(tiny: Path, tmp_path: Path, step: int) -> None:
    trained(tiny, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tiny, tmp_path / "cut", StopAt(step))
    before = lines(tmp_path / "cut" / "ledger.jsonl")
    assert [row["step"] for row in before] == list(range(1, step))
    trained(tiny, tmp_path / "cut")
    expected, rows = lines(tmp_path / "whole" / "ledger.jsonl"), lines(tmp_path / "cut" / "ledger.jsonl")
    same = ("step", "loss", "learning_rate", "gradient_norm", "tokens")
    assert [[row[key] for key in same] for row in rows] == [[row[key] for key in same] for row in expected]
    kept = (step - 1) // 3 * 3
    assert rows[:kept] == before[:kept]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)  # the time of the part before goes on


def test_a_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert keep_until(store.JsonlLog(path), 2) == [{"step": 1}, {"step": 2}]
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert keep_until(store.JsonlLog(path), 0) == []
    assert path.read_text() == ""


def test_a_full_disk(tiny: Path, tmp_path: Path) -> None:
    """Lines written before stay whole."""
    path = tmp_path / "ledger.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, before[1]))
    try:
        with pytest.raises(StoreError, match=r"cannot write .*ledger\.jsonl"):
            trained(tiny, tmp_path, setting=Setting())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    written = [row["step"] for row in lines(path)]
    assert written == list(range(1, len(written) + 1)) and 1 < len(written) < 8
