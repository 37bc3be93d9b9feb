"""A method put on a base model, what it trains, its folder, and the way back onto the base.

Where peft knows a method, it makes the layers and its format is written. Numerics: the frozen base computes in its own
dtype; LoRA's matrices and bottlenecks are trained in it, too. What starts far from 0 and moves little (whole weights,
biases, scales, magnitudes) would lose small steps in bf16 and is trained in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from peft import (
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from peft.tuners.lora.layer import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import Parameter
from torch.nn.utils.parametrize import register_parametrization
from transformers import set_seed
from transformers.pytorch_utils import Conv1D

from ragtune import store
from ragtune.config import TuneConfig
from ragtune.errors import ConfigError, MismatchError, StoreError
from ragtune.generator import bottleneck, soft_prompt
from ragtune.generator.fused_lora import fuse_lora, row_norms
from ragtune.generator.kept_weights import Beside, plain_name, train_in_fp32
from ragtune.generator.methods import Method
from ragtune.generator.nf4 import keep_in_nf4, keeps_packed, round_to_nf4
from ragtune.generator.quiet import calm_libraries

TRAINED = "trained.safetensors"
"""The weights of a method that peft does not know; its metadata names the method."""

_SVD_ROUNDS = 8
_KEY_VALUE_INNER = ("k_proj", "v_proj", "down_proj")


def put_on(model: Any, method: Method, config: TuneConfig) -> Any:
    """A base model with a method on top, ready to train: only what the method trains has gradients.

    It is called as `model(input_ids=ids, use_cache=False)`, with rows padded behind and without a mask. The logits
    are those of the rows' own positions for every method: a soft prompt is a beginning that all rows share, and its
    places give no logits. What starts at random starts from `config.seed`.

    Raises: ConfigError when the method does not fit the model.
    """
    set_seed(config.seed)
    return _PUT_ON[method.name](model, config)


def trainable(model: Any) -> dict[str, Parameter]:
    """What is trained, by the name of the weight that it stands for."""
    return {plain_name(name): value for name, value in model.named_parameters() if value.requires_grad}


def save(model: Any, method: Method, folder: Path) -> None:
    """Write what was trained into a folder, as the model computes with it."""
    values = {name: reduce(getattr, name.split("."), model).detach().cpu().contiguous() for name in trainable(model)}
    if isinstance(model, PeftModel):
        with calm_libraries():
            model.save_pretrained(folder, state_dict=values, save_embedding_layers=False)
    else:
        save_file(values, folder / TRAINED, metadata={"format": "pt", "method": method.name})


def attach_adapter(model: Any, adapter: Path, base_fingerprint: str) -> Any:
    """The base model with an adapter on top, not merged: what answers is what was trained.

    peft loads an adapter onto the wrong base without a word unless a width differs, hence the fingerprint.

    Raises: MismatchError when it was trained on another base; StoreError when its files are damaged.
    """
    manifest = store.open_folder(adapter, "adapter")
    if manifest["base"]["fingerprint"] != base_fingerprint:
        raise MismatchError(
            f"{adapter} was trained on {manifest['base']['name']} "
            f"(fingerprint {manifest['base']['fingerprint'][:12]}), the base at hand has {base_fingerprint[:12]}; "
            "tune again or use that base"
        )
    if manifest["nf4"]:
        round_to_nf4(model)
    load = _load_own if (adapter / TRAINED).exists() else _load_peft
    return load(model, adapter).eval().requires_grad_(False)


def _load_peft(model: Any, adapter: Path) -> Any:
    with calm_libraries():
        settings = PeftConfig.from_pretrained(str(adapter))
        if settings.is_prompt_learning:
            soft_prompt.check(model)
        model = PeftModel.from_pretrained(model, str(adapter), autocast_adapter_dtype=_in_fp32(settings))
    return _ready(model)


@torch.no_grad()
def _load_own(model: Any, adapter: Path) -> Any:
    with safe_open(adapter / TRAINED, "pt") as opened:
        name = opened.metadata()["method"]
    values = load_file(adapter / TRAINED)
    if name in bottleneck.KINDS:
        width = next(len(value) for key, value in values.items() if key.endswith("bottleneck.down.weight"))
        bottleneck.insert(model, name, width)
    weights = dict(model.named_parameters())
    for key, value in values.items():
        if key not in weights or weights[key].shape != value.shape:
            raise StoreError(f"{adapter}: the base model has no {key} of shape {tuple(value.shape)}; tune again")
        weights[key].copy_(value)
    return model


def _ready(model: PeftModel) -> PeftModel:
    if soft_prompt.is_on(model):
        soft_prompt.read_first(model)
    fuse_lora(model)
    return model


# Each method: (base model, config) -> model that trains the method's parameters alone


def _full(model: Any, config: TuneConfig) -> Any:
    return train_in_fp32(model.requires_grad_(True))


def _biases(model: Any, config: TuneConfig) -> Any:
    _check_biases(model, "bitfit", "ia3, ln or lora")
    for name, value in model.named_parameters():
        value.requires_grad_(_is_bias(name))
    return train_in_fp32(model)


def _bottleneck(kind: bottleneck.Kind, model: Any, config: TuneConfig) -> Any:
    bottleneck.insert(model, kind, config.bottleneck)
    return model


def _lora(model: Any, config: TuneConfig, **variant: Any) -> Any:
    scale = {"r": config.rank, "lora_alpha": config.alpha}
    settings = {"lora_dropout": config.dropout, "target_modules": _targets(model, config), "task_type": "CAUSAL_LM"}
    return _peft(model, LoraConfig(**(scale | settings | variant)))


def _dora(model: Any, config: TuneConfig) -> Any:
    """Magnitudes start from the rows' lengths in fp32; peft's are rounded to the base's dtype."""
    model = _lora(model, config, use_dora=True)
    for layer in _lora_layers(model):
        layer.lora_magnitude_vector["default"].weight.data = row_norms(_matrix(layer))
    return model


