import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragtune.evaluator.metrics.retrieval import ndcg_at_k, recall_at_k, reciprocal_rank
from ragtune.types import Passage, Span

# ten passages of ten characters in one document; spans lie inside one passage each unless said otherwise
SPANS = [Span("d", 0, 10, "x" * 10), Span("d", 52, 58, "x" * 6)]


def ranking(*numbers: int) -> list[Passage]:
    return [Passage(f"{n}", "d", "x" * 10, 10 * n, 10 * n + 10) for n in numbers]


@pytest.mark.parametrize(
    ("numbers", "k", "recall", "rr", "ndcg"),
    [
        ([0, 5, 9], 3, 1.0, 1.0, 1.0),
        ([9, 5, 0], 3, 1.0, 0.5, (1 / math.log2(3) + 1 / math.log2(4)) / (1 + 1 / math.log2(3))),
        ([9, 5, 0], 2, 0.5, 0.5, (1 / math.log2(3)) / (1 + 1 / math.log2(3))),
        ([5, 5, 5], 3, 0.5, 1.0, 1 / (1 + 1 / math.log2(3))),  # found three times, counted once
        ([9, 8, 7], 3, 0.0, 0.0, 0.0),
        ([], 3, 0.0, 0.0, 0.0),
        ([9, 0, 5], 1, 0.0, 0.5, 0.0),
    ],
)
def test_two_spans_by_hand(numbers: list[int], k: int, recall: float, rr: float, ndcg: float) -> None:
    passages = ranking(*numbers)
    assert recall_at_k(passages, SPANS, k) == pytest.approx(recall)
    assert reciprocal_rank(passages, SPANS) == pytest.approx(rr)
    assert ndcg_at_k(passages, SPANS, k) == pytest.approx(ndcg)


def test_one_passage_with_both_spans_is_a_perfect_ranking() -> None:
    both = [Span("d", 0, 4, "xxxx"), Span("d", 5, 9, "xxxx")]
    assert recall_at_k(ranking(0), both, 1) == ndcg_at_k(ranking(0, 3), both, 2) == 1.0


def test_without_evidence_nothing_is_defined() -> None:
    assert recall_at_k(ranking(0), [], 1) is reciprocal_rank(ranking(0), []) is ndcg_at_k(ranking(0), [], 1) is None


@given(st.permutations(range(8)), st.sets(st.integers(0, 9), min_size=1, max_size=5), st.integers(1, 9))
def test_one_span_a_passage_against_the_definitions(order: list[int], gold: set[int], k: int) -> None:
    spans = [Span("d", 10 * n, 10 * n + 10, "x" * 10) for n in sorted(gold)]
    hits = [n in gold for n in order]
    found = [1 / math.log2(i + 2) for i, hit in enumerate(hits[:k]) if hit]
    ideal = [1 / math.log2(i + 2) for i in range(min(k, len(gold)))]
    passages = ranking(*order)
    assert recall_at_k(passages, spans, k) == pytest.approx(sum(hits[:k]) / len(gold))
    assert reciprocal_rank(passages, spans) == pytest.approx(1 / (hits.index(True) + 1) if any(hits) else 0.0)
    assert ndcg_at_k(passages, spans, k) == pytest.approx(sum(found) / sum(ideal))
