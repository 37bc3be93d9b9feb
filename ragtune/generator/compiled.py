"""Decoder layers compiled for training by torch.compile: the small steps between the matrix products become one.

All layers share their code, so it is compiled once, which takes 10 to 40 seconds; torch keeps the result for the next
run on the same machine. It needs a C++ compiler where there is no GPU.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from typing import Any

import torch

from ragtune.config import TuneConfig

_WORTH_TOKENS = 200_000  # below this many trained tokens, compiling takes longer than it saves


def decide(config: TuneConfig, tokens: int) -> tuple[bool, str]:
    """Whether a run over this many tokens is compiled, and why, for the user to read."""
    if config.compile != "auto":
        return config.compile == "on", f"compile = {config.compile}, as asked"
    if config.checkpointing:
        return False, "not compiled: with checkpointing it was never measured"
    if torch.cuda.is_available():
        return False, "not compiled: there is a GPU, where it was never measured"
    if tokens < _WORTH_TOKENS:
        return False, f"not compiled: {tokens:,} tokens are too few to be worth it"
    if _compiler() is None:
        return False, "not compiled: there is no C++ compiler; with one, such as g++, training is 1.4 times as fast"
    return True, "layers are compiled first, which takes 10 to 40 seconds"


def _compiler() -> str | None:
    names = (os.environ.get("CXX", ""), "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def enable(model: Any) -> None:
    """Compile the model's decoder layers, when they are first called."""
    for library in ("torch._dynamo", "torch._inductor"):
        logging.getLogger(library).setLevel(logging.ERROR)  # their warnings are advice to developers
    for layer in _decoder_layers(model):
        layer.compile(dynamic=True)


def disable(model: Any) -> None:
    """Give the layers their plain code back, as they answer."""
    for layer in _decoder_layers(model):
        layer._compiled_call_impl = None


def _decoder_layers(model: Any) -> Iterator[Any]:
    names = set(model._no_split_modules or ())  # so transformers calls the classes of repeated layers
    return (module for module in model.modules() if type(module).__name__ in names)
