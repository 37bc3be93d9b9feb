"""The tables of a report as rows of text, the same for HTML and Markdown: scores, comparisons and tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ragtune.evaluator.report import words
from ragtune.evaluator.report.data import ReportData
from ragtune.types import ArmSummary, Verdict

YES_NO = {True: "yes", False: "no"}


@dataclass(frozen=True, slots=True)
class Table:
    """`columns[0]` heads the names of the rows. `marks` says which row is "chosen", "reference" or neither ("")."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marks: tuple[str, ...]


def unmarked(caption: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Table:
    """A table whose rows are not arms."""
    return Table(caption, tuple(columns), tuple(rows), ("",) * len(rows))


def by_arm(caption: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]], verdict: Verdict) -> Table:
    """A table with one arm a row."""
    reference = {s.arm for s in verdict.arms if s.reference}
    marks = ("chosen" if row[0] == verdict.arm else "reference" if row[0] in reference else "" for row in rows)
    return Table(caption, tuple(columns), tuple(rows), tuple(marks))


def arms_table(data: ReportData, verdict: Verdict) -> Table:
    """Every arm on one task: how good, how sure, how dear."""
    columns = (
        "Arm",
        "Score (interval)",
        "Questions",
        "May be the best",
        "Best with probability",
        f"Cost ({data.currency})",
    )
    rows = [
        (
            s.arm,
            words.interval(s.score),
            words.questions_scored(s),
            _may_be_best(s),
            words.MISSING if s.reference or s.dropped_after is not None else words.probability(s.probability_best),
            words.two_digits(s.cost),
        )
        for s in verdict.arms
    ]
    return by_arm(verdict.task, columns, rows, verdict)


def scores_table(verdict: Verdict) -> Table:
    """What stands behind the picture of scores."""
    rows = [(s.arm, words.interval(s.score), words.questions_scored(s), _may_be_best(s)) for s in verdict.arms]
    return by_arm(verdict.task, ("Arm", "Score (interval)", "Questions", "May be the best"), rows, verdict)


def _may_be_best(s: ArmSummary) -> str:
    return "reference" if s.reference else YES_NO[s.in_best_set]


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
    return by_arm(f"{verdict.task}: {verdict.arm} against each other arm", columns, rows, verdict)


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
                str(data.asked(facts.name)),
                str(facts.n_unanswerable),
                words.two_digits(verdict.smallest_difference),
                words.MISSING if verdict.questions_needed is None else f"about {words.many(verdict.questions_needed)}",
            )
        )
    columns = (
        "Task",
        "Answers",
        "Metric",
        "Test questions",
        "Asked",
        "Unanswerable",
        "Detectable difference",
        "Questions needed",
    )
    return unmarked("Tasks", columns, rows)
