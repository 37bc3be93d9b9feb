"""Where an answer stands in a text, word for word, and the sentence around it: evidence with exact offsets."""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from ragtune.corpus.markdown import Block, blocks, trim

_AROUND = " \t\r\n.,;:!?…*_`\"'“”‘’«»"
_SPACED_LETTER = r"[^\W_\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]"
"""A letter or digit of a script that puts spaces between words."""

_ABBREVIATIONS = "".join(rf"(?<!\b{short})" for short in ("Mr", "Mrs", "Ms", "Dr", "St", "Capt", "Prof", "No", "Nr"))
_SENTENCE_END = re.compile(rf"{_ABBREVIATIONS}[.!?…][\"'”’»)\]*_]*\s+(?![a-z])|[。！？][」』”’）]*")
_ITEM_START = re.compile(r"\n(?=\s*(?:[-*+]|\d{1,9}[.)])\s)")


def ground(answer: str, text: str) -> tuple[int, int] | None:
    """Start and end of the first place where the answer stands in the text as words of its own; None without one.

    Runs of white space count as equal, and marks around the answer do not count. Where it does not stand in its own
    case, another case will do: what counts as the answer is the text's own slice.
    """
    words = answer.strip(_AROUND).split()
    if not words:
        return None
    phrase = r"\s+".join(map(re.escape, words))
    if re.match(_SPACED_LETTER, words[0]):
        phrase = rf"(?<!{_SPACED_LETTER})(?<!\d[.,:]){phrase}"
    if re.match(_SPACED_LETTER, words[-1][-1]):
        phrase = rf"{phrase}(?!{_SPACED_LETTER})(?![.,:]\d)"
    match = re.search(phrase, text) or re.search(phrase, text, re.IGNORECASE)
    return match.span() if match else None


def sentence_around(text: str, start: int, end: int) -> tuple[int, int]:
    """The bounds of the sentences, table row or list item that hold `text[start:end]`, without outer white space."""
    borders = sorted({0, len(text), *itertools.chain.from_iterable(_borders(text, block) for block in blocks(text))})
    first, last = borders[bisect_right(borders, start) - 1], borders[bisect_left(borders, end)]
    return trim(text, first, last)


def _borders(text: str, block: Block) -> Iterator[int]:
    """Where sentences, rows and items begin or end in a block."""
    yield from (block.start, block.end)
    if block.kind in ("table", "code"):
        yield from (match.start() for match in re.compile(r"\n").finditer(text, block.start, block.end))
        return
    yield from (match.end() for match in _SENTENCE_END.finditer(text, block.start, block.end))
    if block.kind == "list":
        yield from (match.start() for match in _ITEM_START.finditer(text, block.start, block.end))
