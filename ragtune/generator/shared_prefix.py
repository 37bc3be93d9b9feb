"""Attention to a beginning that all rows of a batch share: its keys and values are kept once, not once a row.

Each query attends to the shared keys and to its own row's keys apart; the two results are joined by the sums of their
softmax weights, which gives the attention to all keys. Juravsky et al. 2024 (Hydragen), arXiv:2402.05099.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ragtune.generator.causal_attention import causal_attention

_NAME = "ragtune_shared_prefix"

States = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of the beginning for each layer, each of shape (1, key heads, tokens, head size)."""

Mask = torch.Tensor | Literal["causal", "none"]
"""What a query may see: an additive mask, the keys up to its own place, or all keys."""


def enable(model: Any) -> None:
    """Let a model be called with `shared_prefix=States`, where its attention is of the plain kind.

    Sliding windows, sinks, values of another size than keys and a model's own kernels are left as they are, as
    `is_enabled` says.
    """
    plain = model.config._attn_implementation == "sdpa" and type(model)._supports_attention_backend
    plain = plain and not hasattr(model.config, "v_head_dim")
    layers = DynamicCache(config=model.config).layers
    if plain and layers and all(type(layer) is DynamicLayer for layer in layers):
        model.set_attn_implementation(_NAME)


def is_enabled(model: Any) -> bool:
    """True when the model takes `shared_prefix`."""
    return bool(model.config._attn_implementation == _NAME)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    shared_prefix: States | None = None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls.

    `attention_mask` is additive and covers the rows' own keys; None means causal.
    """
    if shared_prefix is None:
        attended, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **arguments)
        return attended, None
    if torch.is_grad_enabled():
        own_prefix = shared_prefix[module.layer_idx]
        return _attend_to_joined(module, query, (key, value), own_prefix, attention_mask, scaling=scaling, **arguments)
    rows, heads, tokens, size = query.shape
    key_heads = key.shape[1]
    groups = heads // key_heads
    mask: Mask = attention_mask if attention_mask is not None else "causal" if tokens > 1 else "none"
    # Query heads that share a key head are further queries to it; a mask of several tokens would have to be repeated.
    folded = query.reshape(rows, key_heads, groups * tokens, size)
    if tokens == 1:
        own, own_sum = _partial(folded, key, value, mask, scaling)
    else:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        own, own_sum = _partial(query, key, value, mask, scaling)
    # To the shared keys, all rows are queries of one row.
    shared_key, shared_value = shared_prefix[module.layer_idx]
    lined_up = folded.transpose(0, 1).reshape(1, key_heads, -1, size)
    common, common_sum = _partial(lined_up, shared_key, shared_value, "none", scaling)
    common = common.reshape(key_heads, rows, -1, size).transpose(0, 1).reshape(own.shape)
    common_sum = common_sum.reshape(key_heads, rows, -1).transpose(0, 1).reshape(own_sum.shape)
    share = torch.sigmoid(common_sum - own_sum).unsqueeze(-1).to(own.dtype)
    joined = torch.lerp(own, common.to(own.dtype), share).reshape(query.shape)
    return joined.transpose(1, 2).contiguous(), None


def _attend_to_joined(
    module: Any,
    query: torch.Tensor,
    own: tuple[torch.Tensor, torch.Tensor],
    common: tuple[torch.Tensor, torch.Tensor],
    mask: torch.Tensor | None,
    scaling: float | None = None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """The same for training, over one row of keys: the sums that join two parts have no gradient in the kernel."""
    length = common[0].shape[-2]
    key, value = (
        torch.cat([shared.expand(len(query), -1, -1, -1), rows], -2) for shared, rows in zip(common, own, strict=True)
    )
    if mask is not None:
        mask = pad(mask, (length, 0), value=mask.dtype == torch.bool)
        attended, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **arguments)
        return attended, None
    # As many queries as keys, so that a causal kernel needs no mask; those in front are thrown away.
    query = pad(query, (0, 0, length, 0))
    if query.device.type == "cpu" and not arguments.get("dropout"):
        attended = causal_attention(query, key, value, scaling or query.shape[-1] ** -0.5).transpose(1, 2)
    else:
        attended, _ = sdpa_attention_forward(module, query, key, value, None, scaling=scaling, **arguments)
    return attended[:, length:], None


def _partial(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Mask, scaling: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to these keys alone, and the logarithm of the sum of its softmax weights, (rows, heads, queries)."""
    if query.device.type == "cpu":
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        additive = mask if isinstance(mask, torch.Tensor) else None
        attended, log_sum = flash(query, key, value, 0.0, mask == "causal", attn_mask=additive, scale=scaling)
        return attended, log_sum
    return plain_partial(query, key, value, mask, scaling)


def plain_partial(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Mask, scaling: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`_partial` in plain arithmetic, for devices whose kernels do not give the sum."""
    scores = (query @ key.transpose(-1, -2)).float() * (scaling or 1 / math.sqrt(query.shape[-1]))
    if mask == "causal":
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    elif isinstance(mask, torch.Tensor):
        scores = scores + mask
    return (scores.softmax(-1).to(value.dtype) @ value), scores.logsumexp(-1)


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, sdpa_mask)
