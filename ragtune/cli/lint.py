"""`ragtune lint`: are the training rows sound?"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import click

from ragtune.cli.examples import arm_option, task_option
from ragtune.cli.output import config_option, json_option, out, print_json, watching
from ragtune.config import load_config

_SHOWN = 3
"""Findings of one check that are printed."""


@click.command("lint")
@click.argument("rows_file", metavar="[FILE]", required=False, type=click.Path(path_type=Path))
@config_option
@arm_option
@task_option
@json_option
def command(rows_file: Path | None, config_path: Path, arm: str, tasks: tuple[str, ...], as_json: bool) -> None:
    """Check training rows: the project's own, or those in FILE. `ragtune tune` does the same before it trains.

    FILE holds rows as `ragtune examples` writes them, or Alpaca, ShareGPT or OpenAI chat data. Exits with 1 when there
    are errors.

    \b
    Examples:
      ragtune lint
      ragtune lint adapters/handbook/raft.rows.jsonl --json
    """
    from ragtune import pipeline

    with watching() as watch:
        linted = pipeline.lint(load_config(config_path), arm, tasks, rows_file, watch)
    levels = Counter(finding.level for finding in linted.findings)
    if as_json:
        counts = {"rows": linted.rows, "errors": levels["error"], "warnings": levels["warning"]}
        print_json(counts | {"findings": [asdict(finding) for finding in linted.findings]})
    else:
        printed: Counter[tuple[str, str]] = Counter()
        for finding in linted.findings:
            printed[finding.level, finding.check] += 1
            if printed[finding.level, finding.check] <= _SHOWN:
                style = "red" if finding.level == "error" else "yellow"
                place = f"row {finding.number} ({finding.question_id})"
                out().print(f"{finding.level} {finding.check}: {place}: {finding.message}", style=style, markup=False)
                out().print(f"    {finding.excerpt}", markup=False)
        for (level, check), number in printed.items():
            if number > _SHOWN:
                out().print(f"{level} {check}: {number - _SHOWN} more; see them all with --json", markup=False)
        out().print(f"{levels['error']} errors, {levels['warning']} warnings in {linted.rows} rows")
    sys.exit(1 if levels["error"] else 0)
