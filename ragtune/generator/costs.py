"""What each tuning method costs: the parameters it trains, and what its layers keep for the backward pass.

Counted as in Korthikanti et al. 2022, arXiv:2205.05198, section 4, for the blocks that transformers runs and with
attention that keeps no score (Dao et al. 2022, arXiv:2205.14135). docs/planning.md has the same as formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ragtune.config import TuneConfig
from ragtune.generator.methods import Method
from ragtune.generator.shapes import Matrix, Shape

FP32 = 4


@dataclass(frozen=True, slots=True)
class Precision:
    """Bytes of a number: of what is computed with, of a trained parameter, its gradient, and its optimiser's state.

    AdamW keeps two moments for each parameter; `state` is both together.
    """

    compute: int
    trained: int
    gradient: int
    state: int


SIXTEEN_BIT = Precision(compute=2, trained=2, gradient=2, state=8)
"""Weights and gradients in 16 bits, AdamW's moments in 32: the "16-bit" of Dettmers et al. 2023, arXiv:2305.14314."""

_READS_ATTENTION = ("full", "lora", "rslora", "dora", "pissa", "qlora", "lora-bias")
"""Methods that keep attention's output in any case, since they train the matrix that reads it."""
_LIKE_THE_BASE = ("lora", "rslora", "qlora", "lora-bias", "adapter-houlsby", "adapter-pfeiffer")


def precision(method: Method, compute: int, gpu: bool = False) -> Precision:
    """How ragtune trains a method on a base that computes with numbers of `compute` bytes.

    With QLoRA on a GPU, AdamW's moments are fp32 (and paged, so that a peak can push them out to the host).
    """
    trained = compute if method.name in _LIKE_THE_BASE else FP32
    return Precision(compute, trained, trained, 2 * (FP32 if method.nf4 and gpu else trained))


def in_the_base(method: Method) -> bool:
    """Whether what is trained is a part of the base itself."""
    return method.name in ("full", "bitfit", "ln")


def adapted(shape: Shape, config: TuneConfig) -> tuple[Matrix, ...]:
    """The matrices that LoRA and its variants update."""
    return tuple(m for m in shape.matrices if not config.target_modules or m.name in config.target_modules)


def trained_parameters(shape: Shape, method: Method, config: TuneConfig) -> int:
    """How many parameters a method trains; the formulas are those of the papers that `METHODS` names."""
    return _TRAINED[method.name](shape, config)


def _low_rank(shape: Shape, config: TuneConfig) -> int:
    return config.rank * sum(m.inputs + m.outputs for m in adapted(shape, config))


def _outputs(shape: Shape, config: TuneConfig) -> int:
    return sum(m.outputs for m in adapted(shape, config))


def _bottleneck(shape: Shape, config: TuneConfig) -> int:
    return shape.layers * (2 * shape.hidden * config.bottleneck + config.bottleneck + shape.hidden)


def _prefix_network(shape: Shape, config: TuneConfig) -> int:
    """peft's: an embedding as wide as the keys, a layer of that width, and one to all layers' keys and values."""
    k = shape.key_width
    return config.virtual_tokens * k + k * (k + 1) + 2 * shape.layers * k * (k + 1)


def _prompt_network(shape: Shape, config: TuneConfig) -> int:
    """peft's: embeddings through three layers as wide as the model."""
    return config.virtual_tokens * shape.hidden + 3 * shape.hidden * (shape.hidden + 1)


_TRAINED: dict[str, Callable[[Shape, TuneConfig], int]] = {
    "full": lambda shape, config: shape.parameters,
    "lora": _low_rank,
    "rslora": _low_rank,
    "dora": lambda shape, config: _low_rank(shape, config) + _outputs(shape, config),
    "pissa": _low_rank,
    "qlora": _low_rank,
    "adapter-houlsby": lambda shape, config: 2 * _bottleneck(shape, config),
    "adapter-pfeiffer": _bottleneck,
    "prefix": _prefix_network,
    "prompt": lambda shape, config: shape.hidden * config.virtual_tokens,
    "p-tuning": _prompt_network,
    "p-tuning-v2": lambda shape, config: 2 * shape.layers * shape.key_width * config.virtual_tokens,
    "bitfit": lambda shape, config: shape.biases,
    "lora-bias": lambda shape, config: _low_rank(shape, config) + shape.biases,
    "ia3": lambda shape, config: shape.layers * (2 * shape.key_width + shape.inner),
    "ln": lambda shape, config: shape.norms,
}


