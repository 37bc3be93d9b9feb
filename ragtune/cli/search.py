"""`ragtune search`: passages for a query."""

from __future__ import annotations

from pathlib import Path

import click

from ragtune.cli.output import config_option, json_option, out, print_json
from ragtune.config import load_config


@click.command("search")
@click.argument("query")
@config_option
@click.option("-k", type=int, help="Number of passages.")
@json_option
def command(query: str, config_path: Path, k: int | None, as_json: bool) -> None:
    """Print the passages that fit QUERY best, with source and score.

    Dense and keyword search, fused by reciprocal rank; the score is the fused one.

    \b
    Examples:
      ragtune search "bicycle charge on R1"
      ragtune search "late check-in" -k 3 --json
    """
    from ragtune import pipeline

    hits = pipeline.search(load_config(config_path), query, k)
    if as_json:
        print_json(
            [
                {
                    "rank": hit.rank,
                    "score": hit.score,
                    "document": hit.passage.document_id,
                    "start": hit.passage.start,
                    "end": hit.passage.end,
                    "headings": list(hit.passage.headings),
                    "text": hit.passage.text,
                }
                for hit in hits
            ]
        )
        return
    from rich.markup import escape

    for hit in hits:
        where = f"{hit.passage.document_id}:{hit.passage.start}-{hit.passage.end}"
        out().print(f"[bold]{hit.rank}.[/bold] {hit.score:.4f}  [cyan]{escape(where)}[/cyan]")
        out().print(hit.passage.text, markup=False, style="dim")
        out().print()
