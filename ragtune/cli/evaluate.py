"""`ragtune evaluate`: every arm on the same questions, and a verdict per task."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from ragtune.cli.compare import FAIL_ON_REGRESSION, comparison_json, print_comparison
from ragtune.cli.output import config_option, json_option, out, print_json, watching
from ragtune.config import load_config
from ragtune.errors import InputError
from ragtune.types import Verdict


@click.command("evaluate")
@config_option
@click.option("--task", "tasks", multiple=True, help="Only this task; may be given several times.")
@click.option("--arm", "arms", multiple=True, help="Only this arm; may be given several times.")
@click.option("--questions", type=int, help="Test questions taken from each task.")
@click.option("--budget", help="Begin no new round after this time, e.g. 90s, 10m or 2h.")
@click.option("--max-questions", type=click.IntRange(min=1), help="Test questions of all tasks together.")
@click.option("--margin", type=float, help="A cheaper arm this close to the best is as good.")
@click.option("--baseline", type=click.Path(path_type=Path), help="A finished run's folder to compare with.")
@click.option("--fail-on-regression", is_flag=True, help=FAIL_ON_REGRESSION)
@json_option
def command(
    config_path: Path,
    tasks: tuple[str, ...],
    arms: tuple[str, ...],
    questions: int | None,
    budget: str | None,
    max_questions: int | None,
    margin: float | None,
    baseline: Path | None,
    fail_on_regression: bool,
    as_json: bool,
) -> None:
    """Answer the test questions with every arm, and say per task which one to use.

    Arms answer in rounds, and an arm that is shown worse early answers no more. Answers are kept as they come: a run
    that is stopped goes on where it was. With --budget or --max-questions they are spent where two arms are closest to
    being told apart.

    \b
    Examples:
      ragtune evaluate
      ragtune evaluate --budget 10m
      ragtune evaluate --task facts --arm retrieve --arm raft --questions 100
      ragtune evaluate --baseline baseline --fail-on-regression
    """
    from ragtune import pipeline
    from ragtune.evaluator.regression import compare_runs, load_results

    if fail_on_regression and baseline is None:
        raise InputError("--fail-on-regression needs a run to compare with; add --baseline RUN")
    before = load_results(baseline) if baseline else None  # now, for it may be the folder that is written
    overrides = {"evaluate.arms": arms or None, "evaluate.questions_per_task": questions, "evaluate.margin": margin}
    project = load_config(config_path, overrides)
    with watching() as watch:
        run = pipeline.evaluate(project, tasks, watch, seconds(budget) if budget else None, max_questions)
    comparison = compare_runs(before, load_results(run.folder)) if before else None
    if as_json:
        verdicts = [asdict(v) for v in run.verdicts]
        compared = comparison_json(comparison) if comparison else None
        print_json({"run": str(run.folder), "reused": run.reused, "verdicts": verdicts, "comparison": compared})
    else:
        _print_verdicts(run.verdicts)
        state = "is up to date" if run.reused else "written"
        out().print(f"{run.folder} {state}: {len(run.rows)} answers; next: ragtune report")
        if comparison:
            print_comparison(comparison)
    sys.exit(1 if fail_on_regression and comparison and comparison.regressions else 0)


_UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(text: str) -> float:
    """`90s`, `10m` or `2h` in seconds.

    Raises: InputError for anything else.
    """
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not number.replace(".", "", 1).isdigit():
        raise InputError(f"--budget {text!r} is no time; expected a number and s, m or h, e.g. 90s or 10m")
    return float(number) * _UNITS[unit]


def _print_verdicts(verdicts: tuple[Verdict, ...]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    for heading in ("task", "use", "score", "verdict", "why"):
        table.add_column(heading, no_wrap=heading != "why")
    for verdict in verdicts:
        score = verdict.summary(verdict.arm).score
        table.add_row(
            escape(verdict.task),
            f"[bold]{verdict.arm}[/bold]",
            f"{score.mean:.2f} ({score.low:.2f}-{score.high:.2f})",
            verdict.status,
            escape(verdict.reason),
        )
    out().print(table)
