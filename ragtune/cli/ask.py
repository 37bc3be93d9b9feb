"""`ragtune ask`: one question, or a chat."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from ragtune.cli.output import config_option, fail, json_option, out, print_json, say
from ragtune.config import load_config
from ragtune.errors import InputError
from ragtune.types import Answer


@click.command("ask")
@click.argument("question", required=False)
@config_option
@click.option("--arm", help="How to answer: prompt, few-shot, retrieve, retrieve+few-shot, tune, tune+retrieve, raft.")
@click.option("--task", help="Task of the question; by default the router picks one when there is a decision.")
@click.option("-k", type=int, help="Passages given to the model.")
@json_option
def command(
    question: str | None, config_path: Path, arm: str | None, task: str | None, k: int | None, as_json: bool
) -> None:
    """Answer QUESTION from the indexed documents, with citations. Without QUESTION, chat.

    When a run was evaluated, the question goes to its task's winning arm; --arm and --task choose by hand.

    \b
    Examples:
      ragtune ask "What does a bicycle cost on R1?"
      ragtune ask "My bag is gone" --task routing
      ragtune ask --arm retrieve
    """
    from ragtune.session import Session

    session = Session(load_config(config_path, {"retrieval.k": k}), say)
    if question is not None:
        _answer(session, question, arm, task, as_json)
        return
    if not sys.stdin.isatty():
        raise InputError('no question given; write it as an argument: ragtune ask "..."')
    out().print("Ask about the documents; an empty line ends the chat.", style="dim")
    with suppress(EOFError):  # so does Ctrl-D
        while line := out().input("[bold]> [/bold]").strip():
            try:
                _answer(session, line, arm, task, as_json)
            except InputError as error:
                fail(str(error))


def _answer(session: Any, question: str, arm: str | None, task: str | None, as_json: bool) -> None:
    from ragtune import pipeline

    if as_json:
        answer, reason = pipeline.ask_session(session, question, arm, task)
        print_json(_as_json(answer, reason))
        return
    answer, reason = pipeline.ask_session(
        session, question, arm, task, lambda piece: out().print(piece, end="", markup=False)
    )
    out().print()
    _print_sources(answer)
    say(f"arm {answer.arm} ({reason})")


def _print_sources(answer: Answer) -> None:
    if answer.refused:
        out().print("The documents do not tell.", style="yellow")
    closest = None if answer.citations or answer.refused else _closest(answer)
    for number, hit in enumerate(answer.hits, 1):
        cited = hit.passage.id in answer.citations
        where = f"{hit.passage.document_id}:{hit.passage.start}-{hit.passage.end}"
        mark = "  cited" if cited else "  closest to the answer" if hit.passage.id == closest else ""
        out().print(f"  [{number}] {where}{mark}", markup=False, style="cyan" if mark else "dim")


def _closest(answer: Answer) -> str | None:
    from ragtune.prompting.strategies import closest_passage

    return closest_passage(answer.text, [hit.passage for hit in answer.hits])


def _as_json(answer: Answer, reason: str) -> dict[str, Any]:
    return {
        "question": answer.question,
        "answer": answer.text,
        "refused": answer.refused,
        "arm": answer.arm,
        "task": answer.task,
        "why": reason,
        "sources": [
            {
                "number": number,
                "document": hit.passage.document_id,
                "start": hit.passage.start,
                "end": hit.passage.end,
                "text": hit.passage.text,
                "cited": hit.passage.id in answer.citations,
            }
            for number, hit in enumerate(answer.hits, 1)
        ],
    }
