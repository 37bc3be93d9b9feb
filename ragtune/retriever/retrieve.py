"""The index folder, and searching it: dense and keyword rankings fused by reciprocal rank.

indexes/NAME/  documents.jsonl  passages.jsonl  vectors.faiss  keywords/  manifest.json (last)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ragtune import store
from ragtune.config import IndexConfig, RetrievalConfig
from ragtune.errors import InputError, MismatchError
from ragtune.retriever import fuse, keyword_index, vector_index
from ragtune.types import Document, Embedder, Hit, Passage

DOCUMENTS = "documents.jsonl"
PASSAGES = "passages.jsonl"
_EMBED_CHUNK = 256


@dataclass(frozen=True)
class Index:
    """An opened index. Make one with `open_index`."""

    folder: Path
    manifest: Mapping[str, Any]
    documents: Mapping[str, Document]
    passages: tuple[Passage, ...]
    vectors: Any
    keywords: Any

    @property
    def fingerprint(self) -> str:
        """What was indexed and how; changes with any document, setting or embedder."""
        return store.sha256_of_json(self.manifest["inputs"])

    @property
    def by_id(self) -> dict[str, Passage]:
        """Passages by their id."""
        return {passage.id: passage for passage in self.passages}


def embedded_texts(passages: Sequence[Passage], embedder: Embedder) -> list[str]:
    """What the embedder and the keyword index read: where a passage stands, then its text.

    Headings too long to fit beside the passage are left out, so that the passage itself is never cut.
    """
    texts = [f"{p.context}\n{p.text}" if p.headings else p.text for p in passages]
    counts = embedder.count_tokens(texts)
    return [
        text if count <= embedder.max_tokens else passage.text
        for text, count, passage in zip(texts, counts, passages, strict=True)
    ]


def build_index(
    target: Path,
    documents: Sequence[Document],
    passages: Sequence[Passage],
    embedder: Embedder,
    config: IndexConfig,
    inputs: Mapping[str, Any],
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Embed passages and write the folder in one step; `report(done, total)` counts passages.

    Raises: InputError without passages; BusyError when another process writes `target`; StoreError when it cannot be
    written.
    """
    if not passages:
        raise InputError("there is nothing to index: the documents hold no text")
    started = time.perf_counter()
    texts = embedded_texts(passages, embedder)
    manifest = {
        "kind": "index",
        "inputs": dict(inputs),
        "embedder": {"name": embedder.name, "fingerprint": embedder.fingerprint, "dimension": embedder.dimension},
        "config": config.model_dump(mode="json"),
        "documents": len(documents),
        "passages": len(passages),
    }
    with store.atomic_folder(target, manifest) as folder:
        vectors = np.concatenate(list(_embed_in_chunks(texts, embedder, report)))
        store.write_jsonl(folder / DOCUMENTS, (asdict(d) for d in documents))
        store.write_jsonl(folder / PASSAGES, (asdict(p) for p in passages))
        vector_index.save(vector_index.build(vectors), folder)
        keyword_index.save(keyword_index.build(texts, config.language), folder)
        manifest["seconds"] = time.perf_counter() - started


def _embed_in_chunks(
    texts: Sequence[str], embedder: Embedder, report: Callable[[int, int], None]
) -> Iterator[np.ndarray]:
    for start in range(0, len(texts), _EMBED_CHUNK):
        chunk = texts[start : start + _EMBED_CHUNK]
        yield np.asarray(embedder.embed(chunk))
        report(start + len(chunk), len(texts))


def open_index(folder: Path) -> Index:
    """Open an index after checking every file's hash.

    Raises: StoreError when it is missing or damaged, MismatchError for another format version.
    """
    manifest = store.open_folder(folder, "index")
    documents = {row["id"]: Document(**row) for row in store.read_jsonl(folder / DOCUMENTS)}
    passages = tuple(
        Passage(**{**row, "headings": tuple(row["headings"])}) for row in store.read_jsonl(folder / PASSAGES)
    )
    return Index(folder, manifest, documents, passages, vector_index.load(folder), keyword_index.load(folder))


@dataclass(frozen=True)
class Retriever:
    """An index, the embedder it was built with, and how many passages to return."""

    index: Index
    embedder: Embedder
    config: RetrievalConfig

    def __post_init__(self) -> None:
        """Refuse an embedder that the index was not built with (MismatchError)."""
        built = self.index.manifest["embedder"]
        if built["fingerprint"] != self.embedder.fingerprint:
            raise MismatchError(
                f"{self.index.folder} was built with embedder {built['name']} ({built['fingerprint'][:12]}), "
                f"the one at hand is {self.embedder.name} ({self.embedder.fingerprint[:12]}); "
                "index again or name that one"
            )

    def search(self, queries: Sequence[str], k: int | None = None) -> list[tuple[Hit, ...]]:
        """The k best passages for each query, by reciprocal rank fusion of dense and keyword search.

        Raises: InputError for an empty query or k < 1.
        """
        k = self.config.k if k is None else k
        if k < 1:
            raise InputError(f"k = {k}: at least one passage must be asked for")
        for query in queries:
            if not query.strip():
                raise InputError("the query is empty; ask a question")
        if not queries:
            return []
        depth = max(k, self.config.candidates)
        language = self.index.manifest["config"]["language"]
        dense = vector_index.search(self.index.vectors, np.asarray(self.embedder.embed(queries)), depth)
        keyword = keyword_index.search(self.index.keywords, queries, depth, language)
        return [self._hits(pair, k) for pair in zip(dense, keyword, strict=True)]

    def _hits(self, rankings: Sequence[Sequence[tuple[int, float]]], k: int) -> tuple[Hit, ...]:
        fused = fuse.reciprocal_rank([[place for place, _ in ranking] for ranking in rankings])
        return tuple(Hit(self.index.passages[place], score, rank) for rank, (place, score) in enumerate(fused[:k], 1))
