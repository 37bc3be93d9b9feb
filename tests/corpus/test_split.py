"""Splitting: the guarantees as properties over random text, the policy on small documents worked by hand."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ragtune.corpus.split import split_document
from ragtune.errors import InputError
from ragtune.types import Document, Passage

if TYPE_CHECKING:
    from ragtune.retriever.embed import SentenceEmbedder


def words(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(r"\S+", text)]


def words_and_marks(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]


def byte_level(text: str) -> list[tuple[int, int]]:
    """As GPT-2's: a token for each UTF-8 byte of a rare character, all with that character's offsets."""
    return [(i, i + 1) for i, char in enumerate(text) for _ in char.encode("utf-8", "surrogatepass")]


def leading_space(text: str) -> list[tuple[int, int]]:
    """As RoBERTa's: a token takes the space before it; and one more where a text begins with none."""
    extra = [(0, 1)] if text[:1].strip() else []
    return extra + [match.span() for match in re.finditer(r" ?\w{1,4}|[^\w\s]", text)]


def unknown_long_words(text: str) -> list[tuple[int, int]]:
    """As WordPiece: a word over 8 characters is one unknown token, a shorter one is a token a character."""
    spans = []
    for match in re.finditer(r"\S+", text):
        start, end = match.span()
        spans += [(start, end)] if end - start > 8 else [(i, i + 1) for i in range(start, end)]
    return spans


def document(text: str, title: str = "Doc") -> Document:
    return Document("d.md", text, title, "0")


def texts(passages: list[Passage]) -> list[str]:
    return [passage.text for passage in passages]


markdown = st.lists(
    st.one_of(
        st.sampled_from(
            ["# A", "## B\n", "### C c c", "```", "\n", "- item", "a | b", "One. Two! three? Four", "。！"]
        ),
        st.text(max_size=40),
        st.text(alphabet="ab .\n", max_size=60),
        st.text(alphabet="日本語。\u0301\u200b\U0001f600\u00a0\u2028 ", max_size=20),
    ),
    max_size=14,
).map("\n".join)
TOKENIZERS = [words, words_and_marks, byte_level, leading_space, unknown_long_words]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(text=markdown, max_tokens=st.integers(5, 30), overlap=st.integers(0, 4))
def test_guarantees(
    tokenizer: Callable[[str], list[tuple[int, int]]], text: str, max_tokens: int, overlap: int
) -> None:
    passages = split_document(document(text), tokenizer, max_tokens, overlap)
    covered = set()
    for passage in passages:
        assert passage.text == text[passage.start : passage.end]
        assert passage.text == passage.text.strip() != ""
        assert len(tokenizer(passage.text)) <= max_tokens
        assert passage.id == f"d.md#{passage.start}-{passage.end}"
        covered.update(range(passage.start, passage.end))
    assert all(i in covered or char.isspace() for i, char in enumerate(text))
    for one, two in itertools.pairwise(passages):
        assert one.start < two.start and one.end < two.end
        assert overlap or one.end <= two.start
    assert split_document(document(text), tokenizer, max_tokens, overlap) == passages


@settings(max_examples=60, deadline=None)
@given(text=markdown, max_tokens=st.integers(16, 60))
def test_a_heading_is_never_alone_unless_nothing_follows(text: str, max_tokens: int) -> None:
    # Tokens are words, and a word always fits beside a heading, which is short here; lines of code are no headings.
    text = re.sub(r"(?m)^( {0,3}#+[ \t]).{20,}$", r"\1x", text.replace("```", ""))
    heading = re.compile(r" {0,3}#{1,6}([ \t]|$)")
    for one, two in itertools.pairwise(split_document(document(text), words, max_tokens)):
        lines = [line for line in one.text.split("\n") if line.strip()]
        # A run of headings may itself be too long for a passage; its last one still stands with what follows.
        assert not all(heading.match(line) for line in lines) or heading.match(two.text)


def test_a_section_a_passage_with_its_path() -> None:
    text = (
        "# Pets\n\n"
        + "Dogs are welcome on board. " * 3
        + "\n\n## Fees\n\nA dog pays five pounds on each leg of the trip."
    )
    first, second = split_document(document(text), words, 40)
    assert first.text.startswith("# Pets\n\nDogs") and first.headings == ("Pets",)
    assert second.text.startswith("## Fees\n\nA dog") and second.headings == ("Pets", "Fees")
    assert second.context == "Pets > Fees"


def test_path_follows_the_levels() -> None:
    body = "one two three four five six seven eight nine ten\n"
    text = f"# A\n{body}## B\n{body}### C\n{body}## D\n{body}# E\n{body}"
    paths = [passage.headings for passage in split_document(document(text), words, 13)]
    assert paths == [("A",), ("A", "B"), ("A", "B", "C"), ("A", "D"), ("E",)]


