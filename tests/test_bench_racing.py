"""Races over recorded answers whose outcome is plain to see."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest

from ragtune import store
from ragtune.assistant import ARMS
from ragtune.errors import InputError
from ragtune.evaluator.decide import Prices, decide
from ragtune.types import Question, Row

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "bench_racing.py"
NAMES = ("prompt", "few-shot", "tune")
N = 96


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_racing", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answered(arm: str, number: int, score: float) -> Row:
    tokens = 10 * (1 + NAMES.index(arm))
    return Row("facts", f"q{number}", arm, score, {}, "", (), (), tokens, 1, 0.0, False)


def recorded(folder: Path, rows: list[Row]) -> Path:
    """A run folder with these answers and the verdict on them."""
    arms = {name: ARMS[name] for name in NAMES}
    questions = [Question(f"q{i}", f"What is {i}?", (str(i),), "facts", "test") for i in range(N)]
    manifest = {
        "kind": "run",
        "arms": [asdict(arm) for arm in arms.values()],
        "inputs": {
            "config": {
                "evaluate": {"margin": 0.02},
                "prices": {"prompt": 0.05, "output": 0.2, "currency": "units"},
            }
        },
        "training_cost": {"tune": 10.0},
        "questions_paid_off": 1000,
    }
    with store.atomic_folder(folder, manifest) as building:
        store.write_jsonl(building / "rows.jsonl", (asdict(row) for row in rows))
        store.write_jsonl(building / "questions.jsonl", (asdict(q) for q in questions))
        verdict = decide("facts", rows, arms, 0.02, Prices(training={"tune": 0.01}))
        store.write_json(building / "verdicts.json", [asdict(verdict)])
    return folder


def test_arms_that_are_plainly_worse_are_saved_their_questions(bench: ModuleType, tmp_path: Path) -> None:
    scores = {"prompt": 0.0, "few-shot": 0.0, "tune": 1.0}
    rows = [answered(arm, i, score) for arm, score in scores.items() for i in range(N)]
    figures = bench.replay(recorded(tmp_path / "run", rows), orders=3)
    # Two of three arms stop after the first round of 24, and with one arm left so does the race.
    assert figures["saved"] == pytest.approx(1 - 24 / N)
    assert (figures["same_arm"], figures["decided"], figures["both_decided_otherwise"]) == (1.0, 1.0, 0.0)
    assert figures["races"] == 3
    assert figures["by_task"].keys() == {"facts"}


def test_equal_arms_save_nothing_and_name_the_cheapest(bench: ModuleType, tmp_path: Path) -> None:
    rows = [answered(arm, i, float(i % 2)) for arm in NAMES for i in range(N)]
    figures = bench.replay(recorded(tmp_path / "run", rows), orders=2)
    assert (figures["saved"], figures["same_arm"]) == (0.0, 1.0)


def test_a_run_that_raced_itself_cannot_be_replayed(bench: ModuleType, tmp_path: Path) -> None:
    rows = [answered(arm, i, 1.0) for arm in NAMES for i in range(N) if arm != "prompt" or i < 24]
    with pytest.raises(InputError, match="not every arm answered all of facts; evaluate with racing_error = 0"):
        bench.replay(recorded(tmp_path / "run", rows), orders=1)
