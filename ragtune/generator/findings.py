"""What lint finds in training rows, and what it holds them against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ragtune.generator.examples import TrainingRow
from ragtune.types import Passage, Question

Level = Literal["error", "warning"]
Numbered = Sequence[tuple[int, TrainingRow]]
"""Rows with their numbers, which are their lines in the file, from 1."""
_EXCERPT = 100


@dataclass(frozen=True, slots=True)
class LintFinding:
    """One fault, with the first row that shows it: its number (the line in the file, from 1) and how it reads."""

    level: Level
    check: str
    message: str
    question_id: str
    number: int
    excerpt: str


@dataclass(frozen=True, slots=True)
class Reading:
    """How training reads a row. Both functions give token ids; either may raise TrainingError or TemplateError.

    `encode` gives what is trained on (prompt, target, end of turn) and the number of prompt tokens, `template` what the
    chat template alone makes of the finished chat. `limit` is the most tokens that training or the model can take.
    """

    encode: Callable[[TrainingRow], tuple[list[int], int]]
    template: Callable[[TrainingRow], list[int]]
    end_of_turn: int
    limit: int


@dataclass(frozen=True, slots=True)
class Known:
    """What a project knows that its rows can be held against; what is left empty is not checked.

    `train` and `held_out` are questions by id (`held_out`: of the dev and test splits), `passages` those of the serving
    index by id. `shares`: per task the stated share of rows without gold. `private`: per task the documents that only
    dev and test questions may draw on. `ranks`: for some questions, by id, the rank of each passage that the serving
    index finds.
    """

    train: Mapping[str, Question] = field(default_factory=dict)
    held_out: Mapping[str, Question] = field(default_factory=dict)
    passages: Mapping[str, Passage] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    private: Mapping[str, frozenset[str]] = field(default_factory=dict)
    ranks: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def finding(level: Level, check: str, message: str, place: tuple[int, TrainingRow]) -> LintFinding:
    """A finding about one row, which it shows."""
    number, row = place
    return LintFinding(level, check, message, row.question_id, number, excerpt(row))


def counted(level: Level, check: str, message: str, faulty: Numbered, of: Numbered) -> list[LintFinding]:
    """One finding about all rows with the same fault (none without such rows), with their count; it shows the first."""
    return [finding(level, check, f"in {len(faulty)} of {len(of)} rows {message}", faulty[0])] if faulty else []


def excerpt(row: TrainingRow) -> str:
    """The end of the prompt, where the question stands, and the beginning of the target, in one line."""
    prompt = " ".join(row.messages[-1].content.split()) if row.messages else ""
    target = " ".join(row.target.split())
    asked = prompt if len(prompt) <= _EXCERPT else f"…{prompt[-_EXCERPT:]}"
    answered = target if len(target) <= _EXCERPT else f"{target[:_EXCERPT]}…"
    return f'"{asked}" -> "{answered}"'


def folded(text: str) -> str:
    """Lower case, one space between words."""
    return " ".join(text.lower().split())
