"""What was measured besides the score: further metrics, refusals, failures of form, and where citations point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ragtune.evaluator.attribute import RIGHT
from ragtune.evaluator.report import words
from ragtune.evaluator.report.data import ReportData, TaskFacts
from ragtune.evaluator.report.tables import Table, by_arm
from ragtune.types import Row, Verdict


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over the n questions that have the measure; None where n is 0."""

    value: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Measures:
    """One arm's further measures on one task, over all questions that it answered.

    Refusals and `format_failures` are (count, of how many); None where the task's format can't fail, or where its
    labels are not known.
    `wrong_citations` counts the right answers (score 0.5 or more) that cite passages, none of which holds evidence.
    """

    arm: str
    means: dict[str, Mean]
    wrong_refusals: tuple[int, int]
    right_refusals: tuple[int, int]
    format_failures: tuple[int, int] | None
    wrong_citations: tuple[int, int]


GROUNDING = ("citation_precision", "citation_recall")


def measures(data: ReportData, verdict: Verdict) -> tuple[Measures, ...]:
    """The further measures of each arm on one task; the primary metric is left out."""
    facts = data.task(verdict.task)
    return tuple(_measures(data, facts, s.arm) for s in verdict.arms)


def _measures(data: ReportData, facts: TaskFacts, arm: str) -> Measures:
    rows = list(data.answers(facts.name, arm).values())
    names = dict.fromkeys(name for row in rows for name in row.scores if name != facts.metric)
    answerable = [row.refused for row in rows if data.questions[row.question_id].answerable]
    unanswerable = [row.refused for row in rows if not data.questions[row.question_id].answerable]
    return Measures(
        arm,
        {name: _mean([row.scores.get(name) for row in rows]) for name in names},
        (sum(answerable), len(answerable)),
        (sum(unanswerable), len(unanswerable)),
        _format_failures(facts, rows),
        _wrong_citations(rows),
    )


def _mean(values: Sequence[float | None]) -> Mean:
    known = [value for value in values if value is not None]
    return Mean(math.fsum(known) / len(known) if known else None, len(known))


def _wrong_citations(rows: Sequence[Row]) -> tuple[int, int]:
    """Only questions with evidence have a `citation_precision`, and only answers that cite."""
    right = [row.scores.get("citation_precision") for row in rows if row.score is not None and row.score >= RIGHT]
    cited = [precision for precision in right if precision is not None]
    return sum(precision == 0 for precision in cited), len(cited)


def _format_failures(facts: TaskFacts, rows: Sequence[Row]) -> tuple[int, int] | None:
    """Answers that are not one JSON object, or free texts that are none of the task's labels."""
    if facts.format == "json":
        valid = [row.scores["valid_json"] for row in rows if row.scores.get("valid_json") is not None]
        return sum(value == 0 for value in valid), len(valid)
    if facts.format == "label" and facts.labels:
        labels = set(map(_fold, facts.labels))
        free = [_fold(row.free_text) for row in rows if row.free_text is not None]
        return sum(text not in labels for text in free), len(free)
    return None


def _fold(text: str) -> str:
    return text.strip().casefold()


def measures_table(data: ReportData, verdict: Verdict) -> Table:
    """Means of the further measures but for citations, refusals and format failures."""
    found = measures(data, verdict)
    names = [name for name in dict.fromkeys(name for m in found for name in m.means) if name not in GROUNDING]
    failures = any(m.format_failures for m in found)
    columns = ("Arm", *map(words.heading, names), "Refused though answerable", "Refused rightly")
    rows = []
    for m in found:
        row = (
            m.arm,
            *(_text(m, name) for name in names),
            words.share(*m.wrong_refusals),
            words.share(*m.right_refusals),
        )
        rows.append((*row, words.share(*(m.format_failures or (0, 0)))) if failures else row)
    return by_arm(verdict.task, (*columns, "Format failures") if failures else columns, rows, verdict)


def grounding_tables(data: ReportData) -> list[Table]:
    """Where the citations of arms that were given passages point: one table for each task with evidence."""
    columns = ("Arm", *map(words.heading, GROUNDING), "Right answers, wrong citation")
    found = []
    for verdict in data.verdicts:
        cited = [m for m in measures(data, verdict) if "citation_recall" in m.means]
        rows = [(m.arm, *(_text(m, name) for name in GROUNDING), words.share(*m.wrong_citations)) for m in cited]
        if rows:
            found.append(by_arm(verdict.task, columns, rows, verdict))
    return found


def _text(measured: Measures, name: str) -> str:
    mean = measured.means.get(name)
    return words.MISSING if mean is None or mean.value is None else f"{mean.value:.2f} ({mean.n})"
