"""What the answers of a task look like: their format, and with it the metric, the labels and the instructions."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NoReturn

from ragtune.config import DEFAULT_METRICS
from ragtune.corpus.importers.source import About, SourceQuestion
from ragtune.errors import InputError
from ragtune.types import AnswerFormat

TEXT_WORDS = 12
"""Answers of more words than this, by their median, are texts."""

_MOST_LABELS = 40
_LISTED_LABELS = 600
_BYTES_PER_TOKEN = 3
_TOKEN_LIMITS = (8, 1024)
_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|[^\s\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]+")
_NUMBER = re.compile(r"[-+]?[$€£]?\d[\d,. ]*%?")
_INSTRUCTIONS: Mapping[AnswerFormat, tuple[str, str]] = {
    "short": ("Answer the question in a few words.", "Give only the answer, as short as possible."),
    "label": ("Name the category of the text.", "Answer with its name only."),
    "json": ("Turn the text into its JSON record.", "Write only the JSON."),
    "text": ("Answer the question.", "Write only the answer."),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """What the answers of a task look like, and how they are asked for and judged."""

    format: AnswerFormat
    metric: str
    labels: tuple[str, ...]
    instructions: tuple[str, ...]
    max_answer_tokens: int


def find_shape(questions: Sequence[SourceQuestion], about: About) -> Shape:
    """Format, metric, labels, instructions and answer length of a task, from its answers.

    Raises: InputError when no question has an answer.
    """
    answers = [question.answers for question in questions if question.answers]
    if not answers:
        raise InputError("no question of the source has an answer, so nothing could be scored; add answers")
    firsts = [accepted[0] for accepted in answers]
    all_answered = len(answers) == len(questions)
    labels: tuple[str, ...] = ()
    if all_answered and all(_is_record(answer) for accepted in answers for answer in accepted):
        format: AnswerFormat = "json"
    elif labels := _labels(questions, about):
        format = "label"
    else:
        format = "text" if median(len(_WORD.findall(answer)) for answer in firsts) > TEXT_WORDS else "short"
    numbers = format == "short" and all(_NUMBER.fullmatch(answer) for answer in firsts)
    # Half of a number is not half right.
    metric = "exact_match" if numbers else DEFAULT_METRICS[format]
    return Shape(format, metric, labels, _instructions(format, labels, about), _answer_tokens(firsts))


def _labels(questions: Sequence[SourceQuestion], about: About) -> tuple[str, ...]:
    """The closed set that the answers come from, sorted; empty when there is none."""
    used = Counter(answer for question in questions for answer in question.answers)
    answered = [question for question in questions if question.answers]
    if all(question.is_label for question in answered) or (about.labels and used.keys() <= set(about.labels)):
        return tuple(sorted(used.keys() | set(about.labels)))
    closed = 1 < len(used) <= _MOST_LABELS and min(used.values()) > 1
    # Words quoted from documents are no labels, however often they recur.
    plain = all(len(question.answers) == 1 and not question.quotes for question in questions)
    return tuple(sorted(used)) if closed and plain else ()


def _is_record(answer: str) -> bool:
    """True for a JSON object, as strictly as question files are read."""
    try:
        return isinstance(json.loads(answer, object_pairs_hook=_unique, parse_constant=_refuse), dict)
    except (ValueError, RecursionError):
        return False


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return dict(pairs)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _instructions(format: AnswerFormat, labels: Sequence[str], about: About) -> tuple[str, ...]:
    base, ending = _INSTRUCTIONS[format]
    if about.instruction:
        base = about.instruction if about.instruction[-1] in ".!?:" else f"{about.instruction}."
    listed = ", ".join(labels)
    if labels and len(listed) <= _LISTED_LABELS:
        ending = f"Answer with one of these only: {listed}."
    return base, f"{base} {ending}"


def _answer_tokens(answers: Sequence[str]) -> int:
    """Room for 95 of 100 answers, at three UTF-8 bytes a token (prose has more, numbers and JSON fewer)."""
    sizes = sorted(len(answer.encode("utf-8")) for answer in answers)
    tokens = sizes[(len(sizes) - 1) * 95 // 100] / _BYTES_PER_TOKEN
    low, high = _TOKEN_LIMITS
    return max(low, min(high, 8 * -(-int(tokens + 4) // 8)))
