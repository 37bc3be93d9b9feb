"""Attention joined of two parts against attention to all keys at once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from ragtune.generator import shared_prefix

ROWS, HEADS, KEY_HEADS, SIZE, SHARED = 3, 6, 2, 16, 11
SMALL = {
    "vocab_size": 30,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def mask_of(tokens: int, own: int) -> torch.Tensor:
    """Causal; row 1 begins with two keys of padding, which its own first queries see, as padding must see something."""
    allowed = torch.ones(tokens, own, dtype=torch.bool).tril(own - tokens).repeat(ROWS, 1, 1)
    allowed[1, :, :2] = False
    allowed |= torch.eye(own, dtype=torch.bool)[own - tokens :]
    return torch.zeros(ROWS, 1, tokens, own).masked_fill_(~allowed[:, None], torch.finfo(torch.float32).min)


@pytest.mark.parametrize(("tokens", "own"), [(1, 5), (4, 4), (4, 9)])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("training", [False, True])
def test_two_parts_joined_are_attention_to_all_keys(
    tokens: int, own: int, scaling: float | None, training: bool
) -> None:
    """In training they are not joined: there the keys are set one behind the other."""
    torch.manual_seed(0)
    query = torch.randn(ROWS, HEADS, tokens, SIZE)
    key, value = torch.randn(2, ROWS, KEY_HEADS, own, SIZE)
    common = torch.randn(2, 1, KEY_HEADS, SHARED, SIZE)
    mask = mask_of(tokens, own)
    module = SimpleNamespace(layer_idx=0, num_key_value_groups=HEADS // KEY_HEADS)
    with torch.set_grad_enabled(training):
        found, _ = shared_prefix._attend(
            module, query, key, value, mask, scaling=scaling, shared_prefix=[(common[0], common[1])]
        )
    whole = [
        torch.cat([common[i].expand(ROWS, -1, -1, -1), x], 2).repeat_interleave(3, 1) for i, x in ((0, key), (1, value))
    ]
    everything = torch.cat([torch.zeros(ROWS, 1, tokens, SHARED), mask], -1)
    expected = torch.nn.functional.scaled_dot_product_attention(query, *whole, attn_mask=everything, scale=scaling)
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mask", [mask_of(7, 7), "causal", "none"], ids=["mask", "causal", "none"])
def test_the_processors_kernel_gives_what_plain_arithmetic_gives(mask: shared_prefix.Mask) -> None:
    torch.manual_seed(1)
    query, key, value = torch.randn(3, ROWS, HEADS, 7, SIZE)
    arguments = (query, key, value, mask, 0.25)
    for a, b in zip(shared_prefix._partial(*arguments), shared_prefix.plain_partial(*arguments), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_only_plain_attention_is_joined() -> None:
    plain = LlamaForCausalLM(LlamaConfig(**SMALL))
    eager = LlamaForCausalLM._from_config(LlamaConfig(**SMALL), attn_implementation="eager")
    sliding = MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4))
    for model in (plain, eager, sliding):
        shared_prefix.enable(model)
    assert [shared_prefix.is_enabled(model) for model in (plain, eager, sliding)] == [True, False, False]


def test_a_model_called_without_a_shared_beginning_answers_as_before() -> None:
    torch.manual_seed(2)
    model = LlamaForCausalLM(LlamaConfig(**SMALL)).eval()
    ids = torch.randint(0, 30, (2, 9))
    with torch.no_grad():
        before = model(ids).logits
        shared_prefix.enable(model)
        torch.testing.assert_close(model(ids).logits, before)
