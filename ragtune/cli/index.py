"""`ragtune index`: documents -> a searchable index."""

from __future__ import annotations

from pathlib import Path

import click

from ragtune.cli.output import config_option, json_option, out, print_json, warn, watching
from ragtune.config import load_config


@click.command("index")
@config_option
@click.option("--strict", is_flag=True, help="Stop at a file that cannot be read, instead of skipping it.")
@click.option("--embedder", help="Embedding model: embedded name, local folder or hub id.")
@click.option("--passage-tokens", type=int, help="Largest passage, in the embedder's tokens.")
@json_option
def command(config_path: Path, strict: bool, embedder: str | None, passage_tokens: int | None, as_json: bool) -> None:
    """Read, split and embed the project's documents into indexes/NAME.

    Markdown, text, reStructuredText, HTML, PDF, DOCX, PPTX, XLSX, CSV, EPUB, e-mail, Jupyter, JSON and source code. A
    folder that is up to date is left as it is.

    \b
    Examples:
      ragtune index
      ragtune index --config corpora/harbourline
    """
    from ragtune import pipeline

    overrides = {"index.embedder": embedder, "index.passage_tokens": passage_tokens}
    project = load_config(config_path, overrides)
    with watching() as watch:
        result = pipeline.index(project, strict, watch)
    for skipped in result.skipped:
        warn(f"skipped {skipped.path}: {skipped.reason}")
    for partly in result.warnings:
        warn(f"{partly.path}: {partly.reason}")
    if as_json:
        print_json(
            {
                "index": str(result.folder),
                "documents": result.documents,
                "passages": result.passages,
                "formats": dict(result.formats),
                "skipped": [{"path": s.path, "reason": s.reason} for s in result.skipped],
                "warnings": [{"path": w.path, "warning": w.reason} for w in result.warnings],
                "reused": result.reused,
            }
        )
        return
    state = "is up to date" if result.reused else "written"
    skipped_note = f", {len(result.skipped)} files skipped" if result.skipped else ""
    out().print(f"{result.folder} {state}: {result.documents} documents, {result.passages} passages{skipped_note}")
