"""Memory and time of a training run, told from the model's shape before anything is loaded.

docs/planning.md writes the same arithmetic as formulas, with worked tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property

from ragtune.config import TuneConfig
from ragtune.errors import TrainingError
from ragtune.generator.costs import (
    FP32,
    Precision,
    in_the_base,
    kept_by_layer,
    numbers_by_layer,
    precision,
    trained_parameters,
)
from ragtune.generator.methods import METHODS, Method
from ragtune.generator.rates import Machine
from ragtune.generator.shapes import Shape

NF4_BITS = 4
CONSTANT_BITS = 32 / 64
"""A 32-bit scale for each block of 64 weights (Dettmers et al. 2023, arXiv:2305.14314, section 3)."""
DOUBLE_QUANTISED_BITS = 8 / 64 + 32 / (64 * 256)
"""The scales in 8 bits, and a 32-bit scale for each 256 of them (the same, "Double Quantization")."""

_LOGIT = 16  # bytes: a logit, its fp32 copy, its log-softmax and the gradients of both
_FRAMEWORK = 500_000_000  # Python, torch, transformers and peft, with the code of the kernels that training runs
HEAP: dict[int | str, float] = {"kept": 0.40, 2: 0.21, 4: 0.38}
"""Holes that glibc leaves between tensors, as shares of what all layers keep; with checkpointing, of what they would
keep, by the bytes of a number.
"""
TOUCHES = 7.0  # how often a step passes over each number that a layer computes, forward and backward
STEP_TOUCHES = 4.0  # the same for each trained parameter
_SPARE = 0.9  # of the memory is planned with; the prediction may be off by some


@dataclass(frozen=True, slots=True)
class Job:
    """A training run to be told about.

    `lengths` are the tokens of each row, `answer_tokens` the most labelled ones of a row. `gpu`: where it runs.
    """

    shape: Shape
    method: Method
    config: TuneConfig
    lengths: tuple[int, ...]
    answer_tokens: int
    precision: Precision
    gpu: bool = False

    @property
    def batch(self) -> int:
        """Rows that are computed at a time."""
        return min(self.config.batch_size, len(self.lengths))

    @property
    def widest(self) -> int:
        """Tokens in the largest batch, padding included."""
        return self.batch * max(self.lengths)

    @property
    def packed(self) -> bool:
        """Whether the base's matrices stay in NF4 while training."""
        kept = self.config.dequantise == "each-use" or (self.config.dequantise == "auto" and self.gpu)
        return self.method.nf4 and kept

    @property
    def trained(self) -> int:
        """Trained parameters."""
        return trained_parameters(self.shape, self.method, self.config)

    @property
    def heap(self) -> float:
        """The share of holes in the heap."""
        return HEAP[self.precision.compute if self.config.checkpointing else "kept"]

    @property
    def kept_by_layer(self) -> float:
        """Bytes that one layer keeps for each token."""
        return kept_by_layer(self.shape, self.method, self.config, self.precision.compute, fused=self.gpu)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the worst moment of a run, by what takes them. `overhead` is what the allocator cannot fill."""

    weights: int
    constants: int
    adapters: int
    gradients: int
    optimiser: int
    activations: int
    logits: int
    workspace: int
    overhead: int
    framework: int

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by name, in the order above."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def peak(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


def memory(job: Job) -> Memory:
    """The memory that a job takes."""
    trained, precision = job.trained, job.precision
    activations, logits, workspace = _activations(job), _logits(job), _workspace(job)
    return Memory(
        weights=round(_weights(job)),
        constants=round(job.shape.decoder * DOUBLE_QUANTISED_BITS / 8) if job.packed else 0,
        adapters=0 if in_the_base(job.method) else trained * precision.trained,
        gradients=trained * precision.gradient,
        optimiser=trained * precision.state,
        activations=round(activations),
        logits=logits,
        workspace=round(workspace),
        overhead=0 if job.gpu else round(job.heap * job.widest * job.shape.layers * job.kept_by_layer),
        framework=_FRAMEWORK,
    )


def _weights(job: Job) -> float:
    """The base: its decoder's matrices in NF4 where they stay packed; what is trained of it as it is trained."""
    width, packed = job.precision.compute, job.shape.decoder if job.packed else 0
    trained = job.trained if in_the_base(job.method) else 0
    rest = job.shape.parameters - packed - trained
    return packed * NF4_BITS / 8 + rest * width + trained * job.precision.trained


def _activations(job: Job) -> float:
    """What is kept for the backward pass: of all layers, or of one beside the inputs of all.

    Checkpointing: Chen et al. 2016, arXiv:1604.06174. Trained weights are kept as they are computed with, where that is
    another kind of number. The last norm counts as the first layer's first, before which little is trained.
    """
    shape, width = job.shape, job.precision.compute
    layers = shape.layers * job.kept_by_layer
    if job.config.checkpointing:
        layers = shape.layers * width * shape.hidden + job.kept_by_layer
    if job.method.name == "full":
        layers += (FP32 + width) * shape.hidden
    tokens = job.widest + (job.config.virtual_tokens if job.method.family == "soft prompt" else 0)
    rounded = job.trained * width if in_the_base(job.method) and width != job.precision.trained else 0
    return tokens * layers + rounded


