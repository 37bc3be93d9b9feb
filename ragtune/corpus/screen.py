"""What is wrong with a question that a model wrote, as far as its text tells; and which question repeats another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ragtune.corpus.check import normalise
from ragtune.corpus.grounding import ground

QUESTION_WORDS = (4, 30)
"""Words of the shortest and the longest question."""

REASONS: Mapping[str, str] = {
    "no-question": "the reply holds no question",
    "ungrounded": "the answer does not stand in the passage",
    "long-answer": "the answer is long",
    "length": f"the question has less than {QUESTION_WORDS[0]} or more than {QUESTION_WORDS[1]} words",
    "babble": "the question says the same words again and again",
    "answer-given": "the question gives the answer away",
    "speaks-of-text": "the question speaks of the text that it was made from",
    "off-topic": "the question shares no word with the passage",
    "duplicate": "the same question as another one",
    "near-duplicate": "nearly the same question as another one",
    "unanswerable": "the model says that the passage does not answer it",
    "round-trip": "asked the question, the model picks another answer",
}
"""Why a pair is left out."""

_SPEAKS_OF_TEXT = re.compile(
    r"\b(?:according to|in|from|about|of|by|based on) (?:the|this|that|above|given)(?: given| above| following)? "
    r"(?:text|passage|statement|paragraph|excerpt|sentence|context|snippet)s?\b|____",
    re.IGNORECASE,
)
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")
_COMMON = frozenset(
    _WORD.findall(
        "a an and are as at be been by can did do does for from had has have how if in is it its may much many not of "
        "on or that the their there they this to was were what when where which who whom whose why will with would you "
        "your"
    )
)


def fault_of(question: str, answer: str, source: str) -> str | None:
    """The first of REASONS that the texts alone show, or None; `source` is the passage with its headings."""
    words = _WORD.findall(question.lower())
    if not QUESTION_WORDS[0] <= len(words) <= QUESTION_WORDS[1]:
        return "length"
    if 2 * len(set(words)) < len(words):
        return "babble"
    if ground(answer, question):
        return "answer-given"
    if _SPEAKS_OF_TEXT.search(question):
        return "speaks-of-text"
    if not (set(words) - _COMMON) & set(_WORD.findall(source.lower())):
        return "off-topic"
    return None


@dataclass
class Distinct:
    """The questions so far. Two are the same when their normalised texts are, nearly when their cosine is `threshold`.

    `vectors` has a row for each question to come; make one with `with_room`.
    """

    threshold: float
    vectors: np.ndarray
    texts: set[str] = field(default_factory=set)
    count: int = 0

    @classmethod
    def with_room(cls, count: int, dimension: int, threshold: float) -> Distinct:
        """Nothing yet, and room for so many questions with vectors of so many numbers."""
        return cls(threshold, np.zeros((count, dimension), dtype=np.float32))

    def add(self, question: str, vector: np.ndarray) -> None:
        """Remember a question and its vector of length 1."""
        self.texts.add(normalise(question))
        self.vectors[self.count] = vector
        self.count += 1

    def fault_of(self, question: str, vector: np.ndarray) -> str | None:
        """`duplicate`, `near-duplicate` or None."""
        if normalise(question) in self.texts:
            return "duplicate"
        cosines = self.vectors[: self.count] @ vector
        return "near-duplicate" if self.count and float(cosines.max()) >= self.threshold else None
