"""Checks of training rows before a single step is spent. Errors stop training; warnings are shown.

Each check stands for a fault that others trained on without noticing (docs/training-data.md says which). Here are the
checks of rows as tokens and as text; `lint_context.py` holds those of the passages in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from jinja2 import TemplateError

from ragtune.errors import TrainingError
from ragtune.generator.examples import TrainingRow
from ragtune.generator.findings import Known, LintFinding, Numbered, Reading, counted, finding, folded
from ragtune.generator.lint_context import check_context
from ragtune.types import Question


def lint(rows: Sequence[TrainingRow], reading: Reading, known: Known | None = None) -> list[LintFinding]:
    """All findings, errors first."""
    known = known or Known()
    numbered = list(enumerate(rows, 1))
    findings = [
        *_check_tokens(numbered, reading),
        *_check_texts(numbered),
        *_check_duplicates(numbered),
        *_check_leaks(numbered, known),
        *check_context(numbered, known),
    ]
    return sorted(findings, key=lambda f: f.level)


def compare_builds(rows: Sequence[TrainingRow], again: Sequence[TrainingRow]) -> list[LintFinding]:
    """An error for the first row in which two builds from one seed differ: something was drawn without the seed."""
    for number, (one, other) in enumerate(zip(rows, again, strict=False), 1):
        if one != other:
            return [finding("error", "seed", "a second build with the same seed gives another row", (number, one))]
    if len(rows) != len(again):
        longer = max(rows, again, key=len)
        number = min(len(rows), len(again)) + 1
        message = f"two builds with the same seed give {len(rows)} and {len(again)} rows"
        return [finding("error", "seed", message, (number, longer[number - 1]))]
    return []


def _check_tokens(rows: Numbered, reading: Reading) -> Iterable[LintFinding]:
    otherwise = []
    for number, row in rows:
        try:
            ids, prompt_length = reading.encode(row)
            whole = reading.template(row)
        except (TrainingError, TemplateError) as error:
            yield finding("error", "template", f"the chat template cannot be used: {error}", (number, row))
            continue
        if reading.end_of_turn not in ids[prompt_length:]:
            message = "the end-of-turn token is not in the loss, so the model would never learn to stop"
            yield finding("error", "end-of-turn", message, (number, row))
        elif whole[: len(ids)] != ids:
            otherwise.append((number, row))
        if len(ids) > reading.limit:
            message = f"{len(ids)} tokens, more than the {reading.limit} that max_tokens and the base model allow"
            yield finding("error", "length", f"{message}; use fewer or shorter passages", (number, row))
    message = "the chat template would write answer and end of turn with other tokens than training does"
    yield from counted("warning", "template", message, otherwise, rows)


def _check_texts(rows: Numbered) -> Iterable[LintFinding]:
    for number, row in rows:
        if not row.target.strip():
            yield finding("error", "empty-target", "the target is empty", (number, row))
        if not row.messages or row.messages[-1].role != "user" or not row.messages[-1].content.strip():
            yield finding("error", "empty-prompt", "the prompt does not end with a question", (number, row))


def _check_duplicates(rows: Numbered) -> Iterable[LintFinding]:
    seen: dict[tuple[object, str], str] = {}
    for number, row in rows:
        key = (row.messages, row.target)
        if key in seen:
            message = f"same prompt and target as {seen[key]}"
            yield finding("warning", "duplicate", message, (number, row))
        seen.setdefault(key, row.question_id)


def _check_leaks(rows: Numbered, known: Known) -> Iterable[LintFinding]:
    held_out = {folded(question.text): question for question in known.held_out.values()}
    overlapping = []
    for number, row in rows:
        leaked = _leaked(row, known.held_out, held_out)
        documents = {known.passages[i].document_id for i in row.gold_ids if i in known.passages}
        if leaked is not None:
            message = f"this question is in the {leaked.split} split as well ({leaked.task}/{leaked.id})"
            yield finding("error", "leak", message, (number, row))
        elif documents & known.private.get(row.task, frozenset()):
            overlapping.append((number, row))
    message = "the evidence is from a document that dev or test questions draw on, too; split by document"
    yield from counted("warning", "leak", message, overlapping, rows)


def _leaked(row: TrainingRow, by_id: Mapping[str, Question], by_text: Mapping[str, Question]) -> Question | None:
    """The held-out question that a row asks.

    The question ends the prompt, after its passages; it may itself have several paragraphs.
    """
    same = by_id.get(row.question_id)
    if same is not None and same.task == row.task:
        return same
    paragraphs = row.messages[-1].content.split("\n\n") if row.messages else []
    ends = (folded(" ".join(paragraphs[i:])) for i in range(len(paragraphs)))
    return next((by_text[end] for end in ends if end in by_text), None)
