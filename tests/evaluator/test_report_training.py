"""How adapters were trained, in a report: the picture of the loss, the tables, and all three forms."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_sample import DATA

from ragtune.evaluator.report import charts, training, words
from ragtune.evaluator.report.data import TrainingFacts
from ragtune.evaluator.report.render import write_report

RAFT = TrainingFacts(
    adapter="raft",
    method="lora",
    learning_rate=1e-3,
    trainable_parameters=4_884_480,
    all_parameters=139_399_488,
    tokens=85_348,
    seconds=1146.6,
    peak_memory=6_923_558_912,
    losses=tuple(2.0 / (1 + i) for i in range(38)),
)
CHOSEN = replace(RAFT, adapter="tune", dev_scores=((10, 0.25), (20, 0.5), (30, 0.5), (38, 0.375)), peak_memory=0)
TRAINED = replace(DATA, training=(RAFT, CHOSEN))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(TRAINED, folder)
    return folder


def test_what_training_took() -> None:
    table = training.training_table(TRAINED)
    assert table.rows[0] == ("raft", "lora", "0.001", "4,884,480", "3.5 %", "38", "85,348", "1,147", "6.4 GiB")
    assert table.rows[1][-1] == words.MISSING
    assert len(table.columns) == len(table.rows[0])


def test_losses_by_tenths() -> None:
    table = training.losses_table(replace(RAFT, losses=tuple(float(i) for i in range(1, 21))))
    assert table.columns == ("Steps", "Mean loss")
    assert table.rows[0] == ("1 to 2", "1.500") and table.rows[-1] == ("19 to 20", "19.500")
    few = training.losses_table(replace(RAFT, losses=(3.0, 1.0)))
    assert few.rows == (("1", "3.000"), ("2", "1.000"))


def test_dev_scores_stand_beside_the_losses() -> None:
    table = training.losses_table(CHOSEN)
    assert table.columns[-1] == "Dev score"
    assert [row[-1] for row in table.rows if row[-1] != words.MISSING] == ["0.25", "0.50", "0.50", "0.38"]
    assert training.best_step(CHOSEN) == 20 and training.best_step(RAFT) is None


@given(st.lists(st.floats(0, 10), min_size=1, max_size=200))
def test_tenths_hold_every_step_once(losses: list[float]) -> None:
    rows = training.losses_table(replace(RAFT, losses=tuple(losses))).rows
    edges = [[int(n) for n in re.findall(r"\d+", row[0])] for row in rows]
    assert edges[0][0] == 1 and edges[-1][-1] == len(losses)
    assert all(after[0] == before[-1] + 1 for before, after in pairwise(edges))
    sizes = [steps[-1] - steps[0] + 1 for steps in edges]
    total = sum(float(row[1]) * size for row, size in zip(rows, sizes, strict=True))
    assert total / len(losses) == pytest.approx(fmean(losses), abs=6e-4)


def test_the_line_is_the_mean_of_the_steps_around() -> None:
    losses = tuple(float(i % 7) for i in range(60))
    line = training.smoothed(losses)
    assert line[30] == pytest.approx(fmean(losses[27:34]))
    assert line[0] == pytest.approx(fmean(losses[:4])) and line[-1] == pytest.approx(fmean(losses[-4:]))
    assert training.smoothed((2.0, 1.0)) == [2.0, 1.0]


def _numbers(element: ElementTree.Element) -> list[float]:
    return [float(n) for n in re.findall(r"-?[\d.]+", element.attrib["d"])]


def test_the_picture_shows_each_step_and_the_chosen_one() -> None:
    plain, chosen = (ElementTree.fromstring(charts.losses_chart(facts, "a")) for facts in (RAFT, CHOSEN))
    points = [(float(e.attrib["x"]), float(e.attrib["y"])) for e in plain.iter("use")]
    assert len(points) == 38
    heights = [y for _, y in points]
    assert heights == sorted(heights)  # the loss falls; y grows downwards
    gaps = [b[0] - a[0] for a, b in pairwise(points)]
    assert gaps == pytest.approx([gaps[0]] * 37, abs=0.01)
    line = next(e for e in plain.iter("path") if "var(--accent)" in e.attrib.get("style", ""))
    assert len(_numbers(line)) == 2 * 38
    dashed = [e for e in chosen.iter("path") if "stroke-dasharray" in e.attrib.get("style", "")]
    assert [_numbers(e)[0] for e in dashed] == pytest.approx([points[19][0]], abs=0.01)
    assert not [e for e in plain.iter("path") if "stroke-dasharray" in e.attrib.get("style", "")]


def test_a_long_run_has_at_most_500_points() -> None:
    picture = charts.losses_chart(replace(RAFT, losses=tuple(1 / (1 + i) for i in range(5000))), "a")
    assert picture.count("<use") == 500
    assert len(picture) < 120_000


def test_one_step() -> None:
    assert charts.losses_chart(replace(RAFT, losses=(1.5,)), "a").count("<use") == 1


def test_all_three_forms(folder: Path) -> None:
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    section = page[page.index('<section id="training">') : page.index('<section id="examples">')]
    assert section.count("<svg") == section.count("<figure>") == 2
    assert '<a href="#training">Training</a>' in page
    for table in (training.training_table(TRAINED), training.losses_table(RAFT), training.losses_table(CHOSEN)):
        for row in table.rows:
            assert "".join(f"<td>{cell}</td>" for cell in row[1:]) in section
            assert "| " + " | ".join(row) + " |" in text
    assert json.loads((folder / "report.json").read_text())["training"] == json.loads(
        json.dumps([asdict(facts) for facts in TRAINED.training])
    )


def test_without_adapters_there_is_no_such_section(tmp_path: Path) -> None:
    page = write_report(DATA, tmp_path).read_text()
    assert "#training" not in page and 'id="training"' not in page
    assert "## Training" not in (tmp_path / "report.md").read_text()
