"""Do the citations point at the gold evidence? A passage supports a span as `Span.overlaps` says (half of it inside).

Precision and recall of citations after Gao et al. 2023, ALCE, section 4, with gold spans in the place of their
entailment model.
"""

from __future__ import annotations

from collections.abc import Sequence

from ragtune.types import Passage, Span


def citation_precision(cited: Sequence[Passage], evidence: Sequence[Span]) -> float | None:
    """Share of the cited passages that support some evidence span; None when nothing is cited."""
    if not cited:
        return None
    return sum(any(span.overlaps(passage) for span in evidence) for passage in cited) / len(cited)


def citation_recall(cited: Sequence[Passage], evidence: Sequence[Span]) -> float | None:
    """Share of the evidence spans that some cited passage supports; None without evidence."""
    if not evidence:
        return None
    return sum(any(span.overlaps(passage) for passage in cited) for span in evidence) / len(evidence)
