"""`ragtune evaluate`: every arm on the same questions, and a verdict per task."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ragtune.cli.output import config_option, json_option, out, print_json, watching
from ragtune.config import load_config
from ragtune.types import Verdict


@click.command("evaluate")
@config_option
@click.option("--task", "tasks", multiple=True, help="Only this task; may be given several times.")
@click.option("--arm", "arms", multiple=True, help="Only this arm; may be given several times.")
@click.option("--questions", type=int, help="Test questions taken from each task.")
@click.option("--margin", type=float, help="A cheaper arm this close to the best is as good.")
@json_option
def command(
    config_path: Path,
    tasks: tuple[str, ...],
    arms: tuple[str, ...],
    questions: int | None,
    margin: float | None,
    as_json: bool,
) -> None:
    """Answer the test questions with every arm, and say per task which one to use.

    Answers are kept as they come: a run that is stopped goes on where it was.

    \b
    Examples:
      ragtune evaluate
      ragtune evaluate --task facts --arm retrieve --arm raft --questions 100
    """
    from ragtune import pipeline

    overrides = {"evaluate.arms": arms or None, "evaluate.questions_per_task": questions, "evaluate.margin": margin}
    project = load_config(config_path, overrides)
    with watching() as watch:
        run = pipeline.evaluate(project, tasks, watch)
    if as_json:
        print_json({"run": str(run.folder), "reused": run.reused, "verdicts": [asdict(v) for v in run.verdicts]})
        return
    _print_verdicts(run.verdicts)
    out().print(
        f"{run.folder} {'is up to date' if run.reused else 'written'}: {len(run.rows)} answers; next: ragtune report"
    )


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
