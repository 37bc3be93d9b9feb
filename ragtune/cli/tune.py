"""`ragtune tune`: train an adapter."""

from __future__ import annotations

from pathlib import Path

import click

from ragtune.cli.output import config_option, json_option, out, print_json, warn, watching
from ragtune.config import load_config


@click.command("tune")
@config_option
@click.option(
    "--arm",
    type=click.Choice(["raft", "tune"]),
    default="raft",
    show_default=True,
    help="raft trains with retrieved passages, tune without.",
)
@click.option("--task", "tasks", multiple=True, help="Only this task; may be given several times.")
@click.option("--method", help="auto, or a name that `ragtune methods` lists.")
@click.option("--epochs", type=float, help="Passes over the training rows.")
@click.option("--learning-rate", type=float, help="Peak learning rate.")
@click.option("--max-rows-per-task", type=int, help="Training questions taken from each task.")
@click.option("--rows", "rows_file", type=click.Path(path_type=Path), help="Train on exactly the rows of this file.")
@click.option("--force", is_flag=True, help="Start even if memory is predicted not to suffice.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run, if there is one.")
@json_option
def command(
    config_path: Path,
    arm: str,
    tasks: tuple[str, ...],
    method: str | None,
    epochs: float | None,
    learning_rate: float | None,
    max_rows_per_task: int | None,
    rows_file: Path | None,
    force: bool,
    resume: bool,
    as_json: bool,
) -> None:
    """Train an adapter on the train questions of all tasks, into adapters/NAME/ARM.

    Rows with passages hold hard negatives from the index that will serve. Rows are linted first; the loss is taken
    on answers alone.

    \b
    Examples:
      ragtune tune                        (the raft arm: learns to read passages)
      ragtune tune --arm tune             (closed book)
      ragtune tune --method qlora --epochs 2 --resume
    """
    from ragtune import pipeline

    overrides = {
        "tune.method": method,
        "tune.epochs": epochs,
        "tune.learning_rate": learning_rate,
        "tune.max_rows_per_task": max_rows_per_task,
    }
    project = load_config(config_path, overrides)
    with watching() as watch:
        result = pipeline.tune(project, arm, tasks, resume, watch, rows_file, force)
    for finding in result.findings[:5]:
        warn(f"{finding.check}: {finding.question_id}: {finding.message}")
    if len(result.findings) > 5:
        warn(f"and {len(result.findings) - 5} more lint findings")
    if as_json:
        print_json(
            {
                "adapter": str(result.folder),
                "rows": result.rows,
                "losses": list(result.losses),
                "method": result.why_method,
                "findings": [f.message for f in result.findings],
                "reused": result.reused,
            }
        )
        return
    state = "is up to date" if result.reused else "written"
    last = result.losses[-10:]
    loss = f", loss {result.losses[0]:.2f} -> {sum(last) / len(last):.2f}" if last else ""
    out().print(f"{result.folder} {state}: {result.rows} rows, method {result.why_method}{loss}", markup=False)
