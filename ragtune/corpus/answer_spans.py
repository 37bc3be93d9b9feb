"""Stretches of a text that could answer a question: dates, times, amounts, names, things. No model is needed.

Picking the answer first leaves a small model only the question to write (Alberti et al. 2019, "Synthetic QA Corpora
Generation with Roundtrip Consistency", section 2: an answer is drawn, then a question for it). The patterns know digits
and capitals of any script that has them; months, function words and articles of English only.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ragtune.corpus.grounding import sentence_around
from ragtune.corpus.markdown import Block, blocks

Kind = Literal["date", "time", "amount", "name", "thing"]

LONGEST_ANSWER = 8
"""Words of the longest answer that is picked."""

_MONTH = (
    r"(?:January|February|March|April|May|June|July|August|September|October|November|December"
    r"|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)"
)
_YEAR = r"(?:(?<=\bin )|(?<=\bsince )|(?<=\buntil ))(?:19|20)\d\d"
_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
_CONTENT_WORD = (
    r"(?!(?:is|are|was|were|has|have|had|may|must|can|will|and|or|but|with|of|in|on|at|for|to|by|as|than|that|which|who"
    r"|from|when|after|before|until|while|so|then|if|it|its|they|we|no|not|per|each)\b)[^\W\d_][\w’-]*"
)
_CAPITALISED = r"(?=[^\W\d_a-z])[^\W\d_][\w’-]+"
_PATTERNS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    (
        "date",
        re.compile(
            rf"\b(?:\d{{1,2}} {_MONTH}(?: \d{{4}})?|{_MONTH} \d{{1,2}}(?:, \d{{4}})?|{_MONTH} \d{{4}}|{_YEAR})\b"
        ),
    ),
    ("time", re.compile(r"\b\d{1,2}:\d{2}\b(?: ?[ap]\.?m\b)?")),
    (
        "amount",
        re.compile(rf"[£$€¥] ?{_NUMBER}(?: [mb]illion)?|\b{_NUMBER}(?!\w)(?: ?[%‰°]| (?:per cent\b|{_CONTENT_WORD}))?"),
    ),
    ("name", re.compile(rf"\b{_CAPITALISED}(?: (?:(?:of|the|de|la|van|von) )?{_CAPITALISED})*")),
    ("thing", re.compile(rf"\b(?:an?|the) (?:{_CONTENT_WORD} ){{0,2}}{_CONTENT_WORD}(?=[.,;:)]|$)")),
)
_TITLES = frozenset({"Mr", "Mrs", "Ms", "Dr", "Prof", "Capt", "St", "No"})
_GOES_ON = re.compile(r"[\w,;)] $")


@dataclass(frozen=True, slots=True)
class AnswerSpan:
    """A possible answer: `text[start:end]` of the text that it was picked from."""

    start: int
    end: int
    kind: Kind


def answer_spans(text: str) -> list[AnswerSpan]:
    """All possible answers that stand in the text once, in order and without overlaps.

    Headings and code hold none, nor do tables whose heading row is not in the text: nobody knows what their cells mean.
    """
    taken = [(block.start, block.end) for block in blocks(text) if _is_unfit(text, block)]
    found: list[AnswerSpan] = []
    for kind, pattern in _PATTERNS:
        for start, end in _matches(kind, pattern, text):
            if any(start < other_end and other_start < end for other_start, other_end in taken):
                continue
            taken.append((start, end))
            if len(re.findall(rf"(?<!\w){re.escape(text[start:end])}(?!\w)", text)) == 1:
                found.append(AnswerSpan(start, end, kind))
    return sorted(found, key=lambda span: span.start)


def _is_unfit(text: str, block: Block) -> bool:
    if block.kind == "table":
        return re.search(r"^[\s|:-]*---[\s|:-]*$", text[block.start : block.end], re.MULTILINE) is None
    return block.kind in ("heading", "code")


def _matches(kind: Kind, pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    for match in pattern.finditer(text):
        words = match[0].split()
        if len(words) > LONGEST_ANSWER or "\n" in match[0]:
            continue
        if kind == "name" and (words[-1] in _TITLES or (len(words) == 1 and not _goes_on(text, match.start()))):
            continue
        yield match.span()


def _goes_on(text: str, start: int) -> bool:
    """Any sentence, item or cell begins with a capital, so a single word there need not be a name."""
    return _GOES_ON.search(text, max(0, start - 2), start) is not None


def pick_spans(text: str, count: int, rng: random.Random) -> list[AnswerSpan]:
    """At most `count` possible answers, drawn so that sentences repeat late, figures come first, and kinds repeat late.

    Figures first: of the questions that a model of 135M parameters wrote for names and things, none of 15 was right.
    """
    pool = answer_spans(text)
    rng.shuffle(pool)
    picked: list[AnswerSpan] = []
    while pool and len(picked) < count:
        picked.append(min(pool, key=lambda span: _crowding(text, span, picked)))
        pool.remove(picked[-1])
    return picked


def _crowding(text: str, span: AnswerSpan, picked: Sequence[AnswerSpan]) -> tuple[int, bool, int]:
    """How many picked answers share the span's sentence; whether it is words; how many picked ones share its kind."""
    start, end = sentence_around(text, span.start, span.end) if picked else (0, 0)
    sharing = sum(start <= other.start < end for other in picked)
    return sharing, span.kind in ("name", "thing"), sum(other.kind == span.kind for other in picked)
