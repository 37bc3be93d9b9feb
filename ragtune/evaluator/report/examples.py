"""Questions that show the difference: what the chosen arm and its runner-up answered, and what they had read."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ragtune.evaluator.report.data import ReportData
from ragtune.types import Passage, Question, Row, Verdict

PER_SIDE = 2
"""At most so many questions won and so many lost are shown for each task."""


@dataclass(frozen=True, slots=True)
class ReadPassage:
    """A passage that an arm was given. `pieces` join to its text; the flag marks the words of the evidence."""

    passage: Passage
    gold: bool
    cited: bool
    pieces: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class Given:
    """One arm's answer to the question of an example, with the passages that it had."""

    row: Row
    passages: tuple[ReadPassage, ...]

    @property
    def n_gold(self) -> int:
        """How many of the passages hold evidence."""
        return sum(read.gold for read in self.passages)


@dataclass(frozen=True, slots=True)
class Example:
    """One question on which the chosen arm scored higher (`won`) or lower than the runner-up."""

    question: Question
    won: bool
    chosen: Given
    other: Given


def runner_up(verdict: Verdict) -> str | None:
    """The best arm besides the chosen one, reference arms left out; None when there is no other."""
    others = [s for s in verdict.arms if s.arm != verdict.arm and not s.reference]
    return max(others, key=lambda s: s.score.mean).arm if others else None


def choose_examples(data: ReportData, verdict: Verdict) -> tuple[Example, ...]:
    """The clearest wins over the runner-up, then the clearest losses; the order of the rows breaks ties."""
    other = runner_up(verdict)
    if other is None:
        return ()
    mine, theirs = data.answers(verdict.task, verdict.arm), data.answers(verdict.task, other)
    pairs = [(mine[id], theirs[id]) for id in mine if id in theirs]
    gaps = [(a.score - b.score, a, b) for a, b in pairs if a.score is not None and b.score is not None]
    won = sorted((g for g in gaps if g[0] > 0), key=lambda g: -g[0])[:PER_SIDE]
    lost = sorted((g for g in gaps if g[0] < 0), key=lambda g: g[0])[:PER_SIDE]
    return tuple(_example(data, gap > 0, a, b) for gap, a, b in won + lost)


def _example(data: ReportData, won: bool, mine: Row, their: Row) -> Example:
    question = data.questions[mine.question_id]
    chosen, other = (
        Given(row, tuple(_read(data, question, row, id) for id in row.passage_ids)) for row in (mine, their)
    )
    return Example(question, won, chosen, other)


def _read(data: ReportData, question: Question, row: Row, id: str) -> ReadPassage:
    passage = data.passages[id]
    gold = any(span.overlaps(passage) for span in question.evidence)
    return ReadPassage(passage, gold, id in row.cited_ids, marked(passage, question))


def marked(passage: Passage, question: Question) -> tuple[tuple[str, bool], ...]:
    """The passage's text cut where evidence begins and ends; True for the pieces that are evidence."""
    spans = [
        (max(span.start, passage.start) - passage.start, min(span.end, passage.end) - passage.start)
        for span in question.evidence
        if span.document_id == passage.document_id
    ]
    spans = [(start, end) for start, end in spans if start < end]
    cuts = sorted({0, len(passage.text), *(cut for span in spans for cut in span)})
    return tuple((passage.text[a:b], any(start <= a and b <= end for start, end in spans)) for a, b in pairwise(cuts))
