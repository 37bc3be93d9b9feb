"""Reciprocal rank fusion against numbers worked by hand and an independent formula."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragtune.retriever.fuse import reciprocal_rank

RANKINGS = st.lists(st.lists(st.integers(0, 12), max_size=8, unique=True), max_size=4)


def agrees(fused: list[tuple[str, float]], expected: dict[str, float]) -> bool:
    """Same ids in the same order, scores alike."""
    return [item for item, _ in fused] == list(expected) and dict(fused) == pytest.approx(expected)


def test_worked_numbers() -> None:
    fused = reciprocal_rank([["a", "b", "c"], ["c", "a"]])
    assert agrees(fused, {"a": 1 / 61 + 1 / 62, "c": 1 / 63 + 1 / 61, "b": 1 / 62})


def test_second_in_both_beats_first_in_one() -> None:
    """2 / (k + 2) > 1 / (k + 1) for every k above 0."""
    rankings = [["a", "both"], ["b", "both"]]
    assert agrees(reciprocal_rank(rankings), {"both": 2 / 62, "a": 1 / 61, "b": 1 / 61})
    assert agrees(reciprocal_rank(rankings, k=0), {"a": 1.0, "both": 1.0, "b": 1.0})


def test_ties_keep_the_order_of_appearance() -> None:
    assert [item for item, _ in reciprocal_rank([["x", "y"], ["z", "w"]])] == ["x", "z", "y", "w"]


def test_an_id_counts_once_a_ranking() -> None:
    assert agrees(reciprocal_rank([["a", "a", "b"]]), {"a": 1 / 61, "b": 1 / 62})


def test_nothing_in_nothing_out() -> None:
    assert reciprocal_rank([]) == reciprocal_rank([[], []]) == []


@given(RANKINGS)
def test_scores_are_the_sum_over_rankings_best_first(rankings: list[list[int]]) -> None:
    fused = reciprocal_rank(rankings)
    expected = {
        item: sum(1 / (60 + ranking.index(item) + 1) for ranking in rankings if item in ranking)
        for ranking in rankings
        for item in ranking
    }
    assert dict(fused) == pytest.approx(expected)
    assert len(fused) == len(expected)
    scores = [score for _, score in fused]
    assert scores == sorted(scores, reverse=True)


@given(st.lists(st.integers(), unique=True, max_size=20), st.integers(1, 4))
def test_agreeing_rankings_are_kept(ranking: list[int], times: int) -> None:
    assert [item for item, _ in reciprocal_rank([ranking] * times)] == ranking
