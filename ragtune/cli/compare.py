"""`ragtune compare`: has a change made answers better or worse?"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragtune.cli.output import json_option, out, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from ragtune.evaluator.regression import Change, RunComparison

_SHORT = {"no difference shown": "not shown", "too few common questions": "too few"}
FAIL_ON_REGRESSION = "Exit with 1 when the answers of some task are shown to be worse than in the baseline."


@click.command("compare")
@click.argument("baseline", type=click.Path(path_type=Path))
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--fail-on-regression", is_flag=True, help=FAIL_ON_REGRESSION)
@json_option
def command(baseline: Path, run: Path, fail_on_regression: bool, as_json: bool) -> None:
    """Compare the run folder RUN with the folder BASELINE, on the questions that are the same in both.

    For each task the arm of the old verdict is tested against the arm of the new one, and every arm against itself.
    Without --fail-on-regression the exit code is 0 whatever is found.

    \b
    Examples:
      ragtune compare baseline runs/handbook
      ragtune compare baseline runs/handbook --fail-on-regression
    """
    from ragtune import pipeline

    comparison = pipeline.compare(baseline, run)
    if as_json:
        print_json({"baseline": str(baseline), "run": str(run), **comparison_json(comparison)})
    else:
        print_comparison(comparison)
    sys.exit(1 if fail_on_regression and comparison.regressions else 0)


def comparison_json(comparison: RunComparison) -> dict[str, Any]:
    """A comparison as JSON, the derived values included."""
    return {
        "regressions": comparison.regressions,
        "tasks": [
            asdict(change) | {"verdict": _line(change.verdict), "arms": [_line(arm) for arm in change.arms]}
            for change in comparison.tasks
        ],
        "skipped": comparison.skipped,
        "families": comparison.families,
    }


def _line(change: Change) -> dict[str, Any]:
    return asdict(change) | {"n": change.n, "status": change.status}


def print_comparison(comparison: RunComparison) -> None:
    """A table of what a user gets and of the arms that changed, and one sentence for each task."""
    from ragtune.evaluator.regression import sentence

    out().print(_table(comparison))
    for change in comparison.tasks:
        out().print(sentence(change), markup=False)
    for name, reason in comparison.skipped.items():
        out().print(f"{name}: not compared; {reason}.", markup=False)
    tests = comparison.families
    out().print(
        f"p-values are Holm-corrected over {tests['verdicts']} verdicts and, apart from them, {tests['arms']} arms.",
        style="dim",
    )
    worse = ", ".join(comparison.regressions)
    out().print(f"Shown to be worse than in the baseline: {worse or 'no task'}.", markup=False)


def _table(comparison: RunComparison) -> Table:
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    for heading in ("task", "arm", "difference", "p", "w/t/l", "result"):
        table.add_column(heading, no_wrap=heading not in ("task", "arm"), overflow="fold")
    for change in comparison.tasks:
        table.add_row(*_cells(change.task, "verdict's", change.verdict), style="bold")
        for line in change.arms:
            if line.status not in _SHORT:
                table.add_row(*_cells("", line.after, line))
        for status, count in Counter(line.status for line in change.arms if line.status in _SHORT).items():
            table.add_row("", f"{count} arm{'s' if count > 1 else ''}", "", "", "", _SHORT[status])
    return table


def _cells(task: str, arm: str, line: Change) -> tuple[str, ...]:
    from rich.markup import escape

    from ragtune.evaluator.report import words

    p_value = words.MISSING if line.p_value is None else words.p_value(line.p_value)
    counts = f"{line.wins}/{line.ties}/{line.losses}"
    status = _SHORT.get(line.status, line.status)
    return escape(task), arm, words.interval(line.difference, signed=True), p_value, counts, status
