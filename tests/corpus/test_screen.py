"""Screening: what the words of a question show, and which questions repeat each other."""

from __future__ import annotations

import numpy as np
import pytest

from ragtune.corpus.screen import REASONS, Distinct, fault_of
from ragtune.testing import HashEmbedder

SOURCE = "Rules > Boats\nMembers may keep two boats at the lake, which costs £1,240 a year."


@pytest.mark.parametrize(
    ("question", "fault"),
    [
        ("How much does a place at the lake cost a year?", None),
        ("What costs much?", "length"),
        ("How " + "many boats and oars " * 8 + "are there?", "length"),
        ("Who decides who decides who decides who decides who decides?", "babble"),
        ("Why does a place at the lake cost £1,240?", "answer-given"),
        ("According to the text, what does a place cost?", "speaks-of-text"),
        ("Members may keep ____ boats at the lake?", "speaks-of-text"),
        ("What is the capital of France?", "off-topic"),
    ],
)
def test_faults(question: str, fault: str | None) -> None:
    assert fault_of(question, "£1,240", SOURCE) == fault
    assert fault is None or fault in REASONS


def test_a_text_that_the_documents_are_about_may_be_spoken_of() -> None:
    assert (
        fault_of("Who checks the text of a notice?", "the warden", "A notice's text is checked by the warden.") is None
    )


def test_repeated_questions() -> None:
    embedder = HashEmbedder()
    questions = ["Who keeps the key?", "How deep is the lake in winter?"]
    distinct = Distinct.with_room(3, embedder.dimension, 0.9)
    for question, vector in zip(questions, embedder.embed(questions), strict=True):
        assert distinct.fault_of(question, vector) is None
        distinct.add(question, vector)
    asked = ["who keeps  the key", "How deep is the lake in the winter?", "How deep is the sea in winter?"]
    cosines = embedder.embed(asked) @ embedder.embed(questions).T
    assert cosines[1, 1] > 0.9 > cosines[2, 1]
    faults = [distinct.fault_of(q, v) for q, v in zip(asked, embedder.embed(asked), strict=True)]
    assert faults == ["duplicate", "near-duplicate", None]


def test_the_threshold_counts() -> None:
    distinct = Distinct.with_room(1, 2, 0.5)
    distinct.add("one", np.array([1, 0], dtype=np.float32))
    at = np.array([0.5, 0.75**0.5], dtype=np.float32)
    assert distinct.fault_of("other", at) == "near-duplicate"
    assert Distinct(0.51, distinct.vectors, distinct.texts, 1).fault_of("other", at) is None
