"""The tables of a report as rows of text, the same for HTML and Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ragtune.evaluator.report import words
from ragtune.evaluator.report.data import ReportData, TaskFacts
from ragtune.types import ArmSummary, Row, Verdict

YES_NO = {True: "yes", False: "no"}


@dataclass(frozen=True, slots=True)
class Table:
    """`columns[0]` heads the names of the rows. `marks` says which row is "chosen", "reference" or neither ("")."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Measures:
    """One arm's further measures on one task, over all questions that it answered.

    `means` are over the questions that have the measure, None where none has. `format_failures` are (count, of how
    many), None where the task's format can't fail.
    """

    arm: str
    means: dict[str, float | None]
    wrong_refusals: tuple[int, int]
    right_refusals: tuple[int, int]
    format_failures: tuple[int, int] | None


def pareto_front(verdict: Verdict) -> tuple[ArmSummary, ...]:
    """The arms that no arm of the same or a lower cost beats, cheapest first; reference arms left out."""
    front: list[ArmSummary] = []
    racing = (s for s in verdict.arms if not s.reference)
    for summary in sorted(racing, key=lambda s: (s.cost, -s.score.mean)):
        if not front or summary.score.mean > front[-1].score.mean:
            front.append(summary)
    return tuple(front)


def arms_table(data: ReportData, verdict: Verdict) -> Table:
    """Every arm on one task: how good, how dear, how fast."""
    columns = (
        "Arm",
        "Score (interval)",
        "Questions",
        f"Cost ({data.currency})",
        "Seconds, median",
        "95th percentile",
        "Prompt tokens",
        "Output tokens",
    )
    rows = [
        (
            s.arm,
            words.interval(s.score),
            f"{s.n} ({s.unscored} unscored)" if s.unscored else str(s.n),
            words.two_digits(s.cost),
            words.two_digits(s.seconds_p50),
            words.two_digits(s.seconds_p95),
            f"{s.prompt_tokens:.0f}",
            f"{s.output_tokens:.0f}",
        )
        for s in verdict.arms
    ]
    return _by_arm(verdict.task, columns, rows, verdict)


def scores_table(verdict: Verdict) -> Table:
    """What stands behind the picture of scores."""
    rows = [
        (s.arm, words.interval(s.score), YES_NO[s.in_best_set] if not s.reference else "reference")
        for s in verdict.arms
    ]
    return _by_arm(verdict.task, ("Arm", "Score (interval)", "May be the best"), rows, verdict)


def cost_table(data: ReportData, verdict: Verdict) -> Table:
    """What stands behind the picture of cost against quality."""
    front = {s.arm for s in pareto_front(verdict)}
    ordered = sorted(verdict.arms, key=lambda s: s.cost)
    rows = [
        (
            s.arm,
            words.two_digits(s.cost),
            words.mean(s.score),
            YES_NO[s.arm in front] if not s.reference else "reference",
        )
        for s in ordered
    ]
    columns = ("Arm", f"Cost ({data.currency})", "Score", "Best for its cost")
    return _by_arm(verdict.task, columns, rows, verdict)


def comparisons_table(verdict: Verdict) -> Table:
    """The chosen arm against each other arm."""
    rows = [
        (
            c.b if c.a == verdict.arm else f"{c.b} (against {c.a})",
            words.interval(c.difference, signed=True),
            words.p_value(c.p_value),
            str(c.wins),
            str(c.ties),
            str(c.losses),
        )
        for c in verdict.comparisons
    ]
    columns = ("Against", "Difference (interval)", "p, corrected", "Won", "Tied", "Lost")
    return _by_arm(f"{verdict.task}: {verdict.arm} against each other arm", columns, rows, verdict)


def measures_table(data: ReportData, verdict: Verdict) -> Table:
    """Means of the further measures, refusals and format failures."""
    found = measures(data, verdict)
    names = list(dict.fromkeys(name for m in found for name in m.means))
    failures = any(m.format_failures for m in found)
    columns = ("Arm", *map(words.heading, names), "Refused though answerable", "Refused rightly")
    rows = []
    for m in found:
        means = [words.MISSING if m.means.get(name) is None else f"{m.means[name]:.2f}" for name in names]
        row = (m.arm, *means, words.share(*m.wrong_refusals), words.share(*m.right_refusals))
        rows.append((*row, words.share(*(m.format_failures or (0, 0)))) if failures else row)
    return _by_arm(verdict.task, (*columns, "Format failures") if failures else columns, rows, verdict)


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
        _format_failures(data, facts, rows),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _format_failures(data: ReportData, facts: TaskFacts, rows: Sequence[Row]) -> tuple[int, int] | None:
    """Answers that are not one JSON object, or free texts that are none of the task's labels."""
    if facts.format == "json":
        valid = [row.scores["valid_json"] for row in rows if row.scores.get("valid_json") is not None]
        return sum(value == 0 for value in valid), len(valid)
    if facts.format == "label":
        # with its labels as the only choice an arm always answers one of them, so both sides name labels
        labels = {_fold(a) for q in data.questions.values() if q.task == facts.name for a in q.answers}
        labels |= {_fold(row.text) for row in data.rows if row.task == facts.name and not row.refused}
        free = [_fold(row.free_text) for row in rows if row.free_text is not None]
        return sum(text not in labels for text in free), len(free)
    return None


def _fold(text: str) -> str:
    return text.strip().casefold()


def tasks_table(data: ReportData) -> Table:
    """What each task asked, of how many questions, and what they can show."""
    rows = []
    for verdict in data.verdicts:
        facts = data.task(verdict.task)
        rows.append(
            (
                facts.name,
                facts.format,
                words.plain(facts.metric),
                str(facts.n_test),
                str(facts.n_unanswerable),
                words.two_digits(verdict.smallest_difference),
                words.MISSING
                if verdict.questions_needed is None
                else f"about {words.two_digits_up(verdict.questions_needed)}",
            )
        )
    columns = (
        "Task",
        "Answers",
        "Metric",
        "Test questions",
        "Unanswerable",
        "Detectable difference",
        "Questions needed",
    )
    return Table("Tasks", columns, tuple(rows), ("",) * len(rows))


def _by_arm(caption: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]], verdict: Verdict) -> Table:
    reference = {s.arm for s in verdict.arms if s.reference}
    marks = ("chosen" if row[0] == verdict.arm else "reference" if row[0] in reference else "" for row in rows)
    return Table(caption, tuple(columns), tuple(rows), tuple(marks))
