"""FAISS, and nothing else of ours imports it: exact inner-product search over unit vectors (true cosine)."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np

from ragtune.errors import MismatchError, StoreError

VECTORS = "vectors.faiss"


def build(vectors: np.ndarray) -> faiss.IndexFlatIP:
    """An exact index over rows of length 1; row numbers are the ids. vectors: float32 (n, dimension)."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, dtype=np.float32))
    return index


def save(index: faiss.Index, folder: Path) -> None:
    """Write into a folder that `store.atomic_folder` is building.

    Raises: StoreError when the file cannot be written; FAISS itself raises nothing for a small file on a full disk.
    """
    path = folder / VECTORS
    data = faiss.serialize_index(index).tobytes()
    try:
        path.write_bytes(data)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def load(folder: Path) -> faiss.Index:
    """Read an index whose hash was already checked (FAISS files carry no checksum).

    Raises: StoreError when FAISS cannot read it.
    """
    path = folder / VECTORS
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise StoreError(f"{path} is no FAISS index; make the index again") from error


def search(index: faiss.Index, queries: np.ndarray, k: int) -> list[list[tuple[int, float]]]:
    """(row, cosine) of the k nearest rows for each query, best first; fewer when the index is smaller.

    queries: float32 (m, dimension), rows of length 1. Raises: MismatchError for another width.
    """
    if queries.shape[1] != index.d:
        raise MismatchError(
            f"the query has {queries.shape[1]} dimensions, the index {index.d}: it was built with another embedder"
        )
    scores, rows = index.search(np.ascontiguousarray(queries, dtype=np.float32), min(k, index.ntotal))
    return [
        [(int(row), float(score)) for row, score in zip(line, values, strict=True) if row >= 0]
        for line, values in zip(rows, scores, strict=True)
    ]