def _pissa(model: Any, config: TuneConfig) -> Any:
    """PiSSA as W + s (B A - B0 A0), where s B0 A0 is W's best approximation of this rank and B, A start from it.

    Meng et al. 2024, arXiv:2404.02948, section 3 subtracts s B0 A0 from W. Here it stands beside W, so that the base
    stays as it is, rounding included, and the adapter is a LoRA of twice the rank, which peft alone can use.
    """
    model = _lora(model, config, r=2 * config.rank, lora_alpha=2 * config.alpha)
    for layer in _lora_layers(model):
        weight = _matrix(layer)
        if config.rank > min(weight.shape):
            raise ConfigError(f"rank {config.rank} is more than pissa can take from a matrix of {tuple(weight.shape)}")
        # Twice as many directions as are kept: so few rounds do (Halko et al. 2011, arXiv:0909.4061, section 4.2).
        drawn = min(2 * config.rank, *weight.shape)
        u, s, v = (part[..., : config.rank] for part in torch.svd_lowrank(weight.float(), drawn, _SVD_ROUNDS))
        root = (s / layer.scaling["default"]).sqrt()
        for side, start, sign in ((layer.lora_A, (v * root).t(), 1), (layer.lora_B, u * root, -1)):
            start = start.contiguous()
            beside = Beside((sign * start).to(weight.dtype), dim=0 if sign == 1 else 1)
            side["default"].weight = Parameter(start)
            register_parametrization(side["default"], "weight", beside, unsafe=True)
    return model


def _lora_bias(model: Any, config: TuneConfig) -> Any:
    _check_biases(model, "lora-bias", "lora")
    model = _lora(model, config, bias="all")
    return train_in_fp32(model, _is_bias)


def _qlora(model: Any, config: TuneConfig) -> Any:
    if keeps_packed(config):
        return _lora(keep_in_nf4(model), config)
    round_to_nf4(model)
    return _lora(model, config)


