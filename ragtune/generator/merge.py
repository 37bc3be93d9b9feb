"""Adapter into base: one folder of plain weights that anything serves, and that ragtune takes as a model's name.

The weights are those that answer today (rounded to NF4 first where the adapter was trained so); the update is added
in fp32 and the sum rounded once, to the dtype of the base's files.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ragtune.errors import ConfigError, ModelError
from ragtune.generator.adapters import attach_adapter
from ragtune.generator.generate import load_weights
from ragtune.generator.machine import best_dtype
from ragtune.generator.methods import METHODS
from ragtune.generator.quiet import calm_libraries

_APART = {
    "bottleneck": "its networks stand between the layers, where the base has no weights to add them to",
    "soft prompt": "it trains what stands before a prompt and no weight of the base",
}
_COPIED = (".json", ".jinja", ".txt", ".model")
_WRITTEN = ("config.json", "manifest.json")
"""By us or by transformers; all other files of the base's tokenizer and generation settings are copied as they are."""


def check_mergeable(method: str) -> None:
    """Refuse a method that no merged weights can stand for.

    Raises: ConfigError naming the methods that can be merged.
    """
    reason = _APART.get(METHODS[method].family)
    if reason:
        fitting = ", ".join(name for name, known in METHODS.items() if known.family not in _APART)
        raise ConfigError(f"an adapter of method {method} cannot be merged: {reason}; these can: {fitting}")


def merge_adapter(folder: Path, fingerprint: str, adapter: Path) -> Any:
    """The base model of a folder with an adapter merged into its weights, in fp32: W + s B A for LoRA.

    Hu et al. 2021, arXiv:2106.09685, section 4.1. Takes 4 bytes a parameter, and as much again for a moment.

    Raises: MismatchError when the adapter was trained on another base; ModelError when the sum is no number.
    """
    # First in the numbers that answer: NF4 values are rounded to that dtype, and what was trained is what is merged.
    model = attach_adapter(load_weights(folder, best_dtype()), adapter, fingerprint).float()
    if not hasattr(model, "merge_and_unload"):
        return model  # its own weights were trained: they are in place already
    try:
        with calm_libraries():
            return model.merge_and_unload(safe_merge=True)
    except ValueError as error:  # peft's check for NaN
        raise ModelError(f"{adapter} cannot be merged ({error}); its weights are no numbers, so tune again") from error


def save_merged(model: Any, folder: Path, target: Path) -> None:
    """Write merged weights in the dtype of the base's files, and the base's tokenizer, template and licence files."""
    with calm_libraries():
        model.to(stored_dtype(folder)).save_pretrained(target)
    for path in sorted(folder.iterdir()):
        ours = path.name in _WRITTEN or path.name.endswith(".index.json")
        licence = path.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE"))
        if path.is_file() and not ours and (path.suffix in _COPIED or licence):
            shutil.copyfile(path, target / path.name)


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of the first matrix in a folder's weights."""
    with safe_open(min(folder.glob("*.safetensors")), "pt") as weights:
        matrices = (weights.get_slice(name) for name in weights.keys())  # noqa: SIM118 (no mapping, it has no iterator)
        first = next(part for part in matrices if len(part.get_shape()) > 1)
        dtype: torch.dtype = first[:1].dtype
        return dtype