def test_title_stands_in_for_a_missing_level_1_heading() -> None:
    body = "one two three four five six seven eight nine ten\n"
    passages = split_document(document(f"{body}## B\n{body}", title="Name"), words, 12)
    assert [passage.headings for passage in passages] == [("Name",), ("Name", "B")]
    (passage,) = split_document(document(f"## B\n{body}", title="B"), words, 12)
    assert passage.headings == ("B",)


def test_no_heading_inside_a_code_fence() -> None:
    (passage,) = split_document(document("# A\n\n```\n# comment\n```\n\ntext"), words, 40)
    assert passage.headings == ("A",)


def test_tiny_sections_share_a_passage() -> None:
    text = "# Contacts\n\nCall.\n\n## Office\n\nRing 12.\n\n## Night\n\nRing 34.\n\n## Rules\n\n" + "word " * 30
    passages = split_document(document(text), words, 40)
    # 1/8 of 40 is 5 tokens: Contacts (3) joins Office (4), which makes 7; Night (4) and Rules (32) fit together.
    assert [passage.headings for passage in passages] == [("Contacts",), ("Contacts",)]
    assert passages[0].text.endswith("Ring 12.") and passages[1].text.startswith("## Night")


def test_a_tiny_section_stays_alone_when_the_next_does_not_fit_beside_it() -> None:
    passages = split_document(document("# A\n\nTiny.\n\n# B\n\n" + "word " * 38), words, 40)
    assert [(passage.headings, passage.text[:3]) for passage in passages] == [(("A",), "# A"), (("B",), "# B")]


def test_headings_in_a_row_belong_to_what_follows() -> None:
    (passage,) = split_document(document("# A\n\n## B\n\n### C\n\n" + "word " * 20), words, 30)
    assert passage.headings == ("A", "B", "C") and passage.text.startswith("# A")


def test_a_long_run_of_headings_keeps_its_last_one_with_the_body() -> None:
    assert texts(split_document(document("# A a\n# B b\n# C c\nbody of it"), words, 9)) == [
        "# A a\n# B b",
        "# C c\nbody of it",
    ]


def test_no_word_is_torn_to_give_a_heading_company() -> None:
    assert texts(split_document(document("# Ab\n\ncdefgh"), byte_level, 8)) == ["# Ab", "cdefgh"]


def test_last_heading_alone_is_kept() -> None:
    passages = split_document(document("word " * 30 + "\n\n# End"), words, 30)
    assert texts(passages)[-1] == "# End"


def test_table_stays_whole_where_it_fits() -> None:
    table = "a | b | c\nd | e | f\ng | h | i"  # 15 words with the bars
    passages = split_document(document(f"one two three four five six seven eight\n\n{table}"), words, 16)
    assert texts(passages) == ["one two three four five six seven eight", table]


def test_table_is_cut_between_rows_to_keep_its_heading_company() -> None:
    passages = split_document(document("# Fares\n\na | b. C | d\ne | f | g"), words, 10)
    assert texts(passages) == ["# Fares\n\na | b. C | d", "e | f | g"]


def test_long_paragraph_fills_up_with_sentences() -> None:
    text = "Intro here.\n\nOne two three. Four five six! Seven (eight nine.) Ten e.g. eleven twelve."
    passages = split_document(document(text), words, 8)
    assert texts(passages) == [
        "Intro here.\n\nOne two three. Four five six!",
        "Seven (eight nine.) Ten e.g. eleven twelve.",
    ]


def test_cut_at_lines_words_and_characters() -> None:
    assert texts(split_document(document("one two three\nfour five six"), words, 4)) == [
        "one two three",
        "four five six",
    ]
    assert texts(split_document(document("one two three four five"), words, 2)) == ["one two", "three four", "five"]
    assert texts(split_document(document("abcdefgh"), byte_level, 3)) == ["abc", "def", "gh"]


def test_sentences_of_scripts_without_spaces() -> None:
    text = "東京は大きい。大阪も大きい。京都は古い。"  # 7, 7 and 6 characters, 3 bytes each
    assert texts(split_document(document(text), byte_level, 45)) == ["東京は大きい。大阪も大きい。", "京都は古い。"]


def test_slice_that_counts_more_than_it_seems_is_shrunk() -> None:
    # The whole word is one unknown token, but any part of it of at most 8 characters is a token a character.
    passages = split_document(document("abcdefghijkl mnop"), unknown_long_words, 4)
    assert texts(passages) == ["abcdefghijkl", "mnop"]
    passages = split_document(document("one two three four"), leading_space, 3)
    assert all(len(leading_space(passage.text)) <= 3 for passage in passages)


