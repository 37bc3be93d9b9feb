"""JSON objects, as `dataclasses.asdict` writes them, back to the nouns of `types`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ragtune.types import ArmSummary, Comparison, Interval, Passage, Question, Row, Span, Verdict


def row_from_json(value: Mapping[str, Any]) -> Row:
    """A scored row."""
    return Row(**{**value, "passage_ids": tuple(value["passage_ids"]), "cited_ids": tuple(value["cited_ids"])})


def question_from_json(value: Mapping[str, Any]) -> Question:
    """A question with its evidence."""
    evidence = tuple(Span(**span) for span in value["evidence"])
    return Question(**{**value, "answers": tuple(value["answers"]), "evidence": evidence})


def passage_from_json(value: Mapping[str, Any]) -> Passage:
    """A passage."""
    return Passage(**{**value, "headings": tuple(value["headings"])})


def verdict_from_json(value: Mapping[str, Any]) -> Verdict:
    """A verdict with its arms and comparisons."""
    arms = tuple(ArmSummary(**{**arm, "score": Interval(**arm["score"])}) for arm in value["arms"])
    comparisons = tuple(
        Comparison(**{**pair, "difference": Interval(**pair["difference"])}) for pair in value["comparisons"]
    )
    return Verdict(**{**value, "arms": arms, "comparisons": comparisons})