def kept_by_layer(shape: Shape, method: Method, config: TuneConfig, width: int, fused: bool) -> float:
    """Bytes that one layer keeps for each token until its backward pass, computing with numbers of `width` bytes.

    What every method keeps, since gradients pass through it: a norm's input in fp32 and its scale; queries, keys and
    values; the MLP's branches before and after the nonlinearity. Then `_MORE`. `fused`: attention runs in torch's own
    kernel, which keeps its output and its log-sums as well; on a CPU `causal_attention` does without.
    """
    norms = 2 * (shape.hidden * (FP32 if shape.upcast else width) + FP32)
    attention = width * (shape.query_width + 2 * shape.key_width)
    mlp = width * shape.inner * (3 if shape.gated else 1)
    more = _MORE[method.name](shape, config, width)
    if fused:
        output = 0 if method.name in _READS_ATTENTION else width * shape.query_width
        attention += output + FP32 * shape.heads
    return norms + attention + mlp + more


def numbers_by_layer(shape: Shape) -> int:
    """Numbers that a layer computes for a token: norms, queries, keys, values, attention, and the MLP's branches."""
    branches = 4 if shape.gated else 2
    return 4 * shape.hidden + 2 * shape.query_width + 2 * shape.key_width + branches * shape.inner


def _inputs(shape: Shape, matrices: Sequence[Matrix], width: int) -> int:
    """What the gradients of these matrices need: what they are multiplied by, each kept once.

    Those are the outputs of both norms, attention's output, and what enters a gated MLP's last matrix. Where only some
    matrices of a layer are named, this is a little too much.
    """
    inner = shape.inner if any(m.inputs == shape.inner for m in matrices) else 0
    return width * (2 * shape.hidden + shape.query_width + inner)


def _keeps_low_rank(shape: Shape, config: TuneConfig, width: int, times: int = 1) -> float:
    matrices = adapted(shape, config)
    # Dropout gives each matrix an input of its own, and a mask of a byte a number.
    dropped = sum(m.inputs for m in matrices) * (width + 1) / shape.layers if config.dropout else 0
    return _inputs(shape, matrices, width) + dropped + times * config.rank * width * len(matrices) / shape.layers


def _keeps_dora(shape: Shape, config: TuneConfig, width: int) -> float:
    return _keeps_low_rank(shape, config, width) + width * _outputs(shape, config) / shape.layers


def _nothing(shape: Shape, config: TuneConfig, width: int) -> float:
    return 0


_MORE: dict[str, Callable[[Shape, TuneConfig, int], float]] = {
    "full": lambda shape, config, width: _inputs(shape, shape.matrices, width) + 2 * width * shape.hidden,
    "lora": _keeps_low_rank,
    "rslora": _keeps_low_rank,
    "dora": _keeps_dora,
    "pissa": lambda shape, config, width: _keeps_low_rank(shape, config, width, times=2),
    "qlora": _keeps_low_rank,
    "lora-bias": _keeps_low_rank,
    "prefix": _nothing,
    "prompt": _nothing,
    "p-tuning": _nothing,
    "p-tuning-v2": _nothing,
    "bitfit": _nothing,
    "adapter-houlsby": lambda shape, config, width: 2 * width * (shape.hidden + 2 * config.bottleneck),
    "adapter-pfeiffer": lambda shape, config, width: width * (shape.hidden + config.bottleneck),
    "ia3": lambda shape, config, width: 2 * width * shape.key_width + FP32 * shape.inner,
    "ln": lambda shape, config, width: 2 * width * shape.hidden,
}
"""Bytes that a method's own layers keep beyond that, for each token in one layer."""
