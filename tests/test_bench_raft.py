"""The RAFT benchmark gives readers what it says, compares question by question, and goes on where it stopped."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ragtune import pipeline
from ragtune.session import gold_passages

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
MODULES = ("bench_raft", "raft_page", "reading", "generated", "alone")
LABELS = [f"document {n}" for n in range(12)]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield import_module("bench_raft")
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def reading(bench: ModuleType, project: Path, fp32: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with the tiny project as the sample corpus."""
    monkeypatch.setattr(bench.reading, "CORPUS", project)
    monkeypatch.setattr(bench.reading, "SAMPLE", ("fenmere", "facts"))
    monkeypatch.setattr(bench.reading, "WHOLE_CONTEXT", 2_000)
    monkeypatch.setattr(bench.reading, "alone", lambda work, *arguments: work(*arguments))
    return bench.reading


@pytest.fixture
def study(reading: Any, tmp_path: Path) -> Any:
    return reading.open_study(tmp_path / "work", None, "fenmere", {"retrieval.k": 3, "tune.epochs": 1.0})


# --- what readers are given ------------------------------------------------------------------------------------------


def test_gold_stands_once_among_the_highest_ranked_others(study: Any, reading: Any) -> None:
    questions = study.questions("test", 100)
    assert len(questions) == 10  # the two without an answer are not asked
    gold = gold_passages(questions, study.session.index.passages)
    places = set()
    for k in (1, 2, 5):
        given = reading.gold_among(study, questions, k)
        assert reading.recall(study, questions, given) == 1.0
        for question in questions:
            ids = [hit.passage.id for hit in given[question.id]]
            golden = {passage.id for passage in gold[question.id]}
            place = next(place for place, id in enumerate(ids) if id in golden)
            ranked = [hit.passage.id for hit in study.session.retriever.search([question.text], 20)[0]]
            others = [id for id in ranked if id not in golden][: k - 1]
            assert ids[:place] + ids[place + 1 :] == others
            assert [hit.rank for hit in given[question.id]] == [*range(1, k + 1)]
            places.add((k, place))
    assert len({place for k, place in places if k == 5}) > 2  # no place is favoured
    assert reading.gold_among(study, questions, 5) == reading.gold_among(study, questions, 5)


def test_recall_counts_questions_whose_gold_was_found(study: Any, reading: Any) -> None:
    questions = study.questions("test", 4)
    given = reading.gold_among(study, questions, 2)
    gold = gold_passages(questions, study.session.index.passages)
    golden = {passage.id for passage in gold[questions[0].id]}
    given[questions[0].id] = tuple(hit for hit in given[questions[0].id] if hit.passage.id not in golden)
    assert reading.recall(study, questions, given) == 0.75


# --- from end to end -------------------------------------------------------------------------------------------------


