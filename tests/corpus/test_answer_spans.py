"""Possible answers: which kinds are seen in a text, and how they are drawn."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from ragtune.corpus.answer_spans import answer_spans, pick_spans

TEXT = """\
## Prices from May 2024

On 3 May 2025 the first boat leaves at 07:15 and costs £12.50, or 20% less for pupils. Capt. Mara Quill takes 1,200 kg
of freight and two dogs. Ask for a day ticket.

| Who | Fee |
|---|---|
| Adult | 40 pounds |
"""


def found(text: str) -> list[tuple[str, str]]:
    return [(span.kind, text[span.start : span.end]) for span in answer_spans(text)]


def test_kinds() -> None:
    assert found(TEXT) == [
        ("date", "3 May 2025"),
        ("time", "07:15"),
        ("amount", "£12.50"),
        ("amount", "20%"),
        ("name", "Mara Quill"),
        ("amount", "1,200 kg"),
        ("thing", "a day ticket"),
        ("amount", "40 pounds"),
    ]


def test_a_table_without_its_heading_row_gives_nothing() -> None:
    assert found("| Adult | 40 pounds |\n| Pupil | 20 pounds |") == []


def test_years() -> None:
    assert found("It began in 2023 after 2010 boats were sold.") == [("date", "2023"), ("amount", "2010 boats")]


def test_what_stands_there_twice_is_no_answer() -> None:
    assert found("It opens at 07:15 and at 08:15, on holidays at 07:15.") == [("time", "08:15")]


def test_a_capital_at_the_beginning_makes_no_name_but_two_do() -> None:
    text = "Boats are wet. Mrs Alder swims with Finch. Ask Capt. Quill."
    assert found(text) == [("name", "Mrs Alder"), ("name", "Finch")]


def test_drawing_spreads_over_sentences_and_takes_figures_first() -> None:
    text = "It costs £1 at 07:15 or £2. It opens at 09:30 near Veyport Quay. The bell of Finch rings."
    for seed in range(20):
        kinds = [span.kind for span in pick_spans(text, 6, random.Random(seed))]
        first, second, third = pick_spans(text, 3, random.Random(seed))
        assert {first.start < 27, second.start < 27} == {True, False}, "two sentences"
        assert "name" not in (first.kind, second.kind)
        assert text[third.start : third.end] == "Finch", "the third sentence has nothing else"
        assert sorted(kinds) == ["amount", "amount", "name", "name", "time", "time"]
    assert pick_spans(text, 3, random.Random(1)) == pick_spans(text, 3, random.Random(1))
    assert pick_spans(text, 9, random.Random(1))[:3] == pick_spans(text, 3, random.Random(1))
    assert len(pick_spans(text, 9, random.Random(1))) == len(answer_spans(text)) == 6


@given(st.text(st.sampled_from("aAb1237:.,£%| -\n#"), max_size=120))
def test_spans_stand_apart_and_once(text: str) -> None:
    spans = answer_spans(text)
    assert all(one.end <= other.start for one, other in itertools.pairwise(spans))
    for span in spans:
        words = text[span.start : span.end]
        assert words == words.strip() != ""
        assert "\n" not in words
