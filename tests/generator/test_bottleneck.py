"""Bottleneck adapters against the papers' arithmetic: what they compute, and where they stand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from ragtune.config import TuneConfig
from ragtune.errors import ConfigError
from ragtune.generator import bottleneck
from ragtune.generator.adapters import put_on, trainable
from ragtune.generator.bottleneck import Bottleneck
from ragtune.generator.generate import load_weights
from ragtune.generator.methods import METHODS

IDS = torch.tensor([[7, 30, 4, 99, 250, 11], [5, 5, 61, 8, 17, 200]])


def filled(size: int, width: int, nonlinearity: Any) -> Bottleneck:
    """A bottleneck whose weights are all drawn, so that nothing is 0 by chance of its start."""
    made = Bottleneck(size, width, nonlinearity)
    for weight in made.parameters():
        torch.nn.init.normal_(weight)
    return made


def test_by_hand() -> None:
    """D = [[1, -1], [0, 2]], d = (0, 1), U = [[1, 0], [2, 1]], u = (0.5, 0): at h = (3, 1), D h + d = (2, 3)."""
    made = Bottleneck(2, 2, torch.nn.functional.relu)
    with torch.no_grad():
        made.down.weight.copy_(torch.tensor([[1.0, -1], [0, 2]]))
        made.down.bias.copy_(torch.tensor([0.0, 1]))
        made.up.weight.copy_(torch.tensor([[1.0, 0], [2, 1]]))
        made.up.bias.copy_(torch.tensor([0.5, 0]))
    assert made(torch.tensor([3.0, 1])).tolist() == [3 + 2 + 0.5, 1 + 2 * 2 + 3]
    # h = (0, 1): D h + d = (-1, 3), and ReLU takes the first to 0.
    assert made(torch.tensor([0.0, 1])).tolist() == [0 + 0 + 0.5, 1 + 0 + 3]
    made.nonlinearity = torch.nn.functional.gelu
    gelu = -1 * 0.5 * (1 + math.erf(-1 / math.sqrt(2)))
    assert made(torch.tensor([0.0, 1]))[0].item() == pytest.approx(gelu + 0.5, abs=1e-6)


def test_it_starts_as_the_identity_near_0() -> None:
    """Houlsby et al. 2019, section 3.6: a normal of 0.01, cut at two standard deviations; cut there it has 0.0088."""
    torch.manual_seed(0)
    made = Bottleneck(256, 64, torch.nn.functional.gelu)
    hidden = torch.randn(3, 5, 256)
    assert torch.equal(made(hidden), hidden)
    assert made.down.weight.abs().max() <= 0.02
    assert made.down.weight.std().item() == pytest.approx(0.0088, rel=0.02)


@pytest.mark.parametrize("kind", bottleneck.KINDS)
def test_it_stands_behind_its_sublayers_before_the_residual(tiny: Path, kind: bottleneck.Kind) -> None:
    """The first decoder layer, written out: h + A(attention(norm(h))), then h + A(mlp(norm(h)))."""
    model = load_weights(tiny, torch.float32)
    bottleneck.insert(model, kind, 3)
    layer = model.model.layers[0]
    after = {name: getattr(layer, name) for name in ("self_attn", "mlp") if hasattr(getattr(layer, name), "bottleneck")}
    assert set(after) == ({"self_attn", "mlp"} if kind == "adapter-houlsby" else {"mlp"})
    f = torch.nn.functional.gelu if kind == "adapter-houlsby" else torch.nn.functional.relu
    for sublayer in after.values():
        sublayer.bottleneck = filled(32, 3, f)

    def adapted(name: str, hidden: torch.Tensor) -> torch.Tensor:
        if name not in after:
            return hidden
        d, u = after[name].bottleneck.down, after[name].bottleneck.up
        return hidden + f(hidden @ d.weight.T + d.bias) @ u.weight.T + u.bias

    seen: dict[str, torch.Tensor] = {}
    layer.register_forward_pre_hook(lambda _, inputs: seen.update(before=inputs[0]))
    layer.self_attn.o_proj.register_forward_hook(lambda _, inputs, output: seen.update(attention=output))
    layer.register_forward_hook(lambda _, inputs, output: seen.update(after=output))
    with torch.no_grad():
        model(input_ids=IDS)
        hidden = seen["before"] + adapted("self_attn", seen["attention"])
        normed, mlp = layer.post_attention_layernorm(hidden), layer.mlp
        inner = mlp.down_proj(torch.nn.functional.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))
        expected = hidden + adapted("mlp", inner)
    torch.testing.assert_close(seen["after"], expected, atol=1e-5, rtol=1e-5)


def test_the_width_is_the_configs(tiny: Path) -> None:
    model = put_on(load_weights(tiny, torch.float32), METHODS["adapter-pfeiffer"], TuneConfig(bottleneck=7))
    shapes = {name.split("bottleneck.")[1]: tuple(value.shape) for name, value in trainable(model).items()}
    assert shapes == {"down.weight": (7, 32), "down.bias": (7,), "up.weight": (32, 7), "up.bias": (32,)}


def test_layers_of_another_make_are_refused() -> None:
    sizes = {"hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 30}
    foreign = OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=16, max_position_embeddings=32))
    with pytest.raises(ConfigError, match=r"0 of the 3 layers of this opt model are like that; use lora"):
        bottleneck.insert(foreign, "adapter-houlsby", 4)
