"""The bench's figures on the tiny project, where what is right is known."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from ragtune.session import Session
from ragtune.testing import ScriptedGenerator
from ragtune.types import Message

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "bench_synth.py"


@pytest.fixture
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_synth", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reply(messages: Sequence[Message]) -> str:
    last = messages[-1].content
    if "____" in last:
        return f"What is it that {last.partition(': ')[2].partition(chr(10))[0].replace('____', '').rstrip('.')}?"
    return "yes" if "yes or no" in messages[0].content else "nothing"


def test_figures(
    bench: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Session, "generator_for", lambda self, arm: ScriptedGenerator(reply))
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--config", str(project), "--json", str(project / "f.json")])
    bench.main()
    printed = capsys.readouterr().out
    figures = json.loads(printed.splitlines()[-1])
    assert figures == json.loads((project / "f.json").read_text())
    written, human, free = figures["answer_first"], figures["human"], figures["free"]
    assert written["kept"] == written["yield"] * written["replies"] > 0
    assert written["found_at_1"] == 1.0, "it repeats its sentence"
    assert written["answerable"] == written["answerable_elsewhere"] == human["answerable"] == 1.0
    assert (free["kept"], free["found_at_1"], free["confirmed"]) == (0, None, None)
    assert free["reasons"] == {"no-question": free["replies"]}
    assert human["confirmed"] == human["confirmed_blind"], "this model picks the first label whatever is asked"
    assert "human: rank in search" in printed


def test_table(bench: ModuleType) -> None:
    lines = bench.table({"answer_first": {"yield": 0.5, "confirmed": 1 / 3}, "human": {"confirmed": None}})
    assert lines[0].startswith("| questions | kept of the replies | found first |")
    assert lines[2] == "| answer-first | 50% |  |  | 33% |  |  |  |"
    assert lines[4].replace("|", "").split() == ["written", "by", "people"]
    assert {line.count("|") for line in lines} == {9}
