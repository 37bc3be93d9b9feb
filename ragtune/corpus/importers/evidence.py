"""Where a gold document holds the answer: as the source states it, else found, else a short document as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ragtune.corpus.importers.source import Quote, SourceDocument, SourceQuestion
from ragtune.corpus.markdown import trim
from ragtune.corpus.readers import clean
from ragtune.types import Span

LONGEST = 600
"""Characters of the longest piece of evidence: about a passage, so that a passage can hold half of it."""

LONGEST_DOCUMENT = 5 * LONGEST
"""Characters of the longest document that counts as a whole: an abstract, a page; more would say nothing."""

Way = Literal["stated", "answer", "document"]
WAYS: tuple[Way, ...] = get_args(Way)
"""As the source states it; where an accepted answer stands first; a short document as a whole. Best first."""

_SHORTEST_INSIDE = 3
_UNSPECIFIC = {"yes", "no", "true", "false"}
_BREAKS = ("\n\n", "\n", ". ", " ")
_LETTER = re.compile(r"[^\W_\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]")
"""A letter or digit of a script that puts spaces between words."""


@dataclass(frozen=True, slots=True)
class WrittenDocument:
    """A document as it stands in the project: `text` is the whole file, the source's own text begins at `start`."""

    id: str
    text: str
    start: int
    raw: str

    def place(self, offset: int) -> int:
        """The position in `text` of an offset in the source's text."""
        return self.start + len(_plain(self.raw[:offset]))

    def span(self, start: int, end: int) -> Span:
        """The evidence from `start` to `end`."""
        return Span(self.id, start, end, self.text[start:end])


def written_document(document: SourceDocument, path: str) -> WrittenDocument:
    """The document as a Markdown file: its title as heading, so that it goes with each passage, then its text."""
    title = " ".join(_plain(document.title).split())
    heading = f"# {title}\n\n" if title else ""
    return WrittenDocument(path, f"{heading}{_plain(document.text)}\n", len(heading), document.text)


def _plain(text: str) -> str:
    """What reading the file gives back: no NULs, no `\\r`, no byte order mark at the beginning."""
    return clean(text).lstrip("\ufeff")


def find_evidence(
    question: SourceQuestion, source_id: str, document: WrittenDocument, search: bool
) -> tuple[Way | None, tuple[Span, ...]]:
    """The evidence for a question in one of its gold documents, and the way in which it was found.

    `search` allows looking for an accepted answer; without it (labels do not stand in documents) and for answers like
    "yes" only stated evidence and whole documents count.
    """
    if not question.answers:
        return None, ()
    quotes = [quote for quote in question.quotes if quote.document_id == source_id]
    stated = [span for quote in quotes for span in _stated(quote, document)]
    if stated:
        return "stated", tuple(dict.fromkeys(stated))
    found = _find_answer(question.answers, document) if search else None
    if found:
        return "answer", tuple(_pieces(document, *found))
    start, end = trim(document.text, document.start, len(document.text))
    if 0 < end - start <= LONGEST_DOCUMENT:
        return "document", tuple(_pieces(document, start, end))
    return None, ()


def _stated(quote: Quote, document: WrittenDocument) -> list[Span]:
    """The spans of a quote whose words stand at its offsets, or which has words alone that occur."""
    start, end = quote.start, quote.end
    words = clean(quote.text)
    if start < 0 or end < 0:
        pattern = re.compile(r"\s+".join(map(re.escape, words.split())))
        match = pattern.search(document.text) if words.split() else None
        return list(_pieces(document, *match.span())) if match else []
    if not start < end <= len(document.raw):
        return []
    span = document.span(document.place(start), document.place(end))
    if (words and span.text != words) or not span.text.strip():
        return []
    return list(_pieces(document, span.start, span.end))


def _find_answer(answers: Sequence[str], document: WrittenDocument) -> tuple[int, int] | None:
    """The first place of an accepted answer, character for character; as words of its own before inside other words."""
    searched = [answer for answer in answers if answer.casefold() not in _UNSPECIFIC]
    for answer in searched:
        for start in (document.start, 0):
            for place in _places(answer, document.text, start):
                if _stands_alone(document.text, place, place + len(answer)):
                    return place, place + len(answer)
    for answer in searched:
        for place in _places(answer, document.text, document.start):
            if len(answer) >= _SHORTEST_INSIDE:
                return place, place + len(answer)
    return None


def _places(words: str, text: str, start: int) -> Iterator[int]:
    while (start := text.find(words, start)) >= 0:
        yield start
        start += 1


def _stands_alone(text: str, start: int, end: int) -> bool:
    """True when no word and no number goes on before `start` or behind `end`."""
    before, behind = text[max(0, start - 2) : start], text[end : end + 2]
    if _LETTER.match(text[start]) and _LETTER.match(before[-1:]):
        return False
    if _LETTER.match(text[end - 1]) and _LETTER.match(behind):
        return False
    inside_number = text[start].isdigit() and re.fullmatch(r"\d[.,]", before)
    return not inside_number and not (text[end - 1].isdigit() and re.fullmatch(r"[.,]\d", behind))


def _pieces(document: WrittenDocument, start: int, end: int) -> Iterator[Span]:
    """A stretch of text as evidence, cut where it breaks best into pieces that a passage can hold."""
    start, end = trim(document.text, start, end)
    while end - start > LONGEST:
        window = document.text[start : start + LONGEST]
        cuts = (window.rfind(mark) + len(mark) for mark in _BREAKS if window.rfind(mark) >= LONGEST // 2)
        cut = start + next(cuts, LONGEST)
        yield document.span(*trim(document.text, start, cut))
        start, end = trim(document.text, cut, end)
    if end > start:
        yield document.span(start, end)
