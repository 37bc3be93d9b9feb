"""Fused LoRA layers against peft's own, forwards and backwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from ragtune.generator.fused_lora import fuse_lora
from ragtune.generator.quiet import calm_libraries

SMALL = LlamaConfig(
    vocab_size=30,
    hidden_size=32,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def model_with(**settings: Any) -> Any:
    """A small model with a LoRA adapter that does something."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", **settings)
    with calm_libraries():
        model = get_peft_model(LlamaForCausalLM(SMALL), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    return model


def logits_and_gradients(model: Any) -> list[torch.Tensor]:
    """Of the sum of the logits' squares, so that every weight has a part in it."""
    logits = model(torch.arange(12).view(2, 6)).logits
    model.zero_grad()
    logits.square().sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)]


@pytest.mark.parametrize(("settings", "each"), [({}, 2), ({"use_dora": True}, 3)])
def test_fused_layers_give_the_same_logits_and_gradients(settings: dict[str, Any], each: int) -> None:
    model = model_with(**settings)
    expected = logits_and_gradients(model)
    fuse_lora(model)
    found = logits_and_gradients(model)
    assert len(found) == 1 + 2 * 7 * each  # logits; A, B and DoRA's magnitudes of seven matrices in two layers
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}])
@pytest.mark.parametrize("change", [lambda m: m.merge_adapter(), lambda m: m.base_model.disable_adapter_layers()])
def test_merged_or_switched_off_adapters_are_added_no_second_time(
    change: Callable[[Any], None], settings: dict[str, Any]
) -> None:
    plain, fused = model_with(**settings), model_with(**settings)
    fuse_lora(fused)
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        for model in (plain, fused):
            change(model)
        torch.testing.assert_close(fused(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.5}, {"lora_dropout": 0.5, "use_dora": True}])
def test_layers_that_do_more_are_left_alone(settings: dict[str, Any]) -> None:
    model = model_with(**settings)
    fuse_lora(model)
    ours = [m for m in model.modules() if "forward" in vars(m) or type(m).__module__ == fuse_lora.__module__]
    assert ours == []
