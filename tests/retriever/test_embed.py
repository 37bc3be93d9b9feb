"""The real embedder: vectors against sentence-transformers in fp32, no silent truncation, bad vectors refused."""

from __future__ import annotations

import numpy as np
import pytest

from ragtune.errors import InputError, ModelError
from ragtune.generator import models
from ragtune.retriever.embed import SentenceEmbedder, unit_rows

TEXTS = ["A bicycle costs eight pounds.", "The ferry sails at noon.", "Cycles are charged £8 each way.", "x"]


@pytest.fixture(scope="module")
def embedder() -> SentenceEmbedder:
    if models.status(models.DEFAULT_EMBEDDER).state != "ready":
        pytest.skip("the embedder's package is not installed")
    folder = models.resolve(models.DEFAULT_EMBEDDER)
    return SentenceEmbedder.from_folder(folder, models.DEFAULT_EMBEDDER, models.fingerprint(folder))


@pytest.mark.models
def test_vectors_equal_the_library_in_fp32(embedder: SentenceEmbedder) -> None:
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(models.resolve(models.DEFAULT_EMBEDDER)), local_files_only=True)
    expected = reference.encode(TEXTS, normalize_embeddings=True, show_progress_bar=False)
    found = embedder.embed(TEXTS)
    assert found.shape == (4, 384)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert (found * expected).sum(1).min() > 0.999
    assert found[0] @ found[2] > found[0] @ found[1]


@pytest.mark.models
def test_nothing_is_cut_silently(embedder: SentenceEmbedder) -> None:
    long = "harbour " * 400
    assert embedder.count_tokens([long]) == [402]
    with pytest.raises(InputError, match="402 tokens"):
        embedder.embed([long])


@pytest.mark.models
def test_offsets_cover_the_words(embedder: SentenceEmbedder) -> None:
    text = "Fähre um 7:45, £12.50"
    offsets = embedder.token_offsets(text)
    assert "".join(text[a:b] for a, b in offsets) == text.replace(" ", "")
    assert embedder.count_tokens([text]) == [len(offsets) + 2]


def test_unit_rows_refuses_what_faiss_would_lose() -> None:
    assert np.allclose(unit_rows(np.array([[3.0, 4.0]], dtype=np.float32), "m"), [[0.6, 0.8]])
    for bad in ([[np.nan, 1.0]], [[0.0, 0.0]], [[np.inf, 1.0]]):
        with pytest.raises(ModelError, match="not a number"):
            unit_rows(np.array(bad, dtype=np.float32), "m")
