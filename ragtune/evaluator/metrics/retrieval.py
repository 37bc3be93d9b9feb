"""How well a ranking (best passage first) finds the gold evidence. None when there is no evidence to find.

A span counts once, at the first passage that covers it (`Span.overlaps`), however many passages repeat it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ragtune.types import Passage, Span


def recall_at_k(passages: Sequence[Passage], evidence: Sequence[Span], k: int) -> float | None:
    """Share of the evidence spans that the first `k` passages cover."""
    if not evidence:
        return None
    return sum(rank <= k for rank in _first_ranks(passages, evidence)) / len(evidence)


def reciprocal_rank(passages: Sequence[Passage], evidence: Sequence[Span]) -> float | None:
    """1 / rank of the first passage that covers a span; 0.0 when none does."""
    if not evidence:
        return None
    return 1.0 / min(_first_ranks(passages, evidence))


def ndcg_at_k(passages: Sequence[Passage], evidence: Sequence[Span], k: int) -> float | None:
    """Normalised discounted cumulative gain with gain 1 for a passage that covers a span not covered above it.

    The ideal ranking starts with all those passages and one more for each span that none covers, so 1.0 means that
    everything was found in as few places as these passages allow. Source: Järvelin and Kekäläinen 2002, discount
    log2(1 + rank).
    """
    if not evidence:
        return None
    ranks = _first_ranks(passages, evidence)
    useful = {rank for rank in ranks if rank <= len(passages)}
    ideal = len(useful) + sum(rank == math.inf for rank in ranks)
    return _discounted(rank for rank in useful if rank <= k) / _discounted(range(1, min(k, ideal) + 1))


def _first_ranks(passages: Sequence[Passage], evidence: Sequence[Span]) -> list[float]:
    """For each span the rank, from 1, of the first passage that covers it; infinity when none does."""
    return [
        next((rank for rank, passage in enumerate(passages, 1) if span.overlaps(passage)), math.inf)
        for span in evidence
    ]


def _discounted(ranks: Iterable[float]) -> float:
    return sum(1.0 / math.log2(1.0 + rank) for rank in ranks)
