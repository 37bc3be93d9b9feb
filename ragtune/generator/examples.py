"""Questions (+ retrieved passages) -> training rows, the file that is trained on.

RAFT rows (Zhang et al. 2024, arXiv 2403.10131, section 3): a question, its gold passage among hard negatives that the
serving index itself ranked high, and the answer. What the paper's followers got wrong is held here: k is jittered,
the order is shuffled by a seed, a stated share of rows goes without gold, gold is never cut by the budget.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from ragtune.config import TuneConfig
from ragtune.types import Hit, Message, Passage, Question

RowKind = Literal["plain", "raft", "raft-without-gold", "abstain", "instruction"]
Render = Callable[[Question, Sequence[Passage]], tuple[tuple[Message, ...], str]]
"""Question and passages -> (messages, target); the prompting stage supplies it, so training sees what serving says."""


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One row: a prompt, its target and where its passages came from.

    `gold` holds places in `passage_ids`, from 0. `distractor_ranks` (from 1) and `distractor_scores` are what the
    serving index gave the other passages, in the order in which they stand in the row. `gold_ids` are all passages
    that hold the question's evidence, those left out of the row among them.
    """

    task: str
    question_id: str
    kind: RowKind
    messages: tuple[Message, ...]
    target: str
    passage_ids: tuple[str, ...] = ()
    gold: tuple[int, ...] = ()
    distractor_ranks: tuple[int, ...] = ()
    distractor_scores: tuple[float, ...] = ()
    gold_ids: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The row as the JSON object that is written."""
        return asdict(self)


TooLong = Callable[[TrainingRow, Sequence[Passage]], str]
"""A row and its passages -> what is too long, in words; empty where the row fits."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How questions become rows. `k` is the most passages in a row, as in serving."""

    render: Render
    too_long: TooLong
    config: TuneConfig
    k: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A question without a row, and why."""

    task: str
    question_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Built:
    """Rows in the order of their questions, the questions left out, and how many rows lost distractors to fit."""

    rows: tuple[TrainingRow, ...]
    left_out: tuple[LeftOut, ...] = ()
    shortened: int = 0


_ROW: TypeAdapter[TrainingRow] = TypeAdapter(TrainingRow)
_KEYS = tuple(field.name for field in fields(TrainingRow))


def row_from_json(value: Mapping[str, Any]) -> TrainingRow:
    """A row read back from its JSON object.

    Raises: ValueError saying which key is wrong, what came and what was expected.
    """
    if unknown := [key for key in value if key not in _KEYS]:
        raise ValueError(f"unknown key {unknown[0]!r}; expected {', '.join(_KEYS)}")
    try:
        return _ROW.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise ValueError(f"key {key} is missing") from None
        raise ValueError(f"{key} = {first['input']!r:.60}: {first['msg']}") from None


def join(parts: Iterable[Built]) -> Built:
    """Several builds as one, in their order."""
    parts = list(parts)
    return Built(
        tuple(row for part in parts for row in part.rows),
        tuple(question for part in parts for question in part.left_out),
        sum(part.shortened for part in parts),
    )


def plain_rows(questions: Sequence[Question], recipe: Recipe) -> Built:
    """Closed-book rows: the question alone. They are all rows of the `tune` arm."""
    return _collect(_fitted(_Draft(question, question), recipe) for question in questions)


def raft_rows(
    questions: Sequence[Question],
    hits: Mapping[str, Sequence[Hit]],
    gold: Mapping[str, Sequence[Passage]],
    recipe: Recipe,
) -> Built:
    """Rows with passages, one a question, for the `raft` arm.

    `hits[id]` is what the serving index found, best first; `gold[id]` the passages that hold the evidence. A row has
    1..k passages; `share_without_gold` of the rows with evidence lose their gold and teach what `without_gold` says.
    `share_closed_book` of the questions are asked without passages.
    """
    rng = random.Random(recipe.config.seed)
    closed = _closed_book(questions, recipe.config)
    drafts = [
        _Draft(question, question)
        if question.id in closed
        else _draft(question, hits.get(question.id, ()), tuple(gold.get(question.id, ())), recipe, rng)
        for question in questions
    ]
    return _collect(_fitted(draft, recipe) for draft in drafts)


def instruction_rows(rows: Sequence[TrainingRow], others: int, recipe: Recipe) -> Built:
    """As many of `rows`, drawn by seed and in their order, as make up `share_instructions` beside `others` rows.

    All of them where there are too few. A row that is too long counts as left out.
    """
    kept = _collect(_measured(row, (), recipe) for row in rows)
    share = recipe.config.share_instructions
    wanted = round(others * share / (1 - share))
    places = range(len(kept.rows))
    drawn = sorted(random.Random(recipe.config.seed).sample(places, min(wanted, len(places))))
    return replace(kept, rows=tuple(kept.rows[i] for i in drawn))


def _closed_book(questions: Sequence[Question], config: TuneConfig) -> set[str]:
    """The ids of the questions asked without passages; draws of their own, so that the other rows stay as they are."""
    count = round(config.share_closed_book * len(questions))
    return set(random.Random(config.seed).sample([q.id for q in questions], count))


@dataclass(frozen=True, slots=True)
class _Draft:
    """A row in the making. `asked` is what the target answers; `distractors` stand in `order`, too, worst rank last."""

    question: Question
    asked: Question
    order: tuple[Passage, ...] = ()
    distractors: tuple[Hit, ...] = ()
    gold_ids: tuple[str, ...] = ()


def _draft(
    question: Question, hits: Sequence[Hit], golden: tuple[Passage, ...], recipe: Recipe, rng: random.Random
) -> _Draft:
    config, k = recipe.config, recipe.k
    gold_ids = tuple(p.id for p in golden)
    drop = bool(golden) and rng.random() < config.share_without_gold
    size = max(min(len(golden), k), rng.randint(1, k)) if golden else rng.randint(max(1, k // 2), k)
    others = [hit for hit in hits if hit.passage.id not in gold_ids]
    # A passage that states the answer, though it is not gold, would make a row without gold a lie.
    silent = [hit for hit in others if not states(hit.passage.text, question.answers)]
    drop = drop and bool(silent)
    kept = () if drop else golden[:size]
    distractors = tuple((silent if drop else others)[: size - len(kept)])
    order = [*kept, *(hit.passage for hit in distractors)]
    rng.shuffle(order)
    asked = replace(question, answers=(), evidence=()) if drop and config.without_gold == "abstain" else question
    return _Draft(question, asked, tuple(order), distractors, gold_ids)


def _fitted(draft: _Draft, recipe: Recipe) -> tuple[TrainingRow, bool] | LeftOut:
    """The row with as many distractors, best rank first, as fit; and whether some had to go."""
    for count in range(len(draft.distractors), -1, -1):
        row, passages = _row(draft, draft.distractors[:count], recipe.render)
        fitted = _measured(row, passages, recipe)
        if not isinstance(fitted, LeftOut):
            break
    if row.kind == "abstain" and draft.gold_ids and not row.passage_ids:
        reason = "no passage fits beside the question, and without one there is nothing to abstain from"
        return LeftOut(row.task, row.question_id, reason)
    return fitted if isinstance(fitted, LeftOut) else (row, count < len(draft.distractors))


def _measured(row: TrainingRow, passages: Sequence[Passage], recipe: Recipe) -> tuple[TrainingRow, bool] | LeftOut:
    reason = recipe.too_long(row, passages)
    return LeftOut(row.task, row.question_id, reason) if reason else (row, False)


def _row(draft: _Draft, distractors: Sequence[Hit], render: Render) -> tuple[TrainingRow, tuple[Passage, ...]]:
    """The row of a draft with some of its distractors, and its passages."""
    used = {hit.passage.id: hit for hit in distractors}
    passages = tuple(p for p in draft.order if p.id in used or p.id in draft.gold_ids)
    messages, target = render(draft.asked, passages)
    gold = tuple(i for i, p in enumerate(passages) if p.id in draft.gold_ids)
    standing = [used[p.id] for p in passages if p.id in used]
    row = TrainingRow(
        draft.question.task,
        draft.question.id,
        _kind(draft.asked, passages, gold),
        messages,
        target,
        tuple(p.id for p in passages),
        gold,
        tuple(hit.rank for hit in standing),
        tuple(hit.score for hit in standing),
        draft.gold_ids,
    )
    return row, passages


def _kind(asked: Question, passages: Sequence[Passage], gold: Sequence[int]) -> RowKind:
    if not asked.answerable:
        return "abstain"
    if not passages:
        return "plain"
    return "raft" if gold or not asked.evidence else "raft-without-gold"


def _collect(results: Iterable[tuple[TrainingRow, bool] | LeftOut]) -> Built:
    results = list(results)
    made = [result for result in results if not isinstance(result, LeftOut)]
    left_out = tuple(result for result in results if isinstance(result, LeftOut))
    return Built(tuple(row for row, _ in made), left_out, sum(shortened for _, shortened in made))


def states(text: str, answers: Iterable[str]) -> bool:
    """True when one of the answers stands in the text; case and white space do not count."""
    folded = _fold(text)
    return any(_stands_in(folded, _fold(answer)) for answer in answers)


def _stands_in(text: str, answer: str) -> bool:
    # One or two characters stand in many words, so they count only as a word of their own.
    return answer in text if len(answer) > 2 else re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text) is not None


def _fold(text: str) -> str:
    return " ".join(text.lower().split())
