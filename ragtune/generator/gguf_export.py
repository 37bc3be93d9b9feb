"""A merged model as one GGUF file for llama.cpp and Ollama, and such a file back as a generator.

The names of tensors are those of the `gguf` package; what it does not do is here: llama.cpp pairs the rows of q and k
for rotary embedding one after the other, transformers by halves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

from ragtune.config import Quantisation
from ragtune.errors import ConfigError
from ragtune.generator import shared_prefix
from ragtune.generator.generate import LocalGenerator
from ragtune.generator.gguf_tokenizer import add_tokenizer
from ragtune.generator.machine import device
from ragtune.generator.quiet import calm_libraries

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
"""transformers' model_type -> architecture of llama.cpp."""

QUANTISATIONS: dict[Quantisation, tuple[GGMLQuantizationType, LlamaFileType]] = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q5_1": (GGMLQuantizationType.Q5_1, LlamaFileType.MOSTLY_Q5_1),
    "q4_1": (GGMLQuantizationType.Q4_1, LlamaFileType.MOSTLY_Q4_1),
}
"""How matrices are stored. Vectors stay in fp32. Below 8 bits the embedding and the head take 8."""

_WHOLE = ("token_embd.weight", "output.weight")
_QWEN3_HEAD = 128  # transformers' reader takes it for granted, so that no other could be checked
_PAIRED = ("q_proj.weight", "k_proj.weight")


def load_config(folder: Path) -> Any:
    """The model's configuration, without its weights."""
    return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def check_exportable(config: Any) -> None:
    """Refuse a model that a GGUF file of ours would not stand for, before any work is done.

    Raises: ConfigError naming what is in the way, and the architectures that can be exported.
    """
    known = ", ".join(ARCHITECTURES)
    if config.model_type not in ARCHITECTURES:
        raise ConfigError(f"models of type {config.model_type} cannot be exported to GGUF yet; these can: {known}")
    rope = config.rope_parameters["rope_type"]
    windows = [kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"]
    head = getattr(config, "head_dim", None)
    biased = config.model_type != "qwen2" and getattr(config, "attention_bias", False)
    for odd in (
        f"rotary embedding of type {rope}" if rope != "default" else "",
        f"{windows[0]} layers" if windows else "",
        "biases" if biased or getattr(config, "mlp_bias", False) else "",
        f"heads of {head} numbers" if config.model_type == "qwen3" and head != _QWEN3_HEAD else "",
        f"activation {config.hidden_act}" if config.hidden_act != "silu" else "",
    ):
        if odd:
            raise ConfigError(f"this {config.model_type} model has {odd}, which cannot be exported to GGUF yet")


def write_gguf(model: Any, tokenizer: Any, path: Path, quantise: Quantisation, about: dict[str, str]) -> None:
    """Write merged weights, rounded once from fp32, with tokenizer and template.

    `about`: `name`, `licence` and `description` of the model, each written where it is not empty.

    Raises: ConfigError for a model or tokenizer that cannot be exported, or rows that the quantisation cannot cut.
    """
    check_exportable(model.config)
    writer = GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[model.config.model_type]])
    _add_parameters(writer, model.config, quantise)
    for add, text in (
        (writer.add_name, about["name"]),
        (writer.add_license, about["licence"]),
        (writer.add_description, about["description"]),
    ):
        if text:
            add(text)
    add_tokenizer(writer, tokenizer, model.config.vocab_size)
    for name, tensor in _tensors(model).items():
        kind = _kind(name, tensor, quantise)
        writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_parameters(writer: GGUFWriter, config: Any, quantise: Quantisation) -> None:
    """The shape of the model, under llama.cpp's names."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_type("model")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(QUANTISATIONS[quantise][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _tensors(model: Any) -> dict[str, np.ndarray]:
    """All weights in fp32 by llama.cpp's names. A head that is tied to the embedding is left out: it reads that."""
    config = model.config
    names = gguf.get_tensor_name_map(ARCHITECTURES[config.model_type], config.num_hidden_layers)
    heads = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
    found = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if written is None:
            raise ConfigError(f"weight {name} has no name in GGUF, so the model cannot be exported")
        value = value.float()
        if config.model_type == "llama" and name.endswith(_PAIRED):
            value = pair_rows(value, heads[name.rpartition("_proj")[0][-1] + "_proj.weight"])
        found[written] = value.cpu().numpy()
    return found


def pair_rows(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k, (heads x size, width), from rotary pairs (i, i + size / 2) to neighbours (2i, 2i + 1)."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def _kind(name: str, tensor: np.ndarray, quantise: Quantisation) -> GGMLQuantizationType:
    kind = QUANTISATIONS[quantise][0]
    if tensor.ndim == 1:
        return GGMLQuantizationType.F32
    if name in _WHOLE and kind not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16):
        kind = GGMLQuantizationType.Q8_0
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    if tensor.shape[-1] % block:
        raise ConfigError(f"{name} is {tensor.shape[-1]} wide, no multiple of {block} as {quantise} needs; use f16")
    return kind


def load_gguf(path: Path, tokenizer: Any) -> LocalGenerator:
    """A GGUF file as a generator: its weights, unpacked to fp32, and the tokenizer that it was made with.

    transformers reads a file's vocabulary, yet not the name of its pre-tokenizer; hence the tokenizer from outside.
    """
    with calm_libraries():
        model = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
    model = model.to(device()).eval()
    shared_prefix.enable(model)
    return LocalGenerator(path.name, "", model, tokenizer)
