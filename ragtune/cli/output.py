"""What the commands share in talking: one console each for results and for progress, and the --config option."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

    from ragtune.generator.train import Progress
    from ragtune.pipeline import Watch

Command = TypeVar("Command", bound=Callable[..., Any])


@cache
def out() -> Console:
    """Results, to standard output. Colours only on a terminal, and none with NO_COLOR."""
    return _console()


@cache
def err() -> Console:
    """Progress and warnings, to standard error."""
    return _console(stderr=True)


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    # Left to itself rich turns `:key:` into a picture, and with NO_COLOR it still writes bold and dim.
    colours: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    return Console(stderr=stderr, color_system=colours, highlight=False, soft_wrap=True, emoji=False)


def fail(message: str) -> None:
    """One line on standard error."""
    err().print("[red]error:[/red]", end=" ")
    err().print(_one_line(message), markup=False)


def warn(message: str) -> None:
    """One warning line on standard error."""
    err().print("[yellow]warning:[/yellow]", end=" ")
    err().print(_one_line(message), markup=False)


def _one_line(message: str) -> str:
    """Names of files may hold anything."""
    return " ".join(message.splitlines())


def say(message: str) -> None:
    """One line of what is being done, on standard error."""
    err().print(message, style="dim", markup=False)


def print_json(value: object) -> None:
    """One JSON object on standard output."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def config_option(function: Command) -> Command:
    """`--config`, which every project command takes."""
    return click.option(
        "-c",
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        default=Path("ragtune.toml"),
        show_default=True,
        help="A ragtune.toml, or the folder that holds one.",
    )(function)


def json_option(function: Command) -> Command:
    """`--json`: results for machines."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")(function)


@contextmanager
def watching() -> Iterator[Watch]:
    """A Watch that shows progress bars on a terminal, and a line every so often when piped."""
    from ragtune.pipeline import Watch

    if not err().is_terminal:
        yield Watch(say=say, progress=_Lines().progress, training=_Lines().training)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err(), transient=True) as bars:
        yield Watch(say=say, progress=_Bars(bars).progress, training=_Bars(bars).training)


class _Bars:
    """One rich bar at a time."""

    def __init__(self, bars: Any) -> None:
        self.bars = bars
        self.tasks: dict[str, Any] = {}

    def progress(self, what: str, done: int, total: int) -> None:
        if what not in self.tasks:
            for task in self.tasks.values():
                self.bars.remove_task(task)
            self.tasks = {what: self.bars.add_task(what, total=total)}
        self.bars.update(self.tasks[what], completed=done, total=total)

    def training(self, step: Progress) -> None:
        if "training" not in self.tasks:
            self.tasks["training"] = self.bars.add_task("training", total=step.steps)
        self.bars.update(
            self.tasks["training"],
            completed=step.step,
            description=f"training  loss {step.loss:.2f}  {_rate(step)}",
        )


class _Lines:
    """Progress without a terminal: a line when something ends, and for training every tenth of the way."""

    def __init__(self) -> None:
        self.tenth = -1

    def progress(self, what: str, done: int, total: int) -> None:
        if done == total:
            say(f"{what}: {done}/{total}")

    def training(self, step: Progress) -> None:
        tenth = 10 * step.step // max(1, step.steps)
        if tenth != self.tenth:
            self.tenth = tenth
            left = step.seconds / max(1, step.step) * (step.steps - step.step)
            say(f"step {step.step}/{step.steps}: loss {step.loss:.2f}, {_rate(step)}, {left:.0f} s left")


def _rate(step: Progress) -> str:
    return f"{step.tokens / max(step.seconds, 1e-9):.0f} tokens/s"
