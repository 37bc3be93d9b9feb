"""`ragtune synth`: questions from documents alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragtune.cli.output import config_option, json_option, out, print_json, watching
from ragtune.config import load_config

if TYPE_CHECKING:
    from ragtune.synthesis.files import Synthesised

_SHOWN = 3
_STRATEGIES = ("answer-first", "free")
_FILTERS = ("answerable", "round-trip")


def _read_shares(context: click.Context, parameter: click.Parameter, value: str) -> tuple[float, ...]:
    try:
        train, dev, test = (float(part) for part in value.split(":"))
    except ValueError:
        raise click.BadParameter(f"{value!r}: expected TRAIN:DEV:TEST, such as 70:10:20") from None
    return train, dev, test


@click.command("synth")
@config_option
@click.option("--name", default="synthetic", show_default=True, help="Name of the task.")
@click.option(
    "--generator", default="", metavar="NAME", help="Who writes: a section [generators.NAME]; else the project's model."
)
@click.option("--questions", type=click.IntRange(min=1), default=100, show_default=True, help="Keep at most so many.")
@click.option(
    "--per-passage", type=click.IntRange(min=1), default=1, show_default=True, help="Asked for of one passage."
)
@click.option(
    "--shares",
    default="70:10:20",
    show_default=True,
    callback=_read_shares,
    metavar="TRAIN:DEV:TEST",
    help="Sizes of the splits.",
)
@click.option(
    "--strategy",
    type=click.Choice(_STRATEGIES),
    default="answer-first",
    show_default=True,
    help="Who chooses the answer: a rule, or the model.",
)
@click.option(
    "--filter",
    "filters",
    multiple=True,
    type=click.Choice(_FILTERS),
    help="The model's own judgement that a pair must pass; may be given twice.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=17, show_default=True, help="Of passages, answers and splits."
)
@click.option("--add", is_flag=True, help="Add the task to ragtune.toml.")
@click.option("--force", is_flag=True, help="Replace what an earlier synth wrote.")
@click.option(
    "--keep-rejected", type=click.Path(path_type=Path), metavar="FILE", help="Write what was left out, with reasons."
)
@json_option
def command(
    config_path: Path, add: bool, force: bool, keep_rejected: Path | None, as_json: bool, **choices: Any
) -> None:
    """Write questions and answers from the documents alone, into tasks/NAME.jsonl.

    Each answer stands in its passage, word for word. Questions that repeat each other, or those of other tasks, are
    left out. Read some before you trust them: a small model writes poor ones.

    \b
    Examples:
      ragtune synth --add
      ragtune synth --generator big --strategy free --per-passage 3 --questions 500
      ragtune synth --filter round-trip --keep-rejected rejected.jsonl
    """
    from ragtune import pipeline
    from ragtune.synthesis.files import Output
    from ragtune.synthesis.questions import SynthOptions

    with watching() as watch:
        made = pipeline.synth(
            load_config(config_path), SynthOptions(**choices), Output(add, force, keep_rejected), watch
        )
    if as_json:
        print_json(
            {
                "task": made.task,
                "file": str(made.file),
                "questions": made.questions,
                "replies": made.replies,
                "rejected": dict(made.reasons),
                "split_by": made.split_by,
                "shared_documents": made.shared_documents,
                "section": made.section,
            }
        )
    else:
        _print(made, config_path)


def _print(made: Synthesised, config_path: Path) -> None:
    from ragtune.corpus.screen import REASONS

    counts = ", ".join(f"{count} {split}" for split, count in made.questions.items())
    out().print(f"{made.file}: {counts}; split {made.split_by}", markup=False)
    if made.shared_documents:
        out().print(
            f"{made.shared_documents} documents are evidence in more than one split (the task needs shared_documents)",
            style="yellow",
            markup=False,
        )
    out().print(
        f"{made.replies} replies, {len(made.kept)} pairs kept, {sum(made.reasons.values())} left out:", markup=False
    )
    for reason, count in made.reasons.items():
        out().print(f"{count:>6}  {reason:<15}{REASONS[reason]}", markup=False)
    for question in made.kept[:: max(1, len(made.kept) // _SHOWN)][:_SHOWN]:
        out().print(f"  {question.text}  ->  {question.answers[0]}", style="dim", markup=False)
    if made.section:
        out().print("Add this to ragtune.toml:\n", style="cyan", markup=False)
        out().print(made.section, markup=False)
    out().print(f"Next: read some of them, then ragtune check --config {config_path}", style="cyan", markup=False)
