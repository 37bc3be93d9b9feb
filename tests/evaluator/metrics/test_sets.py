import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragtune.evaluator.metrics.sets import abstention, macro_f1

labels = st.sampled_from(["bill", "claim", "praise", "other"])


def _brute_force(gold: list[str], predicted: list[str]) -> float:
    values = []
    for label in set(gold) | set(predicted):
        tp = sum(g == label and p == label for g, p in zip(gold, predicted, strict=True))
        fp = sum(g != label and p == label for g, p in zip(gold, predicted, strict=True))
        fn = sum(g == label and p != label for g, p in zip(gold, predicted, strict=True))
        precision = tp / (tp + fp) if tp + fp else 0.0
        recall = tp / (tp + fn) if tp + fn else 0.0
        values.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return sum(values) / len(values)


@given(st.lists(st.tuples(labels, labels), min_size=1, max_size=20))
def test_macro_f1_against_counting(pairs: list[tuple[str, str]]) -> None:
    gold, predicted = [g for g, _ in pairs], [p for _, p in pairs]
    assert macro_f1(gold, predicted) == pytest.approx(_brute_force(gold, predicted))


def test_macro_f1_by_hand() -> None:
    # bill: tp 2, fp 1 -> 4/5; claim: tp 1, fn 1 -> 2/3; a label never predicted counts as 0
    assert macro_f1(["bill", "bill", "claim", "claim"], ["bill", "bill", "bill", "claim"]) == pytest.approx(
        (4 / 5 + 2 / 3) / 2
    )
    assert macro_f1(["bill", "claim"], ["bill", "bill"]) == pytest.approx((2 / 3 + 0) / 2)
    assert macro_f1([], []) is None


def test_abstention_by_hand() -> None:
    refused = [True, True, True, False, False]
    answerable = [False, True, False, False, True]
    assert abstention(refused, answerable) == pytest.approx((2 / 3, 2 / 3))
    assert abstention([True, False], [False, False]) == (1.0, 0.5)


def test_abstention_is_undefined_without_refusals_or_unanswerable_questions() -> None:
    assert abstention([False, False], [True, False]) == (None, 0.0)
    assert abstention([True, False], [True, True]) == (0.0, None)
    assert abstention([], []) == (None, None)


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        macro_f1(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="shorter"):
        abstention([True, False], [True])
