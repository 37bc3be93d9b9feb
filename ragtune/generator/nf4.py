"""NF4, the 4-bit format of QLoRA: base weights kept packed, or rounded once and kept unpacked.

Dettmers et al. 2023, arXiv:2305.14314, section 3: 16 levels, blocks of 64 weights with one scale each, the scales
quantised as well.
"""

from __future__ import annotations

from typing import Any

import torch

from ragtune.config import TuneConfig
from ragtune.errors import ConfigError
from ragtune.generator.quiet import calm_libraries

_NF4_BLOCK = 64


def keeps_packed(config: TuneConfig) -> bool:
    """Whether QLoRA keeps weights in 4 bits (memory) or unpacks them once (speed; the default on a CPU)."""
    return config.dequantise == "each-use" or (config.dequantise == "auto" and torch.cuda.is_available())


@torch.no_grad()
def round_to_nf4(model: Any) -> None:
    """Replace every decoder matrix by its NF4 value (block 64, double quantisation), in place.

    Training and answering on these weights has QLoRA's numerics (Dettmers et al. 2023, section 3) without paying for
    dequantisation at every use; it needs the memory of the unquantised weights.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    with calm_libraries():
        for module in _decoder_matrices(model):
            weight = module.weight
            # Flat, since bitsandbytes (0.50, CPU) mixes up the blocks of rows that are no multiple of 64 wide.
            flat = weight.data.reshape(-1)
            packed, state = quantize_4bit(flat, quant_type="nf4", compress_statistics=True)
            weight.copy_(dequantize_4bit(packed, state).reshape(weight.shape))


def keep_in_nf4(model: Any) -> Any:
    """Replace every decoder matrix by bitsandbytes' 4-bit layer: a quarter of the memory, dequantised at each use.

    Raises: ConfigError on a CPU for a matrix whose rows bitsandbytes would dequantise wrongly there.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    with calm_libraries():
        for name, module in list(model.named_modules()):
            if not _is_decoder_matrix(name, module):
                continue
            if module.weight.device.type == "cpu" and module.in_features % _NF4_BLOCK:
                raise ConfigError(
                    f"{name} is {module.in_features} wide, no multiple of {_NF4_BLOCK}, which bitsandbytes cannot keep "
                    'packed on a CPU; set tune.dequantise = "once"'
                )
            layer = Linear4bit(
                module.in_features,
                module.out_features,
                bias=module.bias is not None,
                compute_dtype=module.weight.dtype,
                compress_statistics=True,
                quant_type="nf4",
            )
            layer.weight = Params4bit(
                module.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
            )
            if module.bias is not None:
                layer.bias = module.bias
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.to(module.weight.device))
    return model


def _is_decoder_matrix(name: str, module: Any) -> bool:
    return isinstance(module, torch.nn.Linear) and not name.endswith("lm_head")


def _decoder_matrices(model: Any) -> list[Any]:
    return [module for name, module in model.named_modules() if _is_decoder_matrix(name, module)]
