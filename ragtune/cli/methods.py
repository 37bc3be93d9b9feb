"""`ragtune methods`: the ways of tuning, one after the other."""

from __future__ import annotations

from dataclasses import asdict
from textwrap import fill

import click

from ragtune.cli.output import json_option, out, print_json


@click.command("methods")
@json_option
def command(as_json: bool) -> None:
    """List the methods of tuning: what each trains, what it is good for, and the paper it comes from.

    The bytes are what training keeps in memory for each weight of the base model, in bf16.

    Prompting is an arm, not a method, and instruction tuning is a kind of data that any method can train on.

    \b
    Examples:
      ragtune methods
      ragtune tune --method ia3           (or method = "ia3" below [tune])
    """
    from ragtune.generator.methods import METHODS

    if as_json:
        print_json([asdict(method) for method in METHODS.values()])
        return
    console = out()
    for m in METHODS.values():
        console.print(f"[bold]{m.name}[/bold]  {m.paper}", highlight=False)
        for line in (
            f"{m.summary}; good for {m.good_for}",
            f"trains {m.trains}; keeps {m.weight_bytes:g} bytes for each weight of the base",
        ):
            wrapped = fill(line, console.width, initial_indent="    ", subsequent_indent="      ")
            console.print(wrapped, markup=False, highlight=False)
