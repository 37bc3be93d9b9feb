"""Attention for training against torch's own, in values and gradients, and in a model that trains with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtune.generator import causal_attention
from ragtune.generator.generate import load_weights

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def drawn(rows: int, heads: int, key_heads: int, tokens: int, dtype: torch.dtype, seed: int = 0) -> Heads:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(rows, count, tokens, 8) for count in (heads, key_heads, key_heads)]
    query, key, value = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def reference(inputs: Heads, scale: float) -> torch.Tensor:
    """softmax(scale Q K^T) V with a causal mask, written out."""
    query, key, value = inputs
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    later = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool).triu(1)
    scores = (scale * query @ key.mT).masked_fill(later, -torch.inf)
    return scores.softmax(-1) @ value


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 4),
    key_heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    tokens=st.sampled_from((1, 2, 77, 128, 129, 300)),
    scale=st.floats(0.05, 1.0),
    budget=st.sampled_from((1, 1 << 20)),
)
def test_values_and_gradients_are_those_of_the_formula(
    rows: int, key_heads: int, groups: int, tokens: int, scale: float, budget: int
) -> None:
    inputs = drawn(rows, key_heads * groups, key_heads, tokens, torch.float32)
    exact = tuple(x.detach().double().requires_grad_() for x in inputs)
    upstream = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(causal_attention, "_WEIGHTS", budget)  # one row at a time, or all together
        output = causal_attention.causal_attention(*inputs, scale)
        output.backward(upstream)
    expected = reference(exact, scale)
    expected.backward(upstream.double())
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-5)
    for own, theirs in zip(inputs, exact, strict=True):
        assert own.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(own.grad.double(), theirs.grad, atol=1e-4, rtol=1e-4)


def test_in_bf16_its_gradients_are_as_near_to_the_truth_as_those_of_torch() -> None:
    inputs = drawn(2, 4, 2, 200, torch.bfloat16)
    exact = tuple(x.detach().double().requires_grad_() for x in inputs)
    upstream = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    reference(exact, 0.3).backward(upstream.double())
    causal_attention.causal_attention(*inputs, 0.3).backward(upstream)
    for own, theirs in zip(inputs, exact, strict=True):
        assert own.grad is not None
        assert theirs.grad is not None
        assert (own.grad.double() - theirs.grad).norm() < 0.01 * theirs.grad.norm()


def test_a_model_trains_with_it_as_with_torchs_own(tiny: Path) -> None:
    ids = torch.randint(0, 300, (3, 150), generator=torch.Generator().manual_seed(0))
    gradients = []
    for own in (False, True):
        model = load_weights(tiny, torch.float32)
        if own:
            causal_attention.enable(model)
            assert model.config._attn_implementation == "ragtune_training"
        model(input_ids=ids, use_cache=False).logits.square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)


def test_what_is_masked_takes_torchs_way(tiny: Path) -> None:
    ids = torch.randint(0, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    real = torch.ones_like(ids)
    real[0, :4] = 0
    plain = load_weights(tiny, torch.float32)
    with torch.no_grad():
        expected = plain(input_ids=ids, attention_mask=real).logits
        causal_attention.enable(plain)
        logits = plain(input_ids=ids, attention_mask=real).logits
    torch.testing.assert_close(logits[0, 4:], expected[0, 4:])
    torch.testing.assert_close(logits[1], expected[1])


def test_a_model_answers_with_torchs_own_again(tiny: Path) -> None:
    model = load_weights(tiny, torch.float32)
    causal_attention.enable(model)
    causal_attention.disable(model)
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    causal_attention.enable(model)
    causal_attention.disable(model)
    assert model.config._attn_implementation == "eager"
