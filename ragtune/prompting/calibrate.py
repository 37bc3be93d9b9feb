"""Labels that a prompt favours whatever the question is, and picking a label without that favour."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

LabelScores = Mapping[str, float]
"""Log-probabilities (nats) of a task's labels after one prompt."""

_LEAST = 1e-9  # keeps the logarithm of a label that no question makes likely finite


def label_prior(scores: Sequence[LabelScores]) -> dict[str, float]:
    """Log of each label's mean probability over some questions, with the probabilities of a question adding up to 1.

    Batch calibration: Zhou et al. 2024, arXiv:2309.17249. It needs questions, but not their answers. Few
    worked examples make a small model prefer a label, often the last one shown; its prior is this preference.
    """
    if not scores:
        return {}
    shares = [_shares(question) for question in scores]
    return {label: math.log(max(_LEAST, math.fsum(s[label] for s in shares) / len(shares))) for label in scores[0]}


def likeliest(scores: LabelScores, prior: LabelScores) -> str:
    """The label whose log-probability exceeds its prior most; the first of equals. No prior: the most likely one."""
    return max(scores, key=lambda label: scores[label] - prior.get(label, 0.0))


def _shares(scores: LabelScores) -> dict[str, float]:
    highest = max(scores.values())
    weights = {label: math.exp(value - highest) for label, value in scores.items()}
    total = math.fsum(weights.values())
    return {label: weight / total for label, weight in weights.items()}
