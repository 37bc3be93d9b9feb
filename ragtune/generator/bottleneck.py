"""Bottleneck adapters: a small network behind the sublayers of each decoder layer, before the residual is added.

Houlsby et al. 2019, arXiv:1902.00751, section 2.1, after attention and after the MLP; Pfeiffer et al. 2020,
arXiv:2005.00247, after the MLP only. peft has neither.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch

from ragtune.errors import ConfigError

Kind = Literal["adapter-houlsby", "adapter-pfeiffer"]
KINDS = get_args(Kind)

_ATTENTION = ("self_attn", "self_attention", "attention", "attn")
_MLP = ("mlp", "feed_forward", "ffn")
_NONLINEARITY: dict[Kind, Callable[[torch.Tensor], torch.Tensor]] = {
    "adapter-houlsby": torch.nn.functional.gelu,
    "adapter-pfeiffer": torch.nn.functional.relu,
}


class Bottleneck(torch.nn.Module):
    """h + U f(D h + d) + u, for hidden states h of shape (..., size).

    D is (width, size), drawn as in Houlsby et al. 2019, section 3.6; U is (size, width) and starts at 0, as d and u do,
    so that training starts from the base model.
    """

    def __init__(self, size: int, width: int, nonlinearity: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.down, self.up = torch.nn.Linear(size, width), torch.nn.Linear(width, size)
        self.nonlinearity = nonlinearity
        torch.nn.init.trunc_normal_(self.down.weight, std=0.01, a=-0.02, b=0.02)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            torch.nn.init.zeros_(zero)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden states with the network's output added."""
        added: torch.Tensor = self.up(self.nonlinearity(self.down(hidden)))
        return hidden + added


def insert(model: Any, kind: Kind, width: int) -> None:
    """Put a fresh bottleneck of this width behind each sublayer of its kind; everything else is frozen.

    Raises: ConfigError for a model whose layers are not made of attention and MLP one after the other.
    """
    size = model.config.hidden_size
    layers = [found for found in map(_sublayers, model.modules()) if found is not None]
    if len(layers) != model.config.num_hidden_layers:
        raise ConfigError(
            f"{kind} needs layers with attention ({', '.join(_ATTENTION)}) and an MLP ({', '.join(_MLP)}); "
            f"{len(layers)} of the {model.config.num_hidden_layers} layers of this {model.config.model_type} model "
            "are like that; use lora"
        )
    model.requires_grad_(False)
    for attention, mlp in layers:
        for sublayer in (attention, mlp) if kind == "adapter-houlsby" else (mlp,):
            like = next(sublayer.parameters())
            sublayer.bottleneck = Bottleneck(size, width, _NONLINEARITY[kind]).to(like.device, like.dtype)
            sublayer.register_forward_hook(_through_bottleneck)


def _sublayers(module: Any) -> tuple[Any, Any] | None:
    children = dict(module.named_children())
    attention = next((children[name] for name in _ATTENTION if name in children), None)
    mlp = next((children[name] for name in _MLP if name in children), None)
    return None if attention is None or mlp is None else (attention, mlp)


def _through_bottleneck(sublayer: Any, inputs: Any, output: Any) -> Any:
    """What a sublayer gives, its hidden states passed through its bottleneck; attention gives its weights, too."""
    if isinstance(output, tuple):
        return (sublayer.bottleneck(output[0]), *output[1:])
    return sublayer.bottleneck(output)
