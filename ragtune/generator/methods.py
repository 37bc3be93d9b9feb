"""What `--method` can name: a dict of small functions over peft, and how an adapter is put on its base again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ragtune import store
from ragtune.config import TuneConfig
from ragtune.errors import ConfigError, MismatchError
from ragtune.generator.quiet import calm_libraries

_NF4_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Method:
    """One way of tuning. `nf4` rounds the frozen base weights to NF4 first."""

    name: str
    summary: str
    paper: str
    nf4: bool
    peft_config: Callable[[TuneConfig], Any]


def _lora(config: TuneConfig) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


METHODS = {
    method.name: method
    for method in (
        Method("lora", "low-rank updates beside frozen weights", "Hu et al. 2021, arXiv 2106.09685", False, _lora),
        Method("qlora", "LoRA over base weights in NF4", "Dettmers et al. 2023, arXiv 2305.14314", True, _lora),
    )
}


def choose_method(name: str) -> tuple[Method, str]:
    """The method of a name and, for `auto`, why it was chosen.

    Raises: ConfigError listing the known methods.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return METHODS["qlora"], "qlora: a GPU is present, where NF4 weights save memory at little cost in time"
        return METHODS["lora"], "lora: on a CPU NF4 saves memory, not time, and memory is not the limit here"
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}; expected auto or one of: {', '.join(METHODS)}")
    return METHODS[name], f"{name}: as asked"


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


def attach_adapter(model: Any, adapter: Path, base_fingerprint: str) -> Any:
    """The base model with an adapter on top, not merged: what answers is what was trained.

    peft loads an adapter onto the wrong base without a word unless a width differs, hence the fingerprint.

    Raises: MismatchError when it was trained on another base; StoreError when its files are damaged.
    """
    from peft import PeftModel

    from ragtune.generator.fused_lora import fuse_lora

    manifest = store.open_folder(adapter, "adapter")
    if manifest["base"]["fingerprint"] != base_fingerprint:
        raise MismatchError(
            f"{adapter} was trained on {manifest['base']['name']} "
            f"(fingerprint {manifest['base']['fingerprint'][:12]}), the base at hand has {base_fingerprint[:12]}; "
            "tune again or use that base"
        )
    if manifest["nf4"]:
        round_to_nf4(model)
    with calm_libraries():
        # peft gives the adapter the base's dtype. A cast of the whole would round the rotary frequencies to bf16 too.
        model = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).eval()
    fuse_lora(model)
    return model
