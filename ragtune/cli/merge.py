"""`ragtune merge`: an adapter into its base."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ragtune.cli.output import config_option, json_option, out, print_json, warn, watching
from ragtune.config import load_config

if TYPE_CHECKING:
    from ragtune.exporting import Exported

FORCE = "Put it in place though its answers drifted too far, and record that."


@click.command("merge")
@config_option
@click.option(
    "--arm", type=click.Choice(["raft", "tune"]), default="raft", show_default=True, help="Whose adapter to merge."
)
@click.option("--into", type=click.Path(path_type=Path), help="The folder to write, by default models/NAME/ARM.")
@click.option("--force", is_flag=True, help=FORCE)
@json_option
def command(config_path: Path, arm: str, into: Path | None, force: bool, as_json: bool) -> None:
    """Merge the adapter of an arm into its base: one folder of weights, tokenizer and chat template.

    The merged model and the base with its adapter are asked the same probe questions. If they answer too differently
    (see [export] in ragtune.toml) nothing is put in place and the exit code is 1.

    \b
    Examples:
      ragtune merge
      ragtune merge --arm tune --into ferry-model
    """
    from ragtune import pipeline

    with watching() as watch:
        result = pipeline.merge(load_config(config_path), arm, into, force, watch)
    show(result, as_json)


def show(result: Exported, as_json: bool) -> None:
    """What was put in place, and how it compares with its adapter."""
    if as_json:
        print_json(asdict(result) | {"folder": str(result.folder)})
        return
    out().print(f"{result.folder} {'is up to date' if result.reused else 'written'}", markup=False)
    if parity := result.parity:
        out().print(
            f"{parity.questions} probe questions: {parity.identical:.1%} of the answers are the adapter's word for "
            f"word, {parity.agreement:.1%} the same or a tie; log-probabilities differ by "
            f"{parity.logp_difference:.3f} nats a token, the mean score by {parity.score_difference:+.3f}",
            markup=False,
        )
    for failure in result.failures:
        warn(failure)
