"""Texts -> unit vectors with a sentence-transformers model. Nothing is cut silently: too long is an error."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from ragtune.errors import InputError, ModelError

_BATCH = 32


@dataclass(frozen=True)
class SentenceEmbedder:
    """A sentence-transformers model at work; `ragtune.types.Embedder`. Make one with `from_folder`."""

    name: str
    fingerprint: str
    model: Any
    dimension: int
    max_tokens: int

    @classmethod
    def from_folder(cls, folder: Path, name: str, fingerprint: str) -> SentenceEmbedder:
        """Load an embedder, in bf16 where the machine multiplies bf16 natively.

        Raises: ModelError when the folder is no sentence-transformers model.
        """
        fast_bf16 = torch.cuda.is_available() or torch.cpu._is_amx_tile_supported()
        arguments = {"dtype": torch.bfloat16 if fast_bf16 else torch.float32}
        try:
            with _calm():
                model = SentenceTransformer(
                    str(folder), model_kwargs=arguments, trust_remote_code=False, local_files_only=True
                )
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder} is no sentence-transformers model: {str(error).splitlines()[0]}") from error
        dimension = int(model.get_embedding_dimension() or 0)
        return cls(name, fingerprint, model, dimension, int(model.max_seq_length or 512))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens per text, special tokens included, without truncation."""
        encoded = self._tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return [len(ids) for ids in encoded]

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """Character offsets of the text's tokens, special tokens left out, without truncation."""
        encoded = self._tokenizer(
            text, truncation=False, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        return [(int(start), int(end)) for start, end in encoded["offset_mapping"]]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 array (len(texts), dimension), rows of length 1.

        Raises: InputError when a text is longer than the embedder reads; ModelError for vectors that are no numbers.
        """
        for text, count in zip(texts, self.count_tokens(texts), strict=True):
            if count > self.max_tokens:
                raise InputError(
                    f"a text of {count} tokens ({text[:40]!r}…) is longer than {self.name} reads ({self.max_tokens}); "
                    "shorten the question, or lower index.passage_tokens"
                )
        with _calm():
            raw = self.model.encode(list(texts), batch_size=_BATCH, convert_to_tensor=True, show_progress_bar=False)
        return unit_rows(raw.float().cpu().numpy().reshape(len(texts), self.dimension), self.name)

    @property
    def _tokenizer(self) -> Any:
        return self.model.tokenizer


def unit_rows(vectors: np.ndarray, name: str) -> np.ndarray:
    """The rows scaled to length 1 in float32, so that an inner product is a cosine.

    Raises: ModelError when a row holds NaN or has length 0 (FAISS would make such a row silently unfindable).
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise ModelError(f"{name} gave a vector that is zero or not a number; the model is damaged or unfit")
    return np.ascontiguousarray(vectors / lengths, dtype=np.float32)


@contextlib.contextmanager
def _calm() -> Iterator[None]:
    logger = logging.getLogger("sentence_transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        transformers_logging.enable_progress_bar()
