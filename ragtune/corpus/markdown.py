"""Text -> blocks: headings, code fences, tables, lists and paragraphs, with their offsets.

Only what splitting needs of CommonMark: ATX headings, fences and blank lines. Every reader writes headings as `#`
lines, so one scanner serves all file types. Each step is linear in the length of a line (lines may be very long).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

BlockKind = Literal["heading", "code", "table", "list", "text"]

_FENCE = re.compile(r"\s*(`{3,}(?=[^`]*$)|~{3,})")
_ATX = re.compile(r" {0,3}(#{1,6})(?=[ \t]|$)")
_ITEM = re.compile(r"\s*(?:[-*+]|\d{1,9}[.)])\s")


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a text, stripped of outer whitespace. `level` (1 to 6) and `title` are those of a heading."""

    kind: BlockKind
    start: int
    end: int
    level: int = 0
    title: str = ""


def blocks(text: str) -> Iterator[Block]:
    """The blocks of a text in order; together they hold every character that is not whitespace."""
    run: list[tuple[int, int]] = []
    fence = ""
    for start, end in _lines(text):
        line = text[start:end]
        if fence:
            run.append((start, end))
            if _closes(line, fence):
                yield _block("code", text, run)
                run, fence = [], ""
            continue
        heading, opening = _ATX.match(line), _FENCE.match(line)
        if run and (heading or opening or not line.strip()):
            yield _block(_kind(text, run), text, run)
            run = []
        if heading:
            yield Block("heading", *trim(text, start, end), len(heading[1]), _title(line[heading.end() :]))
        elif line.strip():
            run.append((start, end))
            fence = opening[1] if opening else ""
    if run:
        yield _block("code" if fence else _kind(text, run), text, run)


def first_heading(text: str) -> str:
    """The title of the first heading that has one, or an empty string."""
    return next((block.title for block in blocks(text) if block.title), "")


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """The same slice without outer whitespace."""
    part = text[start:end]
    return start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())


def _lines(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield start, end
        start = end + 1
    yield start, len(text)


def _closes(line: str, fence: str) -> bool:
    line = line.strip()
    return len(line) >= len(fence) and not line.strip(fence[0])


def _title(rest: str) -> str:
    """The text of a heading without its closing `#`s, which count only after a space."""
    rest = rest.strip()
    shorter = rest.rstrip("#")
    return shorter.rstrip() if not shorter or shorter[-1].isspace() else rest


def _kind(text: str, run: list[tuple[int, int]]) -> BlockKind:
    if all("|" in text[start:end] for start, end in run):
        return "table"
    return "list" if _ITEM.match(text[slice(*run[0])]) else "text"


def _block(kind: BlockKind, text: str, run: list[tuple[int, int]]) -> Block:
    return Block(kind, *trim(text, run[0][0], run[-1][1]))
