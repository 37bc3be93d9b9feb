"""Grounding: answers found again word for word, and the sentence around them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragtune.corpus.grounding import ground, sentence_around

PAGE = """\
# Fees

The yearly fee is £1,240.50. Pupils under 12
pay half, says Dr. Alder; guests pay 12 pounds.

- Pay in March, e.g. by card.
- Ask Mr Finch.

| Who | Fee |
|---|---|
| Adult | 40 pounds |
| Pupil | half |
"""


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Mr Finch", "Mr Finch"),
        ("“mr finch.”", "Mr Finch"),
        ("under 12 pay  half", "under 12\npay half"),
        ("£1,240.50", "£1,240.50"),
        ("12 pounds", "12 pounds"),
        ("Adult", "Adult"),
    ],
)
def test_what_stands_there_is_found_as_it_stands(answer: str, found: str) -> None:
    place = ground(answer, PAGE)
    assert place is not None
    assert PAGE[slice(*place)] == found


@pytest.mark.parametrize("answer", ["240.50", "£1,240", "Alde", "Finch Mr", "0 pounds", "", " . ", "Mrs Finch"])
def test_parts_of_words_and_numbers_and_other_words_are_not(answer: str) -> None:
    assert ground(answer, PAGE) is None


def test_a_whole_word_is_preferred_to_an_earlier_part_of_one() -> None:
    assert ground("pier", "The pierage is due at the pier.") == (26, 30)


def test_a_script_without_spaces() -> None:
    text = "博物館は九時に開きます。入場料は五百円です。"
    place = ground("五百円", text)
    assert place is not None
    assert text[slice(*place)] == "五百円"
    assert text[slice(*sentence_around(text, *place))] == "入場料は五百円です。"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("1,240", "The yearly fee is £1,240.50."),
        ("half, says", "Pupils under 12\npay half, says Dr. Alder; guests pay 12 pounds."),
        ("March", "- Pay in March, e.g. by card."),
        ("Finch", "- Ask Mr Finch."),
        ("40 pounds", "| Adult | 40 pounds |"),
        ("Fees", "# Fees"),
        (
            "1,240.50. Pupils",
            "The yearly fee is £1,240.50. Pupils under 12\npay half, says Dr. Alder; guests pay 12 pounds.",
        ),
    ],
)
def test_the_sentence_row_or_item_around_words(words: str, sentence: str) -> None:
    start = PAGE.index(words)
    assert PAGE[slice(*sentence_around(PAGE, start, start + len(words)))] == sentence


LETTERS = st.text(st.sampled_from("abAB12.,:!?-|#£ \n\té日本。"), max_size=60)


@given(LETTERS, LETTERS)
def test_what_is_found_is_the_answer(answer: str, text: str) -> None:
    place = ground(answer, text)
    if place is not None:
        start, end = place
        assert 0 <= start < end <= len(text)
        assert " ".join(text[start:end].split()).lower() in " ".join(answer.split()).lower()


@given(st.lists(st.from_regex(r"[a-zé]{1,4}", fullmatch=True), min_size=1, max_size=12), st.data())
def test_any_run_of_words_is_found(words: list[str], data: st.DataObject) -> None:
    """Whatever white space stands between the words, and at the first place where they stand."""
    start = data.draw(st.integers(0, len(words) - 1))
    end = data.draw(st.integers(start + 1, len(words)))
    gaps = data.draw(st.lists(st.sampled_from([" ", "\n", " \t "]), min_size=len(words), max_size=len(words)))
    text = "".join(word + gap for word, gap in zip(words, gaps, strict=True))
    place = ground(" ".join(words[start:end]), text)
    assert place is not None
    assert text[slice(*place)].split() == words[start:end]
    assert place[0] <= len("".join(word + gap for word, gap in zip(words[:start], gaps, strict=False)))


@given(LETTERS.filter(str.strip), st.data())
def test_the_sentence_holds_its_words(text: str, data: st.DataObject) -> None:
    word = data.draw(st.sampled_from(list(re.finditer(r"\S+", text))))
    start, end = sentence_around(text, word.start(), word.end())
    assert start <= word.start() < word.end() <= end
    assert text[start:end] == text[start:end].strip()
