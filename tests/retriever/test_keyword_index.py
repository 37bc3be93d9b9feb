"""BM25 against Lucene's formula, written out here for a corpus of four documents."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from ragtune.errors import ConfigError
from ragtune.retriever import keyword_index
from ragtune.retriever.keyword_index import build, search

K1, B = 1.5, 0.75

CORPUS = (
    "The boats are moored in the harbour",  # boat moor harbour
    "A boat, a boat, and the boating club!",  # boat boat boat club
    "Dogs run in parks",  # dog run park
    "Running a dog kennel in the harbour: dogs run",  # run dog kennel harbour dog run
)
LENGTHS = (3, 4, 3, 6)
"""Stemmed words a document, stop words left out, counted by hand."""


def bm25(frequency: int, documents_with_word: int, length: int) -> float:
    """ln(1 + (N - n + 0.5) / (n + 0.5)) * f / (f + k1 * (1 - b + b * length / average length))."""
    idf = math.log(1 + (len(CORPUS) - documents_with_word + 0.5) / (documents_with_word + 0.5))
    average = sum(LENGTHS) / len(LENGTHS)
    return idf * frequency / (frequency + K1 * (1 - B + B * length / average))


def found(query: str, k: int = 10, language: str = "english") -> list[tuple[int, float]]:
    return search(build(CORPUS, language), [query], k, language)[0]


def agrees(query: str, expected: dict[int, float]) -> bool:
    """Same places in the same order, scores alike (bm25s keeps them as float32)."""
    ranking = found(query)
    return [place for place, _ in ranking] == list(expected) and dict(ranking) == pytest.approx(expected, rel=1e-5)


def test_one_word_in_two_documents() -> None:
    """`boats` and `boating` are stemmed to `boat`: once in document 0, three times in document 1."""
    assert agrees("boating", {1: bm25(3, 2, 4), 0: bm25(1, 2, 3)})
    assert bm25(3, 2, 4) == pytest.approx(math.log(2) * 2 / 3)  # length 4 is the average: ln 2 * 3 / (3 + 1.5)


def test_scores_add_up_over_words() -> None:
    """`dog` is in 2 and twice in 3, `harbour` in 0 and 3, `kennel` in 3 alone."""
    all_three = bm25(2, 2, 6) + bm25(1, 1, 6) + bm25(1, 2, 6)
    assert agrees("dogs' kennels, harbours", {3: all_three, 0: bm25(1, 2, 3), 2: bm25(1, 2, 3)})


def test_a_word_asked_twice_counts_twice() -> None:
    assert dict(found("dog dog"))[2] == pytest.approx(2 * bm25(1, 2, 3), rel=1e-5)


def test_without_stemming_only_the_same_word_is_found() -> None:
    assert [place for place, _ in found("boat", language="none")] == [1]
    assert [place for place, _ in found("boats", language="none")] == [0]


def test_k_best_and_ties_in_document_order() -> None:
    assert [place for place, _ in found("harbour dog", k=1)] == [3]
    equal = build(["same words", "same words", "other text"], "english")
    assert [place for place, _ in search(equal, ["same"], 10, "english")[0]] == [0, 1]


@pytest.mark.parametrize("query", ["zebra", "the", "?!", "", "\x00"])
def test_no_word_in_common_finds_nothing(query: str) -> None:
    assert found(query) == []


def test_unknown_words_beside_known_ones_change_nothing() -> None:
    assert found("zebra boats") == found("boats")


def test_each_query_has_its_own_ranking() -> None:
    both = search(build(CORPUS, "english"), ["boats", "nothing known", "dogs"], 10, "english")
    assert [[place for place, _ in line] for line in both] == [[1, 0], [], [3, 2]]


def test_a_corpus_of_stop_words_alone() -> None:
    index = build(["the", "a of the", ""], "english")
    assert search(index, ["the boat"], 5, "english") == [[]]


def test_save_and_load_give_the_same_answers(tmp_path: Path) -> None:
    index = build(CORPUS, "english")
    keyword_index.save(index, tmp_path)
    files = {path.suffix for path in (tmp_path / keyword_index.FOLDER).iterdir()}
    assert files == {".json", ".npy"}
    queries = ["boating dogs", "harbour"]
    assert search(keyword_index.load(tmp_path), queries, 3, "english") == search(index, queries, 3, "english")


def test_other_languages_and_unknown_ones() -> None:
    index = build(["die Boote im Hafen", "Hunde laufen"], "german")
    assert [place for place, _ in search(index, ["Boot"], 5, "german")[0]] == [0]
    with pytest.raises(
        ConfigError, match=r"index\.language = 'klingon' is unknown; expected none or one of: .*english"
    ):
        build(["text"], "klingon")
