"""FAISS search against brute force with NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtune.errors import MismatchError, StoreError
from ragtune.retriever import vector_index


def unit(rows: int, dimension: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, dimension))
    scaled: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled.astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 60),
    dimension=st.integers(2, 24),
    queries=st.integers(1, 4),
    k=st.integers(1, 80),
    seed=st.integers(0, 999),
)
def test_scores_and_ranks_are_those_of_brute_force(rows: int, dimension: int, queries: int, k: int, seed: int) -> None:
    vectors, asked = unit(rows, dimension, seed), unit(queries, dimension, seed + 1)
    cosines = asked.astype(np.float64) @ vectors.T.astype(np.float64)
    found = vector_index.search(vector_index.build(vectors), asked, k)
    for line, exact in zip(found, cosines, strict=True):
        places = [place for place, _ in line]
        assert len(places) == len(set(places)) == min(k, rows)
        np.testing.assert_allclose([score for _, score in line], exact[places], atol=1e-5)
        np.testing.assert_allclose(exact[places], np.sort(exact)[::-1][: len(places)], atol=1e-5)


def test_the_score_is_a_cosine() -> None:
    index = vector_index.build(np.array([[1, 0], [0.6, 0.8], [0, -1]], dtype=np.float32))
    (line,) = vector_index.search(index, np.array([[0, 1]], dtype=np.float32), 3)
    assert [place for place, _ in line] == [1, 0, 2]
    assert [score for _, score in line] == pytest.approx([0.8, 0, -1])


def test_more_asked_than_there_is() -> None:
    index = vector_index.build(unit(3, 4, 0))
    (line,) = vector_index.search(index, unit(1, 4, 1), 10)
    assert sorted(place for place, _ in line) == [0, 1, 2]


def test_another_width_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"the query has 3 dimensions, the index 4"):
        vector_index.search(vector_index.build(unit(5, 4, 0)), unit(1, 3, 0), 2)


def test_other_number_types_and_memory_orders_are_taken() -> None:
    vectors = unit(6, 4, 0)
    index = vector_index.build(np.asfortranarray(vectors.astype(np.float64)))
    (line,) = vector_index.search(index, vectors[2:3].astype(np.float64), 1)
    assert line[0][0] == 2
    assert line[0][1] == pytest.approx(1)


def test_save_and_load_give_the_same_answers(tmp_path: Path) -> None:
    index, asked = vector_index.build(unit(20, 8, 0)), unit(3, 8, 1)
    vector_index.save(index, tmp_path)
    assert vector_index.search(vector_index.load(tmp_path), asked, 5) == vector_index.search(index, asked, 5)


def test_a_file_that_is_no_index(tmp_path: Path) -> None:
    (tmp_path / vector_index.VECTORS).write_bytes(b"nonsense")
    with pytest.raises(StoreError, match="is no FAISS index"):
        vector_index.load(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot write"):
        vector_index.save(vector_index.build(unit(2, 4, 0)), tmp_path / "missing")
