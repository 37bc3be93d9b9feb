"""GGUF files read back by the gguf package and by transformers, and the rows of q and k against transformers' way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from ragtune.config import Quantisation
from ragtune.errors import ConfigError
from ragtune.generator import gguf_export
from ragtune.generator.generate import load_tokenizer, load_weights
from ragtune.generator.gguf_export import QUANTISATIONS, check_exportable, load_gguf, pair_rows, write_gguf
from ragtune.generator.gguf_tokenizer import KNOWN, pre_tokenizer_name
from ragtune.generator.models import DEFAULT_GENERATOR, resolve
from ragtune.generator.quiet import calm_libraries
from ragtune.types import Message

ABOUT = {"name": "small", "licence": "Apache-2.0", "description": ""}
IDS = torch.randint(3, 380, (3, 17), generator=torch.Generator().manual_seed(5))


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits  # type: ignore[no-any-return]


def random_model(kind: str, tied: bool = True, **more: Any) -> Any:
    config = AutoConfig.for_model(
        kind,
        vocab_size=384,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        **{"head_dim": 16, **more},
    )
    with torch.random.fork_rng(devices=[]), calm_libraries():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():  # norms start at 1 and biases at 0, where a lost one would not show
            for value in model.parameters():
                if value.ndim == 1:
                    value += 0.3 * torch.randn(value.shape)
    return model.eval()


@pytest.fixture
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(tiny)


@pytest.mark.parametrize(
    ("kind", "tied", "more"),
    [
        ("llama", True, {}),
        ("llama", False, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        ("qwen2", True, {}),
        ("qwen3", False, {"rms_norm_eps": 1e-4, "head_dim": 128}),
    ],
)
def test_a_file_computes_what_the_model_does(
    tmp_path: Path, tokenizer: Any, kind: str, tied: bool, more: dict[str, Any]
) -> None:
    model = random_model(kind, tied, **more)
    write_gguf(model, tokenizer, tmp_path / "small.gguf", "f32", ABOUT)
    back = load_gguf(tmp_path / "small.gguf", tokenizer)
    torch.testing.assert_close(logits(back.model), logits(model), rtol=1e-4, atol=1e-4)
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "small.gguf").tensors}
    assert ("output.weight" in names) is not tied
    assert back.generate([[Message("user", "Who may bring a boat?")]], 4)[0].output_tokens > 0


@given(heads=st.integers(1, 6), half=st.integers(1, 8), width=st.integers(1, 5))
def test_rows_are_paired_as_transformers_takes_them_apart(heads: int, half: int, width: int) -> None:
    weight = torch.arange(heads * 2 * half * width, dtype=torch.float32).reshape(-1, width)
    paired = pair_rows(weight, heads)
    back = LlamaTensorProcessor()._reverse_permute_weights(paired.numpy(), heads, heads)
    assert np.array_equal(back, weight.numpy())


def test_rows_are_paired_by_hand() -> None:
    """Two heads of four rows: halves (0, 1 | 2, 3) become neighbours (0, 2), (1, 3)."""
    assert pair_rows(torch.arange(8.0)[:, None], 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize("quantise", get_args(Quantisation))
def test_a_quantised_weight_is_off_by_half_a_step_at_most(
    tmp_path: Path, tokenizer: Any, quantise: Quantisation
) -> None:
    """A step: a share of the number's own size for floats, of the block's range (32 numbers) for the others."""
    model = random_model("llama", tied=False)
    write_gguf(model, tokenizer, tmp_path / "small.gguf", quantise, ABOUT)
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "small.gguf").tensors}
    down = tensors["blk.0.ffn_down.weight"]
    assert down.tensor_type == QUANTISATIONS[quantise][0]
    exact = model.state_dict()["model.layers.0.mlp.down_proj.weight"].numpy()
    stored = gguf.dequantize(down.data, down.tensor_type).reshape(exact.shape)
    blocks = exact.reshape(-1, 32)
    largest = np.abs(blocks).max(1, keepdims=True)
    spread = blocks.max(1, keepdims=True) - blocks.min(1, keepdims=True)
    step = {
        "f32": 0 * blocks,
        "f16": np.abs(blocks) * 2**-10,
        "bf16": np.abs(blocks) * 2**-7,
        "q8_0": largest / 127,
        "q5_1": spread / 31,
        "q4_1": spread / 15,
    }[quantise]
    # The scale of a block is itself a 16-bit float, and so is its offset.
    assert (np.abs(stored.reshape(-1, 32) - blocks) <= step / 2 + 2**-10 * largest * (quantise != "f32")).all()
    assert tensors["blk.0.attn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    whole = {"q5_1": "q8_0", "q4_1": "q8_0"}.get(quantise, quantise)
    assert tensors["token_embd.weight"].tensor_type == QUANTISATIONS[whole][0]  # type: ignore[index]


def test_metadata_is_the_models(tmp_path: Path, tokenizer: Any) -> None:
    model = random_model("llama", rms_norm_eps=1e-6)
    write_gguf(model, tokenizer, tmp_path / "small.gguf", "q8_0", ABOUT)
    fields = gguf.GGUFReader(tmp_path / "small.gguf").fields
    said = {name: field.contents() for name, field in fields.items()}
    expected = {
        "general.architecture": "llama",
        "general.name": "small",
        "general.license": "Apache-2.0",
        "general.file_type": 7,
        "llama.block_count": 2,
        "llama.context_length": 512,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": 384,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": tokenizer.chat_template,
    }
    assert {name: said.get(name) for name in expected} == expected
    assert said["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert "general.description" not in said
    tokens = said["tokenizer.ggml.tokens"]
    assert [tokens.index(token) for token in ("<|im_start|>", "<|im_end|>")] == [1, 2]
    assert [tokens[i] for i in range(len(tokenizer))] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    spare = 384 - len(tokenizer)
    assert tokens[len(tokenizer) :] == [f"[PAD{i}]" for i in range(len(tokenizer), 384)]
    kinds = said["tokenizer.ggml.token_type"]
    assert (kinds.count(3), kinds.count(5), kinds.count(1)) == (3, spare, len(tokenizer) - 3)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert said["tokenizer.ggml.merges"] == [" ".join(pair) for pair in merges]


# Pre-tokenizers


def byte_level(pre_tokenizer: Any, whole_words: bool = False) -> Any:
    vocabulary = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=whole_words))
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize("name", KNOWN)
def test_a_pre_tokenizer_is_told_by_how_it_cuts(name: str) -> None:
    known = KNOWN[name]
    assert pre_tokenizer_name(byte_level(known.make(), known.whole_words)) == name


def test_digits_apart_are_not_taken_for_gpt_2() -> None:
    """SmolLM2's own tokenizer cuts digits apart; the one that transformers reads from its GGUF file does not."""
    apart = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert pre_tokenizer_name(byte_level(apart)) == "smollm"