def test_overlap_repeats_whole_sentences() -> None:
    text = "One two three. Four five. Six seven eight nine. Ten eleven twelve."
    assert texts(split_document(document(text), words, 7, overlap_tokens=3)) == [
        "One two three. Four five.",
        "Four five. Six seven eight nine.",
        "Ten eleven twelve.",  # the sentence before has four words, more than three
    ]


def test_overlap_stays_inside_a_section_and_never_repeats_a_heading() -> None:
    text = "# A\n\nOne two three. Four five.\n\n# B\n\nSix seven eight. Nine ten eleven."
    assert texts(split_document(document(text), words, 8, overlap_tokens=3)) == [
        "# A\n\nOne two three. Four five.",
        "# B\n\nSix seven eight. Nine ten eleven.",
    ]


def test_overlap_gives_way_to_a_block_that_stays_whole() -> None:
    text = "One two three. Four five.\n\n- a b c\n- d e f"
    assert texts(split_document(document(text), words, 8, overlap_tokens=4)) == [
        "One two three. Four five.",
        "- a b c\n- d e f",
    ]


@pytest.mark.parametrize("text", ["", "\n \t\u2003\n"])
def test_nothing_to_split(text: str) -> None:
    assert split_document(document(text), words, 10) == []


@pytest.mark.parametrize(("max_tokens", "overlap"), [(0, 0), (-1, 0), (5, 5), (5, -1)])
def test_limits_that_make_no_sense(max_tokens: int, overlap: int) -> None:
    with pytest.raises(InputError, match="expected max_tokens"):
        split_document(document("text"), words, max_tokens, overlap)


def test_a_character_over_the_limit_is_an_error_not_a_broken_promise() -> None:
    with pytest.raises(InputError, match=r"d\.md: the character at offset 2 alone has more than 3 tokens"):
        split_document(document("a \U0001f600"), byte_level, 3)


@pytest.mark.parametrize("unit", [".", ". ", "a", "word. ", "\n", "a\n", "# h\n", "- "])
def test_long_texts_take_linear_time(unit: str) -> None:
    started = time.perf_counter()
    split_document(document(unit * (100_000 // len(unit))), words_and_marks, 200, 20)
    assert time.perf_counter() - started < 3


def test_a_cut_table_keeps_its_header_in_the_headings_alone() -> None:
    rows = "\n".join(f"R{i} | {5 * i}" for i in range(6))
    passages = split_document(document(f"# Fares\n\nRoute | Fee\n{rows}"), words, 9)
    assert passages[0].headings == ("Fares",) and passages[0].text == "# Fares\n\nRoute | Fee\nR0 | 0"
    assert {passage.headings for passage in passages[1:]} == {("Fares", "Route | Fee")}
    assert all("Route" not in passage.text for passage in passages[1:])


def test_no_header_from_a_table_that_ended_or_whose_first_row_is_long() -> None:
    text = "a | b\nc | d\n\nOne two three four five six."
    assert [p.headings for p in split_document(document(text), words, 6)] == [("Doc",), ("Doc",)]
    long = "x" * 201 + " | b\n" + "c | d\n" * 4
    assert {p.headings for p in split_document(document(long), words, 6)} == {("Doc",)}


def test_code_is_cut_between_functions_where_it_can_be() -> None:
    text = "```python\nimport x\n\n\ndef f():\n    one\n\n    two\n\n\ndef g():\n    three\n```"
    assert texts(split_document(document(text), words, 6)) == [
        "```python\nimport x",
        "def f():\n    one\n\n    two",
        "def g():\n    three\n```",
    ]


@pytest.fixture(scope="module")
def embedder() -> SentenceEmbedder:
    from ragtune.generator import models
    from ragtune.retriever.embed import SentenceEmbedder

    if models.status(models.DEFAULT_EMBEDDER).state != "ready":
        pytest.skip("the embedder's package is not installed")
    folder = models.resolve(models.DEFAULT_EMBEDDER)
    return SentenceEmbedder.from_folder(folder, models.DEFAULT_EMBEDDER, models.fingerprint(folder))


@pytest.mark.models
@settings(max_examples=150, deadline=None)
@given(text=markdown, more=st.lists(st.text(min_size=1, max_size=30), max_size=40), limit=st.integers(16, 254))
def test_nothing_is_beyond_what_the_real_embedder_reads_by_its_own_count(
    embedder: SentenceEmbedder, text: str, more: list[str], limit: int
) -> None:
    whole = f"{text}\n\n{' '.join(more)}"
    assume(whole.strip())
    passages = split_document(document(whole), embedder.token_offsets, limit, overlap_tokens=4)
    # With the two special tokens, and without truncation: what is counted is what is embedded.
    assert all(count <= limit + 2 <= embedder.max_tokens for count in embedder.count_tokens([p.text for p in passages]))
    kept = {i for passage in passages for i in range(passage.start, passage.end)}
    assert all(i in kept or char.isspace() for i, char in enumerate(whole))
