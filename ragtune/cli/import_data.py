"""`ragtune import`: somebody's data becomes a project, or one more task of one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragtune.cli.output import json_option, out, print_json, watching
from ragtune.corpus.importers.source import FORMATS

if TYPE_CHECKING:
    from ragtune.corpus.importers.convert import Imported
    from ragtune.corpus.importers.evidence import Way
    from ragtune.corpus.importers.source import Count

_SIZE = click.IntRange(min=0)
_WAYS: dict[Way, str] = {
    "stated": "as the source states it",
    "answer": "where an accepted answer stands first",
    "document": "a short document as a whole",
}


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--into", "folder", required=True, type=click.Path(path_type=Path), help="New folder, or a project's.")
@click.option("--name", default="", help="Name of the task; by default from the name of SOURCE.")
@click.option(
    "--format", type=click.Choice(["auto", *FORMATS]), default="auto", show_default=True, help="What SOURCE is."
)
@click.option("--train", type=_SIZE, metavar="N", help="At most so many train questions, drawn at random.")
@click.option("--dev", type=_SIZE, metavar="N", help="At most so many dev questions.")
@click.option("--test", type=_SIZE, metavar="N", help="At most so many test questions.")
@click.option("--documents", type=_SIZE, metavar="N", help="Gold documents first, then others up to so many.")
@click.option("--seed", type=click.IntRange(min=0), default=17, show_default=True, help="Of splits and samples.")
@click.option("--skip-broken", is_flag=True, help="Count rows that cannot be read, instead of stopping.")
@json_option
def command(source: Path, folder: Path, format: str, as_json: bool, **choices: Any) -> None:
    """Turn the questions (and documents) in SOURCE into a project folder.

    Where the folder holds a ragtune.toml, the task is added to it. Nothing is ever overwritten.

    \b
    SOURCE is a file, or a folder with train, dev and test files and corpus.jsonl:
      jsonl   {"question": ..., "answers": [...]}, our own question files among them
      csv     columns question and answer, several answers between ||
      faq     the same; the answers become the documents
      squad   SQuAD JSON, 1.1 or 2.0
      beir    a folder with corpus.jsonl, queries.jsonl and qrels
      chat    {"messages": [...]}, as for OpenAI

    \b
    Examples:
      ragtune import questions.csv --into handbook
      ragtune import dev-v2.0.json --into squad --train 200 --dev 50 --test 100
    """
    from ragtune import pipeline
    from ragtune.corpus.importers.convert import ImportOptions

    options = ImportOptions(format=None if format == "auto" else format, **choices)  # type: ignore[arg-type]
    with watching() as watch:
        imported = pipeline.import_data(source, folder, options, watch)
    if as_json:
        print_json(asdict(imported) | {"folder": str(imported.folder)})
    else:
        _print(imported, folder)


def _print(imported: Imported, folder: Path) -> None:
    def line(what: str, text: str) -> None:
        out().print(f"{what:<12}{text}", markup=False)

    done = "added to" if imported.added else "written to"
    out().print(f"task {imported.task} {done} {folder} (read as {imported.source_format})", markup=False)
    line(
        "documents",
        f"{imported.documents}, {imported.gold} hold evidence" if imported.documents else _without(imported),
    )
    counts = ", ".join(f"{count} {split}" for split, count in imported.questions.items())
    line("questions", f"{counts}; split: {imported.split_by}")
    if imported.unanswerable:
        line("", f"{imported.unanswerable} of them without an answer in the documents")
    labels = f", {imported.labels} labels" if imported.labels else ""
    line("answers", f"{imported.answer_format}, judged by {imported.metric}{labels}")
    ways = "; ".join(f"{imported.evidence[way]} {text}" for way, text in _WAYS.items() if imported.evidence[way])
    line("evidence", f"for {sum(imported.evidence.values())} questions" + (f": {ways}" if ways else ""))
    if imported.without_evidence:
        line("", f"{imported.without_evidence} answerable questions have none")
    if imported.shared_documents:
        line("", f"{imported.shared_documents} documents are evidence in more than one split (shared_documents is set)")
    _print_counts("left out", imported.skipped)
    _print_counts("note", imported.notes)
    out().print(f"Next: ragtune check --config {folder}", style="cyan", markup=False)


def _without(imported: Imported) -> str:
    return (
        "none" if imported.added else f"none; documents/{imported.task}/about.md stands in, to have something to index"
    )


def _print_counts(heading: str, kinds: tuple[Count, ...]) -> None:
    for kind in kinds:
        out().print(f"{heading:<12}{kind.count} x {kind.what} (first: {kind.first})", style="yellow", markup=False)
