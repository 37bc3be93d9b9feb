"""Weights that are kept, and trained, in another form than the model computes with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Parameter
from torch.nn.utils.parametrize import register_parametrization


class _Rounded(torch.nn.Module):
    """A weight kept in fp32 and used in another dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, kept: torch.Tensor) -> torch.Tensor:
        """What the model computes with."""
        return kept.to(self.dtype)


class Beside(torch.nn.Module):
    """A matrix kept in fp32 and used in another's dtype, with that frozen one behind it."""

    def __init__(self, frozen: torch.Tensor, dim: int) -> None:
        super().__init__()
        self.frozen: torch.Tensor
        self.register_buffer("frozen", frozen)
        self.dim = dim

    def forward(self, kept: torch.Tensor) -> torch.Tensor:
        """What the model computes with."""
        return torch.cat([kept.to(self.frozen.dtype), self.frozen], self.dim)


def train_in_fp32(model: Any, wanted: Callable[[str], bool] = lambda name: True) -> Any:
    """Keep what is trained in fp32 and compute with it in the dtype that it has now.

    Steps smaller than bf16 can show add up (Micikevicius et al. 2018, arXiv:1710.03740, section 3.1).
    """
    kept: dict[Parameter, Parameter] = {}
    for module in list(model.modules()):
        for name, value in list(module.named_parameters(recurse=False)):
            if not value.requires_grad or not wanted(name) or value.dtype == torch.float32:
                continue
            if value not in kept:  # tied weights stay tied
                kept[value] = Parameter(value.detach().float())
            setattr(module, name, kept[value])
            register_parametrization(module, name, _Rounded(value.dtype), unsafe=True)
    return model


def plain_name(name: str) -> str:
    """`layer.parametrizations.weight.original`, what is kept for a weight, by that weight's own name."""
    return name.replace("parametrizations.", "").removesuffix(".original")
