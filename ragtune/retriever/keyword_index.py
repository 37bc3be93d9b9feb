"""BM25 over stemmed words, through bm25s (Robertson & Zaragoza 2009; Lucene's idf ln(1 + (N-n+0.5)/(n+0.5)))."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import Stemmer

from ragtune.errors import ConfigError

FOLDER = "keywords"


def stemmer(language: str) -> Callable[[Sequence[str]], list[str]] | None:
    """Snowball stemming for a language; None for `none`.

    Raises: ConfigError listing the known languages.
    """
    if language == "none":
        return None
    if language not in Stemmer.algorithms():
        known = ", ".join(Stemmer.algorithms())
        raise ConfigError(f"index.language = {language!r} is unknown; expected none or one of: {known}")
    stem: Callable[[Sequence[str]], list[str]] = Stemmer.Stemmer(language).stemWords
    return stem


def _words(texts: Sequence[str], language: str) -> Any:
    stopwords = "en" if language == "english" else None
    return bm25s.tokenize(
        list(texts), stopwords=stopwords, stemmer=stemmer(language), return_ids=False, show_progress=False
    )


def build(texts: Sequence[str], language: str) -> bm25s.BM25:
    """An index over texts; their places are the ids."""
    index = bm25s.BM25(method="lucene")
    # A corpus of stop words alone has no vocabulary; one word that nobody types keeps the index well-formed.
    words = [line or ["\x00"] for line in _words(texts, language)]
    index.index(words, show_progress=False)
    return index


def save(index: bm25s.BM25, folder: Path) -> None:
    """Write into a folder that `store.atomic_folder` is building. JSON and NumPy arrays, no pickle."""
    index.save(str(folder / FOLDER), show_progress=False)


def load(folder: Path) -> bm25s.BM25:
    """Read an index whose files' hashes were already checked."""
    return bm25s.BM25.load(str(folder / FOLDER), load_corpus=False, allow_pickle=False)


def search(index: bm25s.BM25, queries: Sequence[str], k: int, language: str) -> list[list[tuple[int, float]]]:
    """(place, BM25 score) of the k best texts for each query, best first; texts that share no word are left out."""
    found: list[list[tuple[int, float]]] = []
    for words in _words(queries, language):
        known = [word for word in words if word in index.vocab_dict]
        if not known:
            found.append([])
            continue
        scores = index.get_scores(known)
        top = np.argsort(-scores, kind="stable")[:k]
        found.append([(int(i), float(scores[i])) for i in top if scores[i] > 0])
    return found
