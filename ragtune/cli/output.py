"""What the commands share in talking: one console each for results and for progress, and the --config option."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

    from ragtune.generator.train import Progress
    from ragtune.pipeline import Watch
    from ragtune.rounds import Contest

Command = TypeVar("Command", bound=Callable[..., Any])
_WORTH_A_LINE = 2.0  # seconds


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
    """A Watch that shows progress bars and standings on a terminal, and a line every so often when piped."""
    from ragtune.pipeline import Watch

    if not err().is_terminal:
        lines = _Lines()
        yield Watch(say=say, progress=lines.progress, training=lines.training, standings=lines.standings)
        return
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = _Bars(Progress(*columns, console=err()))
    with Live(get_renderable=bars.shown, console=err(), transient=True, refresh_per_second=4):
        yield Watch(say=say, progress=bars.progress, training=bars.training, standings=bars.standings)


class _Bars:
    """The standings so far, how many of at most so many answers are given, and the bar of what is being done."""

    def __init__(self, bars: Any) -> None:
        self.bars = bars
        self.tasks: dict[str, Any] = {}
        self.contests: Sequence[Contest] = ()
        self.answers: Any = None

    def shown(self) -> Any:
        from rich.console import Group

        return Group(standings_table(self.contests), self.bars) if self.contests else self.bars

    def standings(self, contests: Sequence[Contest]) -> None:
        from ragtune.rounds import generations

        self.contests = contests
        asked, in_full = generations(contests)
        if self.answers is None:
            self.answers = self.bars.add_task("answers, at most", total=in_full)
        self.bars.update(self.answers, completed=asked)

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


def standings_table(contests: Sequence[Contest]) -> Any:
    """Arms x tasks: mean score so far and half its 95 % interval (normal approximation); grey once dropped."""
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("arm")
    for contest in contests:
        table.add_column(f"{contest.task} {contest.asked}/{len(contest.questions)}", justify="right")
    cells = [{name: (mean, half) for name, mean, half in contest.means()} for contest in contests]
    for name in dict.fromkeys(arm.name for contest in contests for arm in contest.arms):
        row = []
        for contest, known in zip(contests, cells, strict=True):
            shown = f"{known[name][0]:.2f} ±{known[name][1]:.2f}" if name in known else ""
            row.append(f"[dim]{shown} out[/dim]" if name in contest.dropped else shown)
        table.add_row(name, *row)
    return table


class _Lines:
    """Progress without a terminal: a line after what took long, after each round, and at each tenth of training."""

    def __init__(self) -> None:
        self.tenth = -1
        self.asked: dict[str, int] = {}
        self.begun: dict[str, float] = {}

    def progress(self, what: str, done: int, total: int) -> None:
        began = self.begun.setdefault(what, time.monotonic())
        if done == total and time.monotonic() - began > _WORTH_A_LINE:
            say(f"{what}: {done}/{total}")

    def standings(self, contests: Sequence[Contest]) -> None:
        for contest in contests:
            if contest.asked > self.asked.get(contest.task, 0):
                self.asked[contest.task] = contest.asked
                means = ", ".join(f"{name} {mean:.2f}" for name, mean, _ in contest.means())
                out = f"; dropped: {', '.join(contest.dropped)}" if contest.dropped else ""
                say(f"{contest.task} after {contest.asked} of {len(contest.questions)} questions: {means}{out}")

    def training(self, step: Progress) -> None:
        tenth = 10 * step.step // max(1, step.steps)
        if tenth != self.tenth:
            self.tenth = tenth
            left = step.seconds / max(1, step.step) * (step.steps - step.step)
            say(f"step {step.step}/{step.steps}: loss {step.loss:.2f}, {_rate(step)}, {left:.0f} s left")


def _rate(step: Progress) -> str:
    return f"{step.tokens / max(step.seconds, 1e-9):.0f} tokens/s"
