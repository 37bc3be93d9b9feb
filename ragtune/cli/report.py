"""`ragtune report`: the decision as a page to read."""

from __future__ import annotations

from pathlib import Path

import click

from ragtune.cli.output import config_option, json_option, out, print_json
from ragtune.config import load_config


@click.command("report")
@config_option
@json_option
def command(config_path: Path, as_json: bool) -> None:
    """Write the report of the evaluated run into reports/NAME: HTML, Markdown and JSON.

    The page is one file without scripts or outside resources. Its path is the last line printed.

    \b
    Example:
      ragtune report
    """
    from ragtune import pipeline

    page = pipeline.report(load_config(config_path))
    if as_json:
        print_json({"report": str(page)})
        return
    out().print(str(page), markup=False)
