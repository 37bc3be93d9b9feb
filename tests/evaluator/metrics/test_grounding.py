import pytest

from ragtune.evaluator.metrics.grounding import citation_precision, citation_recall
from ragtune.types import Passage, Span


def passage(document: str, start: int, end: int) -> Passage:
    return Passage(f"{document}:{start}", document, "x" * (end - start), start, end)


EVIDENCE = [Span("a.md", 100, 140, "x" * 40), Span("b.md", 0, 20, "x" * 20)]


@pytest.mark.parametrize(
    ("cited", "precision", "recall"),
    [
        ([passage("a.md", 0, 200)], 1.0, 0.5),
        ([passage("a.md", 0, 120)], 1.0, 0.5),  # exactly half of the span
        ([passage("a.md", 0, 119)], 0.0, 0.0),  # less than half
        ([passage("c.md", 0, 200)], 0.0, 0.0),  # right offsets, wrong document
        ([passage("a.md", 0, 200), passage("b.md", 0, 50), passage("b.md", 50, 90)], 2 / 3, 1.0),
        ([passage("a.md", 90, 130), passage("a.md", 100, 200)], 1.0, 0.5),  # one span, cited twice
        ([], None, 0.0),
    ],
)
def test_citations_by_hand(cited: list[Passage], precision: float | None, recall: float) -> None:
    assert citation_precision(cited, EVIDENCE) == (None if precision is None else pytest.approx(precision))
    assert citation_recall(cited, EVIDENCE) == pytest.approx(recall)


def test_without_evidence_there_is_no_recall_and_every_citation_is_wrong() -> None:
    assert citation_recall([passage("a.md", 0, 9)], []) is None
    assert citation_precision([passage("a.md", 0, 9)], []) == 0.0
