"""Blocks: hand-written texts with their blocks worked out by hand."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragtune.corpus.markdown import blocks, first_heading


def kinds(text: str) -> list[tuple[str, str]]:
    return [(block.kind, text[block.start : block.end]) for block in blocks(text)]


def test_blocks_of_each_kind() -> None:
    text = "# Title\nFirst line\nsecond line\n\n- one\n- two\n\na | b\nc | d\n\n```sh\n# no heading\n\nls\n```\nafter\n"
    assert kinds(text) == [
        ("heading", "# Title"),
        ("text", "First line\nsecond line"),
        ("list", "- one\n- two"),
        ("table", "a | b\nc | d"),
        ("code", "```sh\n# no heading\n\nls\n```"),
        ("text", "after"),
    ]


@pytest.mark.parametrize(
    ("line", "level", "title"),
    [
        ("# One", 1, "One"),
        ("###### Six ##", 6, "Six"),
        ("   ## Indented", 2, "Indented"),
        ("# C#", 1, "C#"),
        ("##", 2, ""),
        ("## ##", 2, ""),
        ("#\ttab", 1, "tab"),
    ],
)
def test_heading(line: str, level: int, title: str) -> None:
    (block,) = blocks(line)
    assert (block.kind, block.level, block.title) == ("heading", level, title)


@pytest.mark.parametrize("line", ["####### seven", "#hashtag", "    # four spaces", r"\# escaped", "a # b"])
def test_no_heading(line: str) -> None:
    assert [block.kind for block in blocks(line)] == ["text"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("~~~\n# a\n```\n~~~\n# b", ["code", "heading"]),
        ("````\n```\n# a\n````\n# b", ["code", "heading"]),
        ("```never closed\n# a", ["code"]),
        ("```inline``` code\n# a", ["text", "heading"]),
    ],
)
def test_fences(text: str, expected: list[str]) -> None:
    assert [block.kind for block in blocks(text)] == expected


def test_first_heading_skips_code_and_empty_titles() -> None:
    assert first_heading("```\n# code\n```\n#\n## Real\n# Later") == "Real"
    assert first_heading("no heading") == ""


@given(st.text(alphabet=st.sampled_from("#`~|- a.\n\t\u2028é\U0001f600"), max_size=80))
def test_blocks_hold_all_that_is_not_whitespace(text: str) -> None:
    found = list(blocks(text))
    inside = {i for block in found for i in range(block.start, block.end)}
    assert all(i in inside or char.isspace() for i, char in enumerate(text))
    assert all(text[b.start : b.end] == text[b.start : b.end].strip() != "" for b in found)
    assert all(one.end <= two.start for one, two in itertools.pairwise(found))


@pytest.mark.parametrize("unit", ["# ", "#", "`", "`` ", " ", "|", "1"])
def test_long_lines_take_linear_time(unit: str) -> None:
    started = time.perf_counter()
    list(blocks("# " + unit * 500_000))
    list(blocks(unit * 500_000))
    assert time.perf_counter() - started < 2