def _ia3(model: Any, config: TuneConfig) -> Any:
    """Liu et al. 2022, arXiv:2205.05638, section 3.3; for layers of other names, what peft takes for them."""
    settings = IA3Config(task_type="CAUSAL_LM")
    if set(_KEY_VALUE_INNER) <= _linear_names(model):
        settings.target_modules, settings.feedforward_modules = {*_KEY_VALUE_INNER}, {_KEY_VALUE_INNER[-1]}
    return _peft(model, settings)


def _norms(model: Any, config: TuneConfig) -> Any:
    names = {
        name.rpartition(".")[2] for name, module in model.named_modules() if type(module).__name__.endswith("Norm")
    }
    return train_in_fp32(_peft(model, LNTuningConfig(task_type="CAUSAL_LM", target_modules=sorted(names))))


def _soft(settings: Callable[..., PeftConfig], model: Any, config: TuneConfig) -> Any:
    soft_prompt.check(model)
    model = _peft(model, settings(task_type="CAUSAL_LM", num_virtual_tokens=config.virtual_tokens))
    soft_prompt.start_from_tokens(model)
    return model


_PUT_ON: dict[str, Callable[[Any, TuneConfig], Any]] = {
    "full": _full,
    "lora": _lora,
    "rslora": partial(_lora, use_rslora=True),
    "dora": _dora,
    "pissa": _pissa,
    "qlora": _qlora,
    "adapter-houlsby": partial(_bottleneck, "adapter-houlsby"),
    "adapter-pfeiffer": partial(_bottleneck, "adapter-pfeiffer"),
    "prefix": partial(_soft, partial(PrefixTuningConfig, prefix_projection=True)),
    "prompt": partial(_soft, PromptTuningConfig),
    "p-tuning": partial(_soft, PromptEncoderConfig),
    "p-tuning-v2": partial(_soft, PrefixTuningConfig),
    "bitfit": _biases,
    "lora-bias": _lora_bias,
    "ia3": _ia3,
    "ln": _norms,
}


def _peft(model: Any, settings: PeftConfig) -> PeftModel:
    """The model that peft makes with these settings.

    Raises: ConfigError when peft finds no place for the method in the model.
    """
    with calm_libraries():
        try:
            made = get_peft_model(model, settings, autocast_adapter_dtype=_in_fp32(settings))
        except ValueError as error:
            kind, architecture = settings.peft_type.value, model.config.model_type
            raise ConfigError(f"{kind} does not fit this {architecture} model: {error}; use lora") from error
    return _ready(made)


def _in_fp32(settings: PeftConfig) -> bool:
    """Whether peft is to keep an adapter in fp32 rather than in the base's dtype."""
    return isinstance(settings, IA3Config) or (isinstance(settings, LoraConfig) and settings.use_dora)


def _targets(model: Any, config: TuneConfig) -> list[str] | str:
    """What LoRA updates: the layers that the config names, else all linear ones but the head.

    Raises: ConfigError for a name that no linear layer has.
    """
    if not config.target_modules:
        return "all-linear"
    linear = _linear_names(model)
    if unknown := sorted(set(config.target_modules) - linear):
        raise ConfigError(
            f"tune.target_modules names {', '.join(unknown)}, which this {model.config.model_type} model has not; "
            f"its linear layers are: {', '.join(sorted(linear))}"
        )
    return list(config.target_modules)


def _linear_names(model: Any) -> set[str]:
    return {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D))}


def _lora_layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _matrix(layer: Any) -> torch.Tensor:
    """A layer's frozen weights, (outputs, inputs)."""
    weight: torch.Tensor = layer.get_base_layer().weight
    return weight.t() if layer.fan_in_fan_out else weight


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] == "bias"


def _check_biases(model: Any, method: str, instead: str) -> None:
    if not any(_is_bias(name) for name, _ in model.named_parameters()):
        raise ConfigError(f"{method} trains biases, and this {model.config.model_type} model has none; use {instead}")
