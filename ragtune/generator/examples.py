"""Questions (+ retrieved passages) -> training rows, the file that is trained on.

RAFT rows (Zhang et al. 2024, arXiv 2403.10131, section 3): a question, its gold passage among hard negatives that the
serving index itself ranked high, and the answer. What the paper's followers got wrong is held here: k is jittered,
the order is shuffled by a seed, a stated share of rows goes without gold, gold is never cut by the budget.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ragtune.config import TuneConfig
from ragtune.types import Hit, Message, Passage, Question

RowKind = Literal["plain", "raft", "raft-without-gold", "abstain"]
Render = Callable[[Question, Sequence[Passage]], tuple[tuple[Message, ...], str]]
"""Question and passages -> (messages, target); the prompting stage supplies it, so training sees what serving says."""


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One row: a prompt, its target and where its passages came from. `gold` holds places in `passage_ids`, from 0."""

    task: str
    question_id: str
    kind: RowKind
    messages: tuple[Message, ...]
    target: str
    passage_ids: tuple[str, ...] = ()
    gold: tuple[int, ...] = ()
    distractor_ranks: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The row as the JSON object that is written."""
        return asdict(self)


def row_from_json(value: Mapping[str, Any]) -> TrainingRow:
    """A row read back from its JSON object."""
    sequences = ("passage_ids", "gold", "distractor_ranks")
    messages = tuple(Message(**message) for message in value["messages"])
    return TrainingRow(**{**value, "messages": messages, **{name: tuple(value[name]) for name in sequences}})


def plain_rows(questions: Sequence[Question], render: Render) -> list[TrainingRow]:
    """Rows without passages: plain instruction tuning, for the `tune` arm."""
    rows = []
    for question in questions:
        messages, target = render(question, ())
        kind: RowKind = "plain" if question.answerable else "abstain"
        rows.append(TrainingRow(question.task, question.id, kind, messages, target))
    return rows


def raft_rows(
    questions: Sequence[Question],
    hits: Mapping[str, Sequence[Hit]],
    gold: Mapping[str, Sequence[Passage]],
    render: Render,
    config: TuneConfig,
    k: int,
) -> list[TrainingRow]:
    """Rows with passages, one a question, for the `raft` arm.

    `hits[id]` is what the serving index found, best first; `gold[id]` the passages that hold the evidence. A row has
    1..k passages; `share_without_gold` of the rows with evidence lose their gold and teach what `without_gold` says.
    """
    rng = random.Random(config.seed)
    rows = []
    for question in questions:
        golden = list(gold.get(question.id, ()))
        drop = bool(golden) and rng.random() < config.share_without_gold
        size = max(min(len(golden), k), rng.randint(1, k)) if golden else rng.randint(max(1, k // 2), k)
        rows.append(_raft_row(question, hits.get(question.id, ()), golden, size, drop, (render, config, rng)))
    return rows


def _raft_row(
    question: Question,
    hits: Sequence[Hit],
    golden: Sequence[Passage],
    size: int,
    drop: bool,
    tools: tuple[Render, TuneConfig, random.Random],
) -> TrainingRow:
    render, config, rng = tools
    gold_ids = {p.id for p in golden}
    kept = [] if drop else list(golden[:size])
    negatives = [h for h in hits if h.passage.id not in gold_ids and not _gives_away(question, h.passage, drop)]
    chosen = negatives[: size - len(kept)]
    passages = kept + [h.passage for h in chosen]
    rng.shuffle(passages)
    asked = question
    kind: RowKind = "raft" if kept or not question.evidence else "raft-without-gold"
    if drop and config.without_gold == "abstain":
        asked = Question(question.id, question.text, (), question.task, question.split)
    if not asked.answerable:
        kind = "abstain"
    messages, target = render(asked, passages)
    places = tuple(i for i, p in enumerate(passages) if p.id in gold_ids)
    ranks = tuple(h.rank for h in chosen)
    return TrainingRow(question.task, question.id, kind, messages, target, tuple(p.id for p in passages), places, ranks)


def _gives_away(question: Question, passage: Passage, gold_dropped: bool) -> bool:
    """True for a passage that states the answer though it is not gold; it would make an abstention row a lie."""
    return gold_dropped and any(_states(_fold(passage.text), _fold(answer)) for answer in question.answers)


def _states(text: str, answer: str) -> bool:
    # One or two characters stand in many words, so they count only as a word of their own.
    return answer in text if len(answer) > 2 else re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text) is not None


def _fold(text: str) -> str:
    return " ".join(text.lower().split())