@pytest.mark.parametrize(
    "odd",
    [pre_tokenizers.ByteLevel(add_prefix_space=True), pre_tokenizers.Whitespace(), KNOWN["llama-bpe"].make()],
    ids=["prefix space", "white space", "llama's without whole words"],
)
def test_a_pre_tokenizer_that_llama_cpp_would_not_match_is_refused(odd: Any) -> None:
    with pytest.raises(ConfigError, match="cuts text like none of those that can be exported: gpt-2, smollm"):
        pre_tokenizer_name(byte_level(odd))


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(ConfigError, match="is WordLevel with decoder None; byte-level BPE alone"):
        write_gguf(random_model("llama"), words, tmp_path / "small.gguf", "f16", ABOUT)


# Refusals


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("gpt_neox", {}, "models of type gpt_neox cannot be exported to GGUF yet; these can: llama, qwen2, qwen3"),
        ("llama", {"attention_bias": True}, "llama model has biases"),
        ("llama", {"hidden_act": "gelu"}, "llama model has activation gelu"),
        ("qwen3", {"head_dim": 64}, "qwen3 model has heads of 64 numbers"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "rotary embedding of type linear",
        ),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}, "qwen2 model has sliding_attention layers"),
    ],
)
def test_what_a_file_would_not_stand_for_is_refused(kind: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_exportable(AutoConfig.for_model(kind, num_hidden_layers=2, **more))


def test_rows_that_blocks_do_not_cut_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    model = random_model("llama")
    model.model.layers[0].mlp.down_proj.weight = torch.nn.Parameter(torch.zeros(64, 90))
    with pytest.raises(
        ConfigError, match=r"blk.0.ffn_down.weight is 90 wide, no multiple of 32 as q8_0 needs; use f16"
    ):
        write_gguf(model, tokenizer, tmp_path / "small.gguf", "q8_0", ABOUT)


def test_every_quantisation_of_the_config_can_be_written() -> None:
    assert tuple(gguf_export.QUANTISATIONS) == get_args(Quantisation)


# The real model


@pytest.mark.models
def test_the_default_generator_survives_the_way_there_and_back(tmp_path: Path) -> None:
    folder = resolve(DEFAULT_GENERATOR)
    tokenizer = load_tokenizer(folder)
    model = load_weights(folder, torch.float32)
    write_gguf(model, tokenizer, tmp_path / "smollm2.gguf", "bf16", ABOUT)
    back = load_gguf(tmp_path / "smollm2.gguf", tokenizer).model.state_dict()
    assert all(torch.equal(back[name], value) for name, value in model.state_dict().items())