def test_the_headline_comes_from_the_same_questions_before_and_after(
    bench: ModuleType, study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = bench.Test("test", 6, 2)
    figures = bench.trial(study, test)
    assert json.loads(json.dumps(figures)) == figures
    assert (figures["set"], figures["questions"], figures["split"]) == ("fenmere", 6, "test")
    assert figures["rows"] == 12
    assert figures["difference"]["mean"] == pytest.approx(figures["em_after"] - figures["em_before"])
    assert 0 <= figures["em_after"] <= figures["f1_after"] <= 1
    (logged,) = (study.folder.parent / "trials.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(logged)["settings"]["tune.epochs"] == 1.0
    # The second time nothing is trained or answered again, even by those who know of nothing.
    study.trained.clear()
    monkeypatch.setattr("ragtune.generator.train.train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(bench.reading.LocalGenerator, "generate", lambda *_: pytest.fail("asked again"))
    assert bench.trial(study, test) == figures


def test_the_curves_hold_every_reader_at_every_size(
    bench: ModuleType, study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "PASSAGES", (1, 3))
    monkeypatch.setattr(bench, "SHARES", (60, 80, 100))
    figures = bench.curves(study, bench.Test("test", 5, 2))
    assert json.loads(json.dumps(figures)) == figures
    assert [line["k"] for line in figures["by_k"]] == [1, 3]
    assert figures["by_k"][1]["scores"].keys() == bench.READERS.keys()
    assert [line["share"] for line in figures["by_share"]] == [60, 80, 100]
    assert figures["by_share"][1]["score"]["mean"] == figures["em_after"]  # the same adapter on the same passages
    assert len(study.trained) == 5  # closed-book, gold-only, and RAFT with three shares
    page = tmp_path / "page.md"
    page.write_text(f"<!-- generated by scripts/bench_raft.py -->\n{bench.generated.END}\n", encoding="utf-8")
    bench.generated.fill(page, "bench_raft.py", bench.raft_page.lines(figures))
    assert "`fenmere`, 5 test questions with 3 retrieved passages" in page.read_text(encoding="utf-8")


def test_adapters_of_other_settings_lie_beside_each_other(
    study: Any, reading: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def tune(project: Any, arm: str, only: list[str], resume: bool, watch: Any) -> Any:
        asked.append((arm, only, resume, project.tune.rank))
        return argparse.Namespace(folder=project.place("adapters") / arm)

    monkeypatch.setattr(pipeline, "tune", tune)
    folders = [reading.train(study, "raft", {"tune.rank": rank}) for rank in (2, 3, 2)]
    assert folders[0] == folders[2] != folders[1]
    assert asked == [("raft", ["facts"], True, rank) for rank in (2, 3)]
    # The index is shared, not copied.
    assert (folders[0].parents[2] / "indexes").resolve() == (study.folder / "indexes").resolve()


# --- figures ---------------------------------------------------------------------------------------------------------


def scored(right: int) -> Any:
    return np.array([1.0] * right + [0.0] * (12 - right))


def test_leads_are_paired_and_changes_count_from_one_passage(bench: ModuleType) -> None:
    found = {
        "base": {1: scored(6), 10: scored(3)},
        "gold-only": {1: scored(12), 10: scored(6)},
        "raft": {1: scored(9), 10: scored(9)},
    }
    one, ten = bench.by_passages(found, LABELS)
    assert (one["k"], ten["k"]) == (1, 10)
    assert one["scores"]["base"]["mean"] == 0.5
    assert one["raft_leads"]["base"]["mean"] == pytest.approx(0.25)
    assert ten["raft_leads"].keys() == {"base", "gold-only"}
    assert ten["since_one"]["gold-only"]["mean"] == pytest.approx(-0.5)
    assert ten["since_one"]["raft"]["mean"] == 0.0
    # Raft is right wherever the base is, so the paired interval excludes what two separate ones would not.
    assert ten["raft_leads"]["base"]["low"] > 0
    assert one["scores"]["raft"]["low"] < one["scores"]["base"]["high"]


def test_flags_become_settings(bench: ModuleType) -> None:
    said = "--goal --rows 640 --rank 8 --learning-rate 2e-4 --setting tune.alpha=64 --setting tune.without_gold=recall"
    arguments = bench.parser().parse_args(said.split())
    assert bench.settings_of(arguments) == {
        "tune.max_rows_per_task": 640,
        "tune.rank": 8,
        "tune.learning_rate": 2e-4,
        "tune.alpha": 64,  # what is said last wins over twice the rank
        "tune.without_gold": "recall",
    }
    with pytest.raises(argparse.ArgumentTypeError, match=r"'tune\.rank', expected SECTION\.KEY=VALUE"):
        bench.setting("tune.rank")


# --- the page --------------------------------------------------------------------------------------------------------


def interval(mean: float, half: float = 0.1) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def figures_of(bench: ModuleType) -> dict[str, Any]:
    names = tuple(bench.READERS)
    by_k = [
        {
            "k": k,
            "scores": {name: interval(0.5 - 0.01 * k) for name in names},
            "raft_leads": {name: interval(0.2) for name in names if name != "raft"},
            "since_one": {name: interval(-0.05) for name in names},
        }
        for k in (1, 3, 10)
    ]
    shares = [{"share": share, "score": interval(0.4), "leads_100": interval(0.0)} for share in (40, 100)]
    return {
        "set": "fenmere",
        "em_before": 0.01,
        "em_after": 0.5,
        "f1_after": 0.61,
        "minutes": 12.3,
        "questions": 200,
        "split": "test",
        "recall": 0.94,
        "rows": 640,
        "difference": interval(0.49),
        "by_k": by_k,
        "by_share": shares,
        "learned_from_distractors": interval(0.05),
    }


def test_the_page_shows_every_comparison(bench: ModuleType) -> None:
    text = "\n".join(bench.raft_page.lines(figures_of(bench)))
    assert "gold among them for 94%" in text
    assert "exact match 0.01 before and 0.50 after 12\nminutes" in text
    assert "| passages | base | closed-book | gold-only | raft | raft - base | raft - closed-book |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    tables = [[row for row in rows if row.count("|") == width] for width in (9, 4)]
    assert [len(table) for table in tables] == [6, 4]  # head, rule, and rows: three k and the change, two shares
    assert "| 10 - 1 | -0.05 (-0.15 to +0.05) |" in text
    assert "**+0.20 (+0.10 to +0.30)**" in text  # leaves out 0
    assert "| 40 % | 0.40 (0.30 to 0.50) | +0.00 (-0.10 to +0.10) |" in text


def test_equal_figures_draw_equal_pictures(bench: ModuleType, tmp_path: Path) -> None:
    pictures = [tmp_path / name for name in ("a.svg", "b.svg")]
    for picture in pictures:
        bench.raft_page.draw(figures_of(bench), picture)
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert pictures[0].read_text(encoding="utf-8").count("<svg") == 1
    assert bench.raft_page.picture(figures_of(bench)).name == "raft-fenmere.svg"
