"""The sizes of a model that memory and time depend on, read from its config alone: no weight is loaded.

The model is built on torch's meta device, where a tensor has a shape and no values, so that sizes are those of the
very modules that would be trained, whatever the architecture calls its settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragtune.errors import ModelError
from ragtune.generator import models
from ragtune.generator.quiet import calm_libraries

_LLAMA = {"model_type": "llama", "vocab_size": 32_000, "tie_word_embeddings": False}
PRESETS: dict[str, dict[str, Any]] = {
    f"llama-{size}": _LLAMA
    | {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
    }
    for size, hidden, inner, layers, heads in (
        ("7b", 4096, 11_008, 32, 32),
        ("13b", 5120, 13_824, 40, 40),
        ("33b", 6656, 17_920, 60, 52),
        ("65b", 8192, 22_016, 80, 64),
    )
}
"""The models of Touvron et al. 2023, arXiv:2302.13971, table 2; inner widths as in their published weights."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A linear layer of the decoder (not the output head): its name's last part and its width on both sides."""

    name: str
    inputs: int
    outputs: int

    @property
    def size(self) -> int:
        """Weights, the bias not counted."""
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder-only model's sizes. `parameters` counts a tied output head once.

    `gated`: the MLP multiplies two branches (SwiGLU and the like). `upcast`: its norms compute in fp32 (RMSNorm).
    `biases` and `norms` are parameters; `norms` holds the scales of normalisation layers, and their biases.
    """

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    parameters: int
    biases: int
    norms: int
    matrices: tuple[Matrix, ...]
    gated: bool
    upcast: bool

    @property
    def decoder(self) -> int:
        """Weights in the decoder's matrices: what NF4 packs, and what each token is multiplied by."""
        return sum(matrix.size for matrix in self.matrices)

    @property
    def query_width(self) -> int:
        """Width of a token's queries, all heads together."""
        return self.heads * self.head_width

    @property
    def key_width(self) -> int:
        """Width of a token's keys (and of its values), all heads together."""
        return self.key_heads * self.head_width


def shape_of(name: str) -> Shape:
    """The shape of a preset, an embedded model, a folder with a config.json, such a file, or a hub id.

    Raises: ModelError when there is no config, or its architecture is not one that this can plan for.
    """
    return shape_from_config(name, _config(name))


def _config(name: str) -> Mapping[str, Any]:
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if name in models.EMBEDDED:
        path = models.resolve(name) / "config.json"
    elif path.is_dir():
        path = path / "config.json"
    elif not path.is_file():
        return _hub_config(name)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as a model's config.json: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a model's config.json: expected an object")
    return config


def _hub_config(name: str) -> Mapping[str, Any]:
    from transformers import AutoConfig

    known = ", ".join(PRESETS)
    try:
        with calm_libraries():
            config: dict[str, Any] = AutoConfig.from_pretrained(name, trust_remote_code=False).to_dict()
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"no config of model {name!r}: {reason}; expected a folder, a config.json, a hub id or one of: {known}"
        ) from None
    return config


def shape_from_config(name: str, values: Mapping[str, Any]) -> Shape:
    """The shape that a config.json describes.

    Raises: ModelError for an architecture that is no dense decoder.
    """
    model = _meta_model(name, values)
    config = model.config
    heads = config.num_attention_heads
    named = dict(model.named_parameters())
    head = model.get_output_embeddings()
    matrices = [
        Matrix(path.rpartition(".")[2], *_widths(module))
        for path, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and module is not head
    ]
    norms = [module for module in model.modules() if "Norm" in type(module).__name__]
    if not matrices:
        raise ModelError(f"{name}: its architecture {config.model_type} has no linear layers that could be tuned")
    return Shape(
        name=name,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        inner=getattr(config, "intermediate_size", None) or max(m.outputs for m in matrices),
        heads=heads,
        key_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocabulary=config.vocab_size,
        parameters=sum(p.numel() for p in named.values()),
        biases=sum(p.numel() for path, p in named.items() if path.endswith("bias")),
        norms=sum(p.numel() for module in norms for p in module.parameters(recurse=False)),
        matrices=tuple(matrices),
        gated=any("gate" in matrix.name for matrix in matrices),
        upcast=any("RMSNorm" in type(module).__name__ for module in norms),
    )


def _meta_model(name: str, values: Mapping[str, Any]) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {key: value for key, value in values.items() if key != "model_type"}
    if any("expert" in key and value for key, value in settings.items()):
        raise ModelError(f"{name} is a mixture of experts, which cannot be planned for; expected a dense model")
    try:
        with calm_libraries(), torch.device("meta"):
            config = AutoConfig.for_model(values.get("model_type", ""), **settings).get_text_config()
            return AutoModelForCausalLM.from_config(config)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{name} is not the config of a text-generating model: {reason}") from None


def _widths(module: Any) -> tuple[int, int]:
    outputs, inputs = module.weight.shape
    return (outputs, inputs) if type(module).__name__ == "Conv1D" else (inputs, outputs)