def _logits(job: Job) -> int:
    """At the places of answers alone."""
    return job.batch * job.answer_tokens * job.shape.vocabulary * _LOGIT


def _workspace(job: Job) -> float:
    """What one layer's backward pass holds for a moment: gradients of the MLP's branches and of the hidden states."""
    branches = 3 if job.shape.gated else 2
    return job.widest * (job.precision.compute * branches * job.shape.inner + 2 * FP32 * job.shape.hidden)


def seconds(job: Job, machine: Machine) -> float:
    """How long a job takes: batches of rows of similar length, once or more through all rows.

    Matrix products at the machine's rate of products, all else (norms, rotations, activations, the optimizer,
    unpacking NF4) at its rate of passing over numbers.
    """
    lengths = sorted(job.lengths, reverse=True)
    batches = [lengths[start : start + job.batch] for start in range(0, len(lengths), job.batch)]
    return job.config.epochs * sum(_batch_seconds(job, machine, len(rows), rows[0]) for rows in batches)


def _batch_seconds(job: Job, machine: Machine, rows: int, longest: int) -> float:
    shape, again = job.shape, 1 if job.config.checkpointing else 0
    tokens = rows * longest
    touched = tokens * shape.layers * numbers_by_layer(shape) * TOUCHES * (1 + again / 3) + job.trained * STEP_TOUCHES
    if job.packed:
        touched += shape.decoder * (2 + again)  # unpacked at each use
    products = tokens * _operations(job, longest) + rows * job.answer_tokens * _head_operations(job)
    return products / machine.products + touched / machine.elements


def _operations(job: Job, longest: int) -> float:
    """Floating-point operations for one token in the decoder.

    Two for each weight it meets, forward and again for its gradient, and as many for each trained weight's own (Kaplan
    et al. 2020, arXiv:2001.08361, section 2.1). Attention looks back on half of the row on average, in two
    products forward, and in five backward.
    """
    shape, again = job.shape, 1 if job.config.checkpointing else 0
    beside = 0 if in_the_base(job.method) else job.trained
    weights = 2 * shape.decoder * (2 + again + (job.method.name == "full")) + 2 * beside * (3 + again)
    attention = longest * shape.query_width * shape.layers * (2 + 5 + 2 * again)
    return weights + attention


def _head_operations(job: Job) -> float:
    return 2 * job.shape.vocabulary * job.shape.hidden * (3 if job.method.name == "full" else 2)


def fits(job: Job, room: int) -> bool:
    """Whether a job fits into `room` bytes, with a tenth to spare."""
    return memory(job).peak <= _SPARE * room


def suggest(job: Job, machine: Machine) -> Job | None:
    """The job as it would fit: the fastest way with its method, else with LoRA, else with QLoRA in packed NF4.

    Fewer rows at a time and computing activations again change what a run takes, not what it learns: gradients of all
    rows of a step are added up. None where not even one row at a time fits.
    """
    for method in dict.fromkeys((job.method, METHODS["lora"], METHODS["qlora"])):
        fitting = [other for other in _ways(job, method) if fits(other, machine.memory)]
        if fitting:
            return min(fitting, key=lambda other: seconds(other, machine))
    return None


def _ways(job: Job, method: Method) -> Iterator[Job]:
    """A job with a method, with and without checkpointing, for half as many rows at a time, a quarter, ... and one."""
    batch = job.batch
    own = job.precision if method == job.method else precision(method, job.precision.compute, job.gpu)
    while batch:
        for checkpointing in (False, True):
            change = {"batch_size": batch, "checkpointing": checkpointing, "method": method.name}
            if method.nf4 and method != job.method:
                change["dequantise"] = "each-use"
            yield replace(job, method=method, precision=own, config=job.config.model_copy(update=change))
        batch //= 2


@dataclass(frozen=True)
class Plan:
    """A job on a machine: what it takes, whether it fits, and what is suggested (None: nothing fits)."""

    job: Job
    machine: Machine

    @cached_property
    def memory(self) -> Memory:
        """The job's memory."""
        return memory(self.job)

    @cached_property
    def seconds(self) -> float:
        """The job's time."""
        return seconds(self.job, self.machine)

    @property
    def fits(self) -> bool:
        """Whether it fits, with a tenth to spare."""
        return fits(self.job, self.machine.memory)

    @cached_property
    def suggestion(self) -> Job | None:
        """The job itself where it fits, else the nearest one that does."""
        return self.job if self.fits else suggest(self.job, self.machine)


def describe(job: Job) -> str:
    """A job in words, such as `qlora, batch 4, checkpointing on`."""
    return f"{job.method.name}, batch {job.batch}, checkpointing {'on' if job.config.checkpointing else 'off'}"


def check_fits(job: Job, machine: Machine) -> None:
    """Refuse what cannot fit.

    Raises: TrainingError with the predicted parts, what there is, and what would fit.
    """
    needed = memory(job)
    if needed.peak <= machine.memory:
        return
    parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in needed.parts.items() if size >= 5e7)
    other = suggest(job, machine)
    cure = f"{describe(other)} would fit" if other else "nothing fits here: choose a smaller model or shorter rows"
    raise TrainingError(
        f"{describe(job)} is predicted to take {needed.peak / 1e9:.1f} GB ({parts}), and {machine.memory / 1e9:.1f} GB "
        f"are there; {cure}; --force tries all the same"
    )
