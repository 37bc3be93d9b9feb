"""LoRA's part of a layer added in one matrix product; peft makes three more passes over the layer's output."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear


def fuse_lora(model: Any) -> None:
    """Let a model's plain LoRA layers compute W x + s B A x in place, in training and in answering alike.

    Hu et al. 2021, arXiv:2106.09685, section 4.1; s = alpha / r. Layers with dropout, variants such as DoRA, and packed
    weights are left as they are, and so is a layer whose adapter is merged or switched off.
    """
    for module in model.modules():
        if type(module) is Linear and not module.lora_variant and len(module.lora_A) == 1:
            (name,) = module.lora_A
            if isinstance(module.lora_dropout[name], torch.nn.Identity):
                module.forward = partial(_fused, module, name)


def _fused(module: Any, name: str, x: torch.Tensor, *arguments: Any, **more: Any) -> torch.Tensor:
    a, b = module.lora_A[name].weight, module.lora_B[name].weight
    if module.merged or module.disable_adapters or arguments or more or a.dtype != x.dtype:
        plain: torch.Tensor = Linear.forward(module, x, *arguments, **more)
        return plain
    rows = x.reshape(-1, x.shape[-1])
    # In place on the whole output: a view of it would cost the backward pass a copy.
    output = module.base_layer(rows).addmm_(torch.nn.functional.linear(rows, a), b.t(), alpha=module.scaling[name])
    return output.view(*x.shape[:-1], -1)  # type: ignore[no-any-return]
