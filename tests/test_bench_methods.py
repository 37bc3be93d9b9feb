"""The methods benchmark measures each method once, says what is not possible, and puts claims beside figures."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ragtune.generator.methods import METHODS

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield import_module("bench_methods")
    for name in ("bench_methods", "generated", "alone"):
        sys.modules.pop(name, None)


@pytest.fixture
def tiny(bench: ModuleType, project: Path, fp32: None, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark on the tiny project, in this process."""
    monkeypatch.setattr(bench, "CORPUS", project)
    monkeypatch.setattr(bench, "TASKS", ("facts", "routing"))
    monkeypatch.setattr(bench, "alone", lambda work, *arguments: work(*arguments))
    return bench


def entry(**more: Any) -> dict[str, Any]:
    scores = {task: {"mean": 0.5, "low": 0.4, "high": 0.6} for task in ("sender", "routing")}
    facts = {"trainable_parameters": 4_884_480, "share": 0.035, "adapter_bytes": 9_800_000, "peak_memory": 2 * 10**9}
    return {"scores": scores, **facts, "tokens_per_second": 612.4, **more}


def test_methods_are_measured_once_for_the_same_settings(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = tiny.Size(rows=4, epochs=1.0, questions=3)
    work = tmp_path / "work"
    first = tiny.run([tiny.UNTUNED, "lora", "bitfit"], size, work)
    assert json.loads(json.dumps(first)) == first
    assert first["bitfit"].keys() == {"not_possible"}
    assert "bias" in first["bitfit"]["not_possible"]
    assert first["untuned"].keys() == {"scores"}
    lora = first["lora"]
    assert lora["scores"].keys() == {"facts", "routing"}
    # rank x (inputs + outputs) of the seven matrices of two layers, 32 wide, 16 for keys and values, 64 inside
    assert lora["trainable_parameters"] == 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    assert 0 < lora["share"] < 1
    assert lora["adapter_bytes"] >= 2 * lora["trainable_parameters"]
    assert lora["last_loss"] > 0
    measured = []
    monkeypatch.setattr(tiny, "alone", lambda _, method, *more: measured.append(method) or entry())
    assert tiny.run(["lora", "bitfit"], size, work) == {name: first[name] for name in ("lora", "bitfit")}
    assert measured == []
    tiny.run(["lora"], tiny.Size(rows=4, epochs=2.0, questions=3), work)
    assert measured == ["lora"]


def test_the_table_puts_claims_beside_figures(bench: ModuleType) -> None:
    entries = {
        "untuned": {"scores": entry()["scores"]},
        "lora": entry(),
        "bitfit": {"not_possible": "no biases; use ln | ia3"},
    }
    head, rule, untuned, lora, bitfit = bench.lines(entries)
    assert {line.replace("\\|", "").count("|") for line in (head, rule, untuned, lora, bitfit)} == {9}
    assert "| 4,884,480 (3.5 %) | 0.50 (0.40 to 0.60) | 0.50 (0.40 to 0.60) | 612 | 2.0 GB | 9.8 MB |" in lora
    assert lora.endswith("(Hu et al. 2021, abstract) |")
    assert bitfit.startswith("| `bitfit` | not possible: no biases; use ln \\| ia3 |")
    assert untuned.startswith("| `untuned` | none | 0.50")


@pytest.mark.parametrize(
    ("share", "text"), [(1.0, "100 %"), (0.12, "12 %"), (0.0349, "3.5 %"), (0.001, "0.10 %"), (8.5e-5, "0.0085 %")]
)
def test_shares_keep_two_digits(bench: ModuleType, share: float, text: str) -> None:
    assert bench.percent(share) == text


def test_names_are_those_of_the_registry(bench: ModuleType) -> None:
    assert bench.chosen(None) == ["untuned", *METHODS]
    assert bench.chosen("lora,ia3") == ["untuned", "lora", "ia3"]
    with pytest.raises(argparse.ArgumentTypeError, match="unknown lorra; methods are: full, lora"):
        bench.chosen("lora,lorra")
    assert bench.CLAIMS.keys() <= METHODS.keys()
