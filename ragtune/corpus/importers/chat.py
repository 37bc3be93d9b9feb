"""OpenAI chat JSONL (`{"messages": [{"role": ..., "content": ...}]}`) -> questions and answers.

The last user turn is the question, the assistant turn after it the answer. A system turn that all rows share becomes
the instruction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ragtune.corpus.importers.rows import identity, scalar, usable_answers, usable_text
from ragtune.corpus.importers.source import (
    About,
    Broken,
    Ledger,
    Source,
    SourceQuestion,
    Unusable,
    broken_type,
    convert_rows,
    json_lines,
    one_line,
)
from ragtune.types import Split

Turn = tuple[str, str]


def read_chat(files: Sequence[tuple[Path, Split | None]], ledger: Ledger) -> Source:
    """All conversations of the files.

    Raises: InputError when a file cannot be read, or naming a broken line.
    """
    questions: list[SourceQuestion] = []
    systems: dict[str, str] = {}
    for path, split in files:

        def convert(row: Mapping[str, Any], where: str, split: Split | None = split) -> SourceQuestion:
            turns = _turns(row)
            question = _question(turns, row, where, split)
            systems.setdefault("\n".join(text for role, text in turns if role in ("system", "developer")), where)
            if sum(role == "user" for role, _ in turns) > 1:
                ledger.note("earlier turns of the conversation are left out", where)
            return question

        questions += convert_rows(json_lines(path, ledger), convert, ledger)
    instruction = next(iter(systems), "").strip()
    if len(systems) > 1:
        instruction = ""
        ledger.note("system turns differ from row to row; none is used", list(systems.values())[1])
    return Source("chat", tuple(questions), about=About(instruction=one_line(instruction)))


def _turns(row: Mapping[str, Any]) -> list[Turn]:
    messages = row.get("messages")
    if messages is None:
        raise Broken("no messages", f"keys are {', '.join(row)}")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        broken_type("messages", messages, "a list of objects")
    return [(str(message.get("role")), _content(message.get("content"))) for message in messages]


def _content(content: object) -> str:
    """The text of a turn; its parts joined where it is a list of parts; empty for a tool call."""
    if content is None:
        return ""
    if not isinstance(content, list):
        return scalar(content, "content")
    parts = [part for part in content if isinstance(part, dict)]
    if any(part.get("type") != "text" for part in parts):
        raise Unusable("a turn that is not text alone")
    return "\n".join(scalar(part.get("text"), "text") for part in parts)


def _question(turns: Sequence[Turn], row: Mapping[str, Any], where: str, split: Split | None) -> SourceQuestion:
    last = max((i for i, (role, _) in enumerate(turns) if role == "user"), default=None)
    if last is None:
        raise Unusable("no user turn")
    if last + 1 == len(turns) or turns[last + 1][0] != "assistant" or not turns[last + 1][1].strip():
        raise Unusable("no assistant text after the last user turn")
    return SourceQuestion(
        identity(row.get("id")),
        usable_text(turns[last][1], "question"),
        usable_answers([turns[last + 1][1]]),
        where,
        split,
    )
