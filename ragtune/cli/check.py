"""`ragtune check`: are the question files sound?"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ragtune.cli.output import config_option, json_option, out, print_json, warn
from ragtune.config import load_config

_SHOWN = 3


@click.command("check")
@config_option
@json_option
def command(config_path: Path, as_json: bool) -> None:
    """Check questions against documents: evidence, splits without leakage, labels, duplicates.

    Exits with 1 when there are errors.

    \b
    Example:
      ragtune check --config corpora/harbourline
    """
    from ragtune import pipeline

    found = pipeline.check(load_config(config_path))
    if as_json:
        print_json(
            {
                "errors": [{"task": f.task, "question": f.question_id, "message": f.message} for f in found.errors],
                "warnings": [{"task": f.task, "question": f.question_id, "message": f.message} for f in found.warnings],
                "counts": {task: dict(splits) for task, splits in found.counts.items()},
            }
        )
    else:
        for task, splits in found.counts.items():
            out().print(f"{task}: " + ", ".join(f"{count} {split}" for split, count in splits.items()), markup=False)
        for task in found.counts:
            warnings = [f for f in found.warnings if f.task == task]
            for finding in warnings[:_SHOWN]:
                warn(f"{finding.task}/{finding.question_id}: {finding.message}")
            if len(warnings) > _SHOWN:
                warn(f"{task}: {len(warnings) - _SHOWN} more warnings; see them all with --json")
        for finding in found.errors:
            out().print(f"{finding.task}/{finding.question_id}: {finding.message}", style="red", markup=False)
        out().print(f"{len(found.errors)} errors, {len(found.warnings)} warnings")
    sys.exit(1 if found.errors else 0)
