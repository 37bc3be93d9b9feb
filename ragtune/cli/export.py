"""`ragtune export`: what was tuned, for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from ragtune.cli.merge import FORCE, show
from ragtune.cli.output import config_option, json_option, watching
from ragtune.config import load_config


@click.command("export")
@config_option
@click.option(
    "--to",
    type=click.Choice(["gguf", "openai"]),
    required=True,
    help="gguf: a model for llama.cpp and Ollama. openai: the training rows as chat JSONL.",
)
@click.option(
    "--arm", type=click.Choice(["raft", "tune"]), default="raft", show_default=True, help="Whose adapter to export."
)
@click.option("--quantise", help="How GGUF stores matrices: f32, f16, bf16, q8_0 (the default), q5_1 or q4_1.")
@click.option("--into", type=click.Path(path_type=Path), help="The folder to write, by default below exports/NAME.")
@click.option("--force", is_flag=True, help=FORCE)
@json_option
def command(
    config_path: Path, to: str, arm: str, quantise: str | None, into: Path | None, force: bool, as_json: bool
) -> None:
    """Export the adapter of an arm: merged into its base as one GGUF file, or the rows it was trained on.

    A GGUF file is asked the same probe questions as the base with its adapter. If they answer too differently (see
    [export] in ragtune.toml) nothing is put in place and the exit code is 1.

    \b
    Examples:
      ragtune export --to gguf
      ragtune export --to gguf --quantise f16 --arm tune
      ragtune export --to openai --into rows-for-openai
    """
    from ragtune import pipeline

    project = load_config(config_path, {"export.quantise": quantise})
    with watching() as watch:
        result = pipeline.export(project, to, arm, into, force, watch)
    show(result, as_json)
