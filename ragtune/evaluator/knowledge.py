"""What a model knows without documents, and what tuning makes it forget."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np

from ragtune.errors import InputError
from ragtune.evaluator.compare import paired_difference
from ragtune.types import Interval, Question

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_WORD = re.compile(r"\d+(?:[.,]\d+)*|\w+")
_ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True, slots=True)
class KnowledgeCount:
    """How many questions a model answers by heart always (`known`), sometimes (`maybe`) and never (`unknown`)."""

    known: int
    maybe: int
    unknown: int


@dataclass(frozen=True, slots=True)
class Forgetting:
    """General knowledge before and after tuning: means over the same n questions, and their paired change.

    `weights` names what was tuned; `change` is after minus before, so that below 0 means forgotten.
    """

    weights: str
    n: int
    before: float
    after: float
    change: Interval


def classify_knowledge(correct: Sequence[Sequence[bool]]) -> KnowledgeCount:
    """Count the questions by how often they were answered right; `correct[i]` has one outcome for each prompt.

    Source: Gekhman et al. 2024, arXiv:2405.05904, section 3, whose prompts also vary in their few-shot examples.
    Simplified: they sample at a temperature as well and call "weakly known" what only a sample gets right; with
    greedy answers alone, as here, such questions are unknown.

    Raises: InputError when a question has no outcome.
    """
    if not all(correct):
        raise InputError("a question has no closed-book outcome; ask every question with at least one prompt")
    known = sum(all(outcomes) for outcomes in correct)
    unknown = sum(not any(outcomes) for outcomes in correct)
    return KnowledgeCount(known, len(correct) - known - unknown, unknown)


def forgetting(weights: str, before: Sequence[float], after: Sequence[float], seed: int = 0) -> Forgetting:
    """Compare a probe's scores, in [0, 1], before and after tuning; equal places belong to the same question.

    The interval is that of `compare.paired_difference` (95 %, BCa bootstrap over the questions).

    Raises: InputError when the numbers of scores differ or there are none.
    """
    if len(before) != len(after):
        raise InputError(f"{len(before)} scores before tuning and {len(after)} after; ask the same questions twice")
    old, new = np.array(before, dtype=np.float64), np.array(after, dtype=np.float64)
    change = paired_difference(new, old, seed=seed)
    return Forgetting(weights, len(old), float(old.mean()), float(new.mean()), change)


def general_probe() -> tuple[Question, ...]:
    """The fixed questions of general knowledge, asked before and after tuning; no document holds their answers."""
    text = (resources.files("ragtune.evaluator") / "general_probe.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    return tuple(
        Question(f"general-{number:02}", line["question"], tuple(line["answers"]), "general", "test")
        for number, line in enumerate(lines, 1)
    )


def states_answer(text: str, answers: Sequence[str]) -> bool:
    """True when an accepted answer stands in the text as whole words, one after the other.

    Letter case, punctuation and English articles don't count, and neither does what else the text says. "80" stands in
    "80 %" but not in "80.5", "1000" in "1,000"; "seven" and "7" are different words, so a question lists both.
    """
    said = _words(text)
    return any(wanted and _occurs(wanted, said) for wanted in map(_words, answers))


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(_THOUSANDS.sub("", text.casefold())) if word not in _ARTICLES]


def _occurs(wanted: Sequence[str], said: Sequence[str]) -> bool:
    return any(said[i : i + len(wanted)] == wanted for i in range(len(said) - len(wanted) + 1))
