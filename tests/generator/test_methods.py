"""The registry of methods, and NF4 against its definition and against bitsandbytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear4bit

from ragtune.config import TuneConfig
from ragtune.errors import ConfigError
from ragtune.generator.generate import load_weights
from ragtune.generator.methods import METHODS, choose_method, keep_in_nf4, round_to_nf4
from ragtune.generator.train import keeps_nf4_packed

# Dettmers et al. 2023 (arXiv 2305.14314), appendix E, to seven digits.
NEGATIVE = (-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500)
POSITIVE = (0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0)
NF4 = (*NEGATIVE, 0.0, *POSITIVE)


def matrices(model: Any) -> dict[str, torch.Tensor]:
    return {
        name: module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }


@pytest.fixture
def base(tiny: Path) -> Any:
    return load_weights(tiny, torch.float32)


def stack() -> Any:
    """Two decoder matrices, one with a bias, as Qwen's have."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(128, 192), torch.nn.Tanh(), torch.nn.Linear(192, 96, bias=False))


# The registry


def test_unknown_method() -> None:
    with pytest.raises(ConfigError, match="unknown method 'lorra'; expected auto or one of: lora, qlora"):
        choose_method("lorra")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_by_name(name: str) -> None:
    assert choose_method(name) == (METHODS[name], f"{name}: as asked")


@pytest.mark.parametrize(("gpu", "expected", "packed"), [(False, "lora", False), (True, "qlora", True)])
def test_auto_says_what_it_chose_and_why(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, expected: str, packed: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    method, why = choose_method("auto")
    assert (method.name, why.partition(":")[0]) == (expected, expected)
    assert keeps_nf4_packed(TuneConfig()) is packed
    assert keeps_nf4_packed(TuneConfig(dequantise="each-use"))
    assert not keeps_nf4_packed(TuneConfig(dequantise="once"))


def test_settings_reach_peft() -> None:
    made = METHODS["lora"].peft_config(TuneConfig(rank=3, alpha=5, dropout=0.25))
    assert (made.r, made.lora_alpha, made.lora_dropout, made.target_modules) == (3, 5, 0.25, "all-linear")


# NF4


def test_every_rounded_weight_is_the_nearest_of_16_values_times_its_blocks_scale(base: Any) -> None:
    """The scale is the block's largest weight, itself rounded to 8 bits (double quantisation, section 3).

    Those 8 bits lie on a scale over all blocks of the matrix, so their error is a share of the scales' spread.
    """
    before = {name: weight.clone() for name, weight in matrices(base).items()}
    round_to_nf4(base)
    codes = torch.tensor(NF4)
    for name, after in matrices(base).items():
        old, new = before[name].reshape(-1, 64), after.reshape(-1, 64)
        true_scale, scale = old.abs().amax(1, keepdim=True), new.abs().amax(1, keepdim=True)
        spread = (true_scale - true_scale.mean()).abs().max()
        assert (scale - true_scale).abs().max() <= 0.05 * spread
        distance, index = (new / scale)[..., None].sub(codes).abs().min(-1)
        assert distance.max() < 1e-6
        error = (old / true_scale - codes[index]).abs()
        nearest = (old / true_scale)[..., None].sub(codes).abs().amin(-1)
        torch.testing.assert_close(error, nearest, rtol=0, atol=1e-6)
        assert set(index.flatten().tolist()) == set(range(16))


def test_rounding_is_bitsandbytes_own(base: Any) -> None:
    """Of matrices that are a multiple of 64 wide; others it dequantises with the scales of other blocks on a CPU."""
    before = {name: weight.clone() for name, weight in matrices(base).items()}
    round_to_nf4(base)
    assert len(before) == 14
    for name, weight in matrices(base).items():
        wide = before[name].reshape(-1, 64)
        packed, state = quantize_4bit(wide, quant_type="nf4", compress_statistics=True)
        assert torch.equal(weight.reshape(-1, 64), dequantize_4bit(packed, state)), name
        assert not torch.equal(weight, before[name])


def test_the_4_bit_layer_multiplies_by_the_same_matrix() -> None:
    """In training mode: where the CPU has AVX512-BF16, bitsandbytes answers with scales rounded to bf16."""
    rounded, packed = stack(), stack()
    round_to_nf4(rounded)
    keep_in_nf4(packed)
    assert [type(layer) for layer in packed] == [Linear4bit, torch.nn.Tanh, Linear4bit]
    assert [layer.weight.dtype for layer in packed if isinstance(layer, Linear4bit)] == [torch.uint8] * 2
    assert packed[0].weight.numel() == 128 * 192 // 2
    inputs = torch.randn(7, 128)
    torch.testing.assert_close(packed.train()(inputs), rounded(inputs), rtol=1e-5, atol=1e-6)
    assert torch.equal(packed[0].bias, rounded[0].bias)
    assert (stack()(inputs) - rounded(inputs)).abs().max() > 1e-3


def test_rows_that_bitsandbytes_would_unpack_wrongly_on_a_cpu_are_refused(base: Any) -> None:
    with pytest.raises(ConfigError, match=r'q_proj is 32 wide, no multiple of 64.*set tune.dequantise = "once"'):
        keep_in_nf4(base)


def test_a_width_that_is_no_multiple_of_the_block_is_rounded_as_well_as_any() -> None:
    """The error of NF4 on normal weights is near 0.092 of their size; bitsandbytes' own way back gives 0.26 here."""
    torch.manual_seed(0)
    odd = torch.nn.Linear(96, 64, bias=False)
    torch.nn.init.normal_(odd.weight)
    before = odd.weight.detach().clone()
    round_to_nf4(odd)
    assert ((odd.weight - before).norm() / before.norm()).item() == pytest.approx(0.092, abs=0.004)


@pytest.mark.parametrize("pack", [round_to_nf4, keep_in_nf4])
def test_embeddings_norms_and_head_stay_as_they_are(wide: Path, pack: Callable[[Any], Any]) -> None:
    model, original = load_weights(wide, torch.float32), load_weights(wide, torch.float32).state_dict()
    pack(model)
    after = model.state_dict()
    kept = [name for name in original if not name.endswith("_proj.weight")]
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} < set(kept)
    assert all(torch.equal(after[name], original[name]) for name in kept)
    assert type(model.lm_head) is torch.nn.Linear
    changed = [name for name in original if name.endswith("_proj.weight")]
    assert len(changed) == 14
    assert not any(
        after[name].shape == original[name].shape and torch.equal(after[name], original[name]) for name in changed
    )
