"""`ragtune methods`: the ways of tuning, side by side."""

from __future__ import annotations

from dataclasses import asdict

import click

from ragtune.cli.output import json_option, out, print_json


@click.command("methods")
@json_option
def command(as_json: bool) -> None:
    """List the methods of tuning: what each trains, what it is good for, and the paper it comes from.

    "Bytes a weight" is what training keeps in memory for each weight of the base model, in bf16.

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
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False, expand=True)
    for column in ("method", "trains", "parameters", "bytes a weight", "good for", "paper"):
        table.add_column(column, no_wrap=column == "method")
    for m in METHODS.values():
        table.add_row(m.name, m.summary, m.trains, f"{m.weight_bytes:g}", m.good_for, m.paper)
    out().print(table, soft_wrap=False)
