"""Metrics over many questions at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def macro_f1(gold: Sequence[str], predicted: Sequence[str]) -> float | None:
    """Mean of the labels' F1 over all labels that occur on either side; None without questions.

    A label that is never right has F1 0. Labels are compared as they stand. Source: Opitz and Burst 2019, "Macro F1 and
    Macro F1", their averaged F1, which is scikit-learn's `f1_score(average="macro")`.
    """
    right = Counter(g for g, p in zip(gold, predicted, strict=True) if g == p)
    seen = Counter(gold) + Counter(predicted)
    if not seen:
        return None
    return sum(2 * right[label] / seen[label] for label in seen) / len(seen)


def abstention(refused: Sequence[bool], answerable: Sequence[bool]) -> tuple[float | None, float | None]:
    """Precision and recall of refusing: the share of refusals that were right, the share of unanswerables refused.

    None where nothing was refused (precision) or everything was answerable (recall).
    """
    right = sum(r and not a for r, a in zip(refused, answerable, strict=True))
    refusals, unanswerable = sum(refused), len(answerable) - sum(answerable)
    return (right / refusals if refusals else None, right / unanswerable if unanswerable else None)
