"""What `--method` can name: facts alone, so that they can be listed without torch. `adapters` puts a method to work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ragtune.errors import ConfigError

Family = Literal["all weights", "low rank", "bottleneck", "soft prompt", "own weights"]


@dataclass(frozen=True, slots=True)
class Method:
    """One way of tuning.

    `trains` is the number of trained parameters as a formula, `learning_rate` the peak that is used when the config
    names none. `weight_bytes` is what training holds in memory for each base weight, where the model computes in
    bf16; activations and what stands beside the base come on top. `nf4` rounds the frozen base weights to NF4 first.
    """

    name: str
    family: Family
    summary: str
    good_for: str
    paper: str
    trains: str
    learning_rate: float
    nf4: bool = False
    weight_bytes: float = 2.0


_FP32_TRAINED = 18.0
"""2 to compute with, 4 for the weight in fp32, 4 for its gradient and 8 for AdamW's two moments."""

_PACKED = 0.516
"""4 bits, and 0.127 bits for the constants of blocks (Dettmers et al. 2023, section 3)."""

_EACH_MATRIX = "rank x (inputs + outputs) of each matrix"
_KEYS_AND_VALUES = "2 x layers x key width x virtual tokens"

METHODS = {
    method.name: method
    for method in (
        Method(
            "full",
            "all weights",
            summary="every weight of the model",
            good_for="much data, and memory for it",
            paper="Howard & Ruder 2018, arXiv:1801.06146",
            trains="all weights",
            learning_rate=1e-4,
            weight_bytes=_FP32_TRAINED,
        ),
        Method(
            "lora",
            "low rank",
            summary="low-rank updates beside frozen weights",
            good_for="the default: close to full tuning at a small part of its memory",
            paper="Hu et al. 2021, arXiv:2106.09685",
            trains=_EACH_MATRIX,
            learning_rate=1e-3,
        ),
        Method(
            "rslora",
            "low rank",
            summary="LoRA scaled by alpha / sqrt(rank)",
            good_for="high ranks, whose updates plain LoRA scales down",
            paper="Kalajdzievski 2023, arXiv:2312.03732",
            trains=_EACH_MATRIX,
            learning_rate=3e-4,
        ),
        Method(
            "dora",
            "low rank",
            summary="LoRA on each row's direction, and the row's length apart",
            good_for="low ranks, where LoRA falls short of full tuning; slower",
            paper="Liu et al. 2024, arXiv:2402.09353",
            trains=f"{_EACH_MATRIX}, and its outputs",
            learning_rate=1e-3,
        ),
        Method(
            "pissa",
            "low rank",
            summary="LoRA that starts from the largest singular vectors of the weights",
            good_for="few steps: the loss falls faster than LoRA's",
            paper="Meng et al. 2024, arXiv:2404.02948",
            trains=_EACH_MATRIX,
            learning_rate=3e-4,
        ),
        Method(
            "qlora",
            "low rank",
            summary="LoRA over base weights in NF4",
            good_for="models that would not fit otherwise",
            paper="Dettmers et al. 2023, arXiv:2305.14314",
            trains=_EACH_MATRIX,
            learning_rate=1e-3,
            nf4=True,
            weight_bytes=_PACKED,
        ),
        Method(
            "adapter-houlsby",
            "bottleneck",
            summary="a small network after attention and after the MLP of each layer",
            good_for="as LoRA, where a nonlinear update is wanted; it cannot be merged, so answers take longer",
            paper="Houlsby et al. 2019, arXiv:1902.00751",
            trains="2 x layers x (2 x width x bottleneck + width + bottleneck)",
            learning_rate=1e-3,
        ),
        Method(
            "adapter-pfeiffer",
            "bottleneck",
            summary="a small network after the MLP of each layer",
            good_for="the same with half the weights",
            paper="Pfeiffer et al. 2020, arXiv:2005.00247",
            trains="layers x (2 x width x bottleneck + width + bottleneck)",
            learning_rate=1e-3,
        ),
        Method(
            "prefix",
            "soft prompt",
            summary="keys and values of virtual tokens, made by a small network while training",
            good_for="as p-tuning-v2; the network steadies training",
            paper="Li & Liang 2021, arXiv:2101.00190",
            trains=f"{_KEYS_AND_VALUES}, and the network",
            learning_rate=5e-4,
        ),
        Method(
            "prompt",
            "soft prompt",
            summary="embeddings of virtual tokens before the prompt",
            good_for="many tasks over one large model, a few kilobytes each; weak on small models",
            paper="Lester et al. 2021, arXiv:2104.08691",
            trains="width x virtual tokens",
            learning_rate=1e-1,
        ),
        Method(
            "p-tuning",
            "soft prompt",
            summary="embeddings of virtual tokens, made by a small network while training",
            good_for="as prompt; the network steadies training",
            paper="Liu et al. 2021, arXiv:2103.10385",
            trains="width x virtual tokens, and the network",
            learning_rate=3e-4,
        ),
        Method(
            "p-tuning-v2",
            "soft prompt",
            summary="keys and values of virtual tokens in every layer",
            good_for="small models and labelling, where prompt is weak",
            paper="Liu et al. 2022, arXiv:2110.07602",
            trains=_KEYS_AND_VALUES,
            learning_rate=3e-2,
        ),
        Method(
            "bitfit",
            "own weights",
            summary="the biases of the model",
            good_for="models with biases and little data",
            paper="Ben Zaken et al. 2022, arXiv:2106.10199",
            trains="all biases",
            learning_rate=1e-3,
        ),
        Method(
            "lora-bias",
            "low rank",
            summary="LoRA, and the biases of the model",
            good_for="models with biases, where LoRA alone falls short",
            paper="Hu et al. 2021, arXiv:2106.09685; Ben Zaken et al. 2022, arXiv:2106.10199",
            trains=f"{_EACH_MATRIX}, and all biases",
            learning_rate=1e-3,
        ),
        Method(
            "ia3",
            "own weights",
            summary="a factor for each key, value and inner MLP activation",
            good_for="few examples and many tasks; nothing to pay when answering once merged",
            paper="Liu et al. 2022, arXiv:2205.05638",
            trains="layers x (2 x key width + MLP width)",
            learning_rate=2e-2,
        ),
        Method(
            "ln",
            "own weights",
            summary="the normalisation layers",
            good_for="little data and memory; models without biases",
            paper="Zhao et al. 2023, arXiv:2312.11420",
            trains="scales and biases of all norms",
            learning_rate=5e-3,
        ),
    )
}


def choose_method(name: str) -> tuple[Method, str]:
    """The method of a name and, for `auto`, why it was chosen.

    Raises: ConfigError listing the known methods.
    """
    if name == "auto":
        import torch

        if torch.cuda.is_available():
            return METHODS["qlora"], "qlora: a GPU is present, where NF4 weights save memory at little cost in time"
        return METHODS["lora"], "lora: on a CPU NF4 saves memory, not time, and memory is not the limit here"
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}; expected auto or one of: {', '.join(METHODS)}")
    return METHODS[name], f"{name}: as asked"
