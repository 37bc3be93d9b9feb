"""Causal attention with a faster way back on a CPU: matrix products over blocks instead of the fused kernel's loop.

The forward pass is torch's fused kernel. The backward pass computes the attention weights of a block of queries again
and takes the gradient from them: with S = s Q K^T, P = softmax(S) and O = P V,

    dV = P^T dO,   dS = P * (dO V^T - rowsum(P * dO V^T)),   dQ = s dS K,   dK = s dS^T Q

(Dao et al. 2022, FlashAttention, arXiv:2205.14135, appendix B.2). A query's block sees no key behind it, so about half
of the products are left out for long rows.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "ragtune_training"
_QUERIES = 128  # of one block
_WEIGHTS = 1 << 20  # attention weights that are worked on at a time: they stay in the cache


def enable(model: Any) -> None:
    """Let a model train with this attention where it is on a CPU and its attention is torch's own."""
    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(_NAME)


def disable(model: Any) -> None:
    """Give the model torch's own attention back, as it answers."""
    if model.config._attn_implementation == _NAME:
        model.set_attn_implementation("sdpa")


@torch.library.custom_op("ragtune::causal_attention", mutates_args=())
def causal_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention of each query to the keys up to its own place.

    query: (rows, heads, tokens, size); key and value: (rows, key heads, tokens, size). Returns (rows, heads, tokens,
    size). Query heads share key heads in their order (grouped-query attention).
    """
    groups = query.shape[1] // key.shape[1]
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return flash(query, key, value, 0.0, True, scale=scale)[0].contiguous()  # type: ignore[no-any-return]


@causal_attention.register_fake
def _shape(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@torch.library.custom_op("ragtune::causal_attention_gradient", mutates_args=())
def _gradient(
    grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, heads, tokens, size = query.shape
    key_heads = key.shape[1]
    groups = heads // key_heads
    d_query = torch.empty_like(query, memory_format=torch.contiguous_format)
    d_key, d_value = (torch.zeros(key.shape, dtype=torch.float32) for _ in range(2))
    for start in range(0, tokens, _QUERIES):
        end = min(start + _QUERIES, tokens)
        lowest = torch.finfo(query.dtype).min
        later = torch.full((end - start, end), lowest, dtype=query.dtype).triu_(1 + start).repeat(groups, 1)
        at_once = max(1, _WEIGHTS // (heads * (end - start) * end))
        for first in range(0, rows, at_once):
            part = slice(first, first + at_once)
            # Query heads that share a key head are further queries to it.
            q, g = (x[part, :, start:end].reshape(-1, groups * (end - start), size) for x in (query, grad))
            k, v = (x[part, :, :end].reshape(-1, end, size) for x in (key, value))
            weights = torch.baddbmm(later, q, k.mT, alpha=scale).softmax(-1)
            d_scores = torch._softmax_backward_data(torch.bmm(g, v.mT), weights, -1, query.dtype)
            d_query[part, :, start:end] = torch.bmm(d_scores, k).view(-1, heads, end - start, size)
            d_key[part, :, :end] += torch.bmm(d_scores.mT, q).view(-1, key_heads, end, size)
            d_value[part, :, :end] += torch.bmm(weights.mT, g).view(-1, key_heads, end, size)
    return d_query.mul_(scale), d_key.mul_(scale).to(key.dtype), d_value.to(value.dtype)


@_gradient.register_fake
def _gradient_shapes(
    grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    inputs = (query, key, value)
    d_query, d_key, d_value = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs)
    return d_query, d_key, d_value


def _keep(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor, float], output: torch.Tensor) -> None:
    query, key, value, ctx.scale = inputs
    ctx.save_for_backward(query, key, value)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
    return *_gradient(grad, *ctx.saved_tensors, ctx.scale), None


causal_attention.register_autograd(_backward, setup_context=_keep)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls. What is not plainly causal takes torch's own way."""
    plain = attention_mask is None and not dropout and query.shape[2] == key.shape[2]
    if not plain or value.shape[-1] != query.shape[-1]:
        attended, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **arguments
        )
        return attended, None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return causal_attention(query, key, value, scale).transpose(1, 2), None


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, sdpa_mask)
