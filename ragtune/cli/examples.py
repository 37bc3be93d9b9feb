"""`ragtune examples`: the training rows, to look at, to edit, to take elsewhere."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ragtune.cli.output import config_option, json_option, out, print_json, watching
from ragtune.config import ProjectConfig, load_config

if TYPE_CHECKING:
    from ragtune.generator.chat_formats import RowFormat
    from ragtune.generator.examples import TrainingRow

arm_option = click.option(
    "--arm",
    type=click.Choice(["raft", "tune"]),
    default="raft",
    show_default=True,
    help="Rows with retrieved passages (raft) or without (tune).",
)
task_option = click.option("--task", "tasks", multiple=True, help="Only this task; may be given several times.")


@click.command("examples")
@config_option
@arm_option
@task_option
@click.option("--rows", "rows_file", type=click.Path(path_type=Path), help="Take the rows of this file instead.")
@click.option(
    "--format",
    type=click.Choice(["ragtune", "openai", "alpaca", "sharegpt"]),
    default="ragtune",
    show_default=True,
    help="How to write rows.",
)
@click.option("-o", "--out", "target", type=click.Path(path_type=Path), help="File to write.")
@click.option("--show", type=click.IntRange(min=0), default=0, metavar="N", help="Print N rows, spread over the file.")
@json_option
def command(
    config_path: Path,
    arm: str,
    tasks: tuple[str, ...],
    rows_file: Path | None,
    format: RowFormat,
    target: Path | None,
    show: int,
    as_json: bool,
) -> None:
    """Write the training rows that `ragtune tune` trains on, one JSON object a line.

    By default into adapters/NAME/ARM.rows.jsonl, or ARM.FORMAT.jsonl for another format. Rows that were edited are
    trained on with `ragtune tune --rows FILE`. Only the format ragtune keeps where passages came from.

    \b
    Examples:
      ragtune examples --show 3
      ragtune examples --arm tune --format openai --out train.jsonl
      ragtune examples --rows alpaca.json --format sharegpt --out chats.jsonl
    """
    from ragtune import pipeline
    from ragtune.generator.chat_formats import write_rows

    project = load_config(config_path)
    with watching() as watch:
        built = pipeline.examples(project, arm, tasks, rows_file, watch)
    target = target or _default_target(project, arm, format)
    write_rows(target, built.rows, format)
    kinds = Counter(row.kind for row in built.rows)
    if as_json:
        left_out = [{"task": q.task, "question": q.question_id, "reason": q.reason} for q in built.left_out]
        counts = {"rows": len(built.rows), "kinds": dict(kinds), "shortened": built.shortened, "left_out": left_out}
        print_json({"file": str(target), "format": format, **counts})
        return
    for i in range(min(show, len(built.rows))):
        number = i * len(built.rows) // min(show, len(built.rows))
        _print_row(number + 1, built.rows[number])
    shares = ", ".join(f"{count} {kind} ({count / len(built.rows):.0%})" for kind, count in kinds.items())
    out().print(f"{target} written: {len(built.rows)} rows: {shares}", markup=False)


def _default_target(project: ProjectConfig, arm: str, format: RowFormat) -> Path:
    return project.place("adapters") / f"{arm}.{'rows' if format == 'ragtune' else format}.jsonl"


def _print_row(number: int, row: TrainingRow) -> None:
    out().print(f"row {number}: {row.task}/{row.question_id}, {row.kind}", style="bold", markup=False)
    for message in row.messages:
        _print_part(message.role, message.content)
    _print_part("target", row.target)
    scores = row.distractor_scores or (None,) * len(row.distractor_ranks)
    ranked = iter(zip(row.distractor_ranks, scores, strict=True))
    for place, passage in enumerate(row.passage_ids):
        rank, score = (None, None) if place in row.gold else next(ranked, (None, None))
        shown = "gold" if place in row.gold else f"rank {rank}" + (f", score {score:.4f}" if score is not None else "")
        _print_part(f"[{place + 1}]", f"{passage} ({shown})")
    out().print()


def _print_part(name: str, text: str) -> None:
    first, *rest = text.splitlines() or [""]
    out().print(f"  {name:<10}{first}", markup=False)
    for line in rest:
        out().print(f"  {'':<10}{line}", markup=False)
