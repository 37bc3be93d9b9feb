"""Checks of training rows before a single step is spent. Errors stop training; warnings are shown.

Each check stands for a fault that others trained on without noticing (see docs/tuning.md for which).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from ragtune.generator.examples import TrainingRow

Encode = Callable[[TrainingRow], tuple[list[int], int]]
"""Row -> (token ids with the target, number of prompt tokens)."""


@dataclass(frozen=True, slots=True)
class LintFinding:
    """One fault, with the row that shows it."""

    level: Literal["error", "warning"]
    check: str
    message: str
    question_id: str


def lint(
    rows: Sequence[TrainingRow], encode: Encode, end_of_turn: int, max_tokens: int, test_questions: Iterable[str]
) -> list[LintFinding]:
    """All findings, errors first. `test_questions` are the texts of dev and test questions."""
    findings = [
        *_check_tokens(rows, encode, end_of_turn, max_tokens),
        *_check_targets(rows),
        *_check_duplicates(rows),
        *_check_leaks(rows, test_questions),
        *_check_gold_positions(rows),
    ]
    return sorted(findings, key=lambda f: f.level)


def _check_tokens(
    rows: Sequence[TrainingRow], encode: Encode, end_of_turn: int, max_tokens: int
) -> Iterable[LintFinding]:
    for row in rows:
        ids, prompt_length = encode(row)
        if end_of_turn not in ids[prompt_length:]:
            message = "the end-of-turn token is not in the loss, so the model would never learn to stop"
            yield LintFinding("error", "end-of-turn", message, row.question_id)
        if len(ids) > max_tokens:
            message = f"{len(ids)} tokens, more than max_tokens = {max_tokens}; use fewer or shorter passages"
            yield LintFinding("error", "length", message, row.question_id)


def _check_targets(rows: Sequence[TrainingRow]) -> Iterable[LintFinding]:
    for row in rows:
        if not row.target.strip():
            yield LintFinding("error", "empty-target", "the target is empty", row.question_id)
        if row.kind == "raft" and row.passage_ids and not row.messages[-1].content.strip():
            yield LintFinding("error", "empty-prompt", "the prompt lost its question", row.question_id)


def _check_duplicates(rows: Sequence[TrainingRow]) -> Iterable[LintFinding]:
    seen: dict[tuple[str, str], str] = {}
    for row in rows:
        key = (row.messages[-1].content, row.target)
        if key in seen:
            message = f"same prompt and target as {seen[key]}"
            yield LintFinding("warning", "duplicate", message, row.question_id)
        seen.setdefault(key, row.question_id)


def _check_leaks(rows: Sequence[TrainingRow], test_questions: Iterable[str]) -> Iterable[LintFinding]:
    held_out = {" ".join(text.lower().split()) for text in test_questions}
    for row in rows:
        # The question ends the prompt, after its passages; it may itself have several paragraphs.
        paragraphs = row.messages[-1].content.lower().split("\n\n")
        if any(" ".join(" ".join(paragraphs[i:]).split()) in held_out for i in range(len(paragraphs))):
            message = "this question is in the dev or test split as well"
            yield LintFinding("error", "leak", message, row.question_id)


def _check_gold_positions(rows: Sequence[TrainingRow], significance: float = 0.001) -> Iterable[LintFinding]:
    """Gold must stand anywhere with equal chance: a chi-square test per number of passages (gold-first is the bug)."""
    for size in sorted({len(r.passage_ids) for r in rows if len(r.gold) == 1 and len(r.passage_ids) > 1}):
        places = [r for r in rows if len(r.gold) == 1 and len(r.passage_ids) == size]
        if len(places) < 5 * size:
            continue
        counts = Counter(r.gold[0] for r in places)
        observed = [counts.get(i, 0) for i in range(size)]
        if stats.chisquare(observed).pvalue < significance:
            message = f"gold is not spread evenly over {size} places: {observed}"
            yield LintFinding("error", "gold-position", message, places[0].question_id)
