"""LoRA's part of a layer added in one matrix product; peft makes three more passes over the layer's output."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from peft.tuners.lora.variants import DoraLinearVariant
from torch.nn.functional import linear


def fuse_lora(model: Any) -> None:
    """Let a model's LoRA layers compute W x + s B A x in place, in training and in answering alike, and DoRA's as well.

    Hu et al. 2021, arXiv:2106.09685, section 4.1; s = alpha / r. Layers with dropout, other variants and packed
    weights are left as they are, and so is a layer whose adapter is merged or switched off.
    """
    for module in model.modules():
        if type(module) is Linear and len(module.lora_A) == 1:
            (name,) = module.lora_A
            if isinstance(module.lora_dropout[name], torch.nn.Identity):
                _fuse(module, name)


def _fuse(module: Any, name: str) -> None:
    if not module.lora_variant:
        module.__class__ = _FusedLinear
    elif isinstance(module.lora_variant[name], DoraLinearVariant) and isinstance(module.base_layer, torch.nn.Linear):
        module.forward = partial(_fused_dora, module, name, _row_scale(module, name))


class _FusedLinear(Linear):
    """A layer's class, not its method, is changed: torch.compile takes layers of one class as one piece of code."""

    def forward(self, x: torch.Tensor, *arguments: Any, **more: Any) -> torch.Tensor:
        (name,) = self.lora_A
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        if self.merged or self.disable_adapters or arguments or more or a.dtype != x.dtype:
            plain: torch.Tensor = super().forward(x, *arguments, **more)
            return plain
        rows = x.reshape(-1, x.shape[-1])
        # In place on the whole output: a view of it would cost the backward pass a copy.
        output = self.base_layer(rows).addmm_(linear(rows, a), b.t(), alpha=self.scaling[name])
        return output.view(*x.shape[:-1], -1)  # type: ignore[no-any-return]


def _fused_dora(
    module: Any, name: str, row_scale: Callable[[], torch.Tensor], x: torch.Tensor, *arguments: Any, **more: Any
) -> torch.Tensor:
    """The product c (W x + s B A x), one factor c a row; A and B are kept in fp32 and used in the layer's dtype."""
    if module.merged or module.disable_adapters or arguments or more:
        plain: torch.Tensor = Linear.forward(module, x, *arguments, **more)
        return plain
    rows = x.reshape(-1, x.shape[-1])
    a, b = (side[name].weight.to(x.dtype) for side in (module.lora_A, module.lora_B))
    output = linear(rows, module.base_layer.weight).addmm_(linear(rows, a), b.t(), alpha=module.scaling[name])
    output = (output * row_scale()).to(x.dtype)
    if module.base_layer.bias is not None:
        output = output + module.base_layer.bias
    return output.view(*x.shape[:-1], -1)


def row_norms(weight: torch.Tensor) -> torch.Tensor:
    """The Euclidean length of each row, fp32: what DoRA's magnitudes start from."""
    return weight.detach().float().square().sum(1).sqrt()


def _row_scale(module: Any, name: str) -> Callable[[], torch.Tensor]:
    """A function that gives DoRA's c = m / ||W + s B A||, one for each row; the norm counts as a constant.

    Liu et al. 2024, arXiv:2402.09353, equation 5 and section 4.3. The norm is taken without making B A:
    ||W + s B A||^2 = ||W||^2 + 2 s <W A', B> + s^2 <B A A', B>, row by row. A frozen adapter's c is made once.
    """
    weight, scaling = module.base_layer.weight.detach(), module.scaling[name]
    magnitude, of_base = module.lora_magnitude_vector[name].weight, row_norms(weight).square()

    def scale() -> torch.Tensor:
        with torch.no_grad():
            a, b = module.lora_A[name].weight.float(), module.lora_B[name].weight.float()
            crossed = linear(weight, a.to(weight.dtype)).float()
            squares = of_base + (2 * scaling * crossed * b + scaling**2 * (b @ (a @ a.t())) * b).sum(1)
        return magnitude / squares.sqrt()  # type: ignore[no-any-return]

    if magnitude.requires_grad:
        return scale
    frozen = scale()
    return lambda: frozen
