"""What a training run of a project will take: its rows, its settings and a machine -> a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ragtune.errors import ConfigError
from ragtune.session import Session
from ragtune.types import Weights

if TYPE_CHECKING:
    from ragtune.generator.examples import TrainingRow
    from ragtune.generator.methods import Method
    from ragtune.generator.plan import Job, Plan
    from ragtune.generator.rates import Machine
    from ragtune.generator.shapes import Shape

Lengths = tuple[tuple[int, ...], int]
"""The tokens of each row, and the most answer tokens of a row, the end of the turn included."""

_TOKENS, _ROWS, _ANSWER_TOKENS = 512, 1_000, 32


@dataclass(frozen=True, slots=True)
class PlanQuestion:
    """What a plan is asked for, where it isn't the project's own settings on this machine.

    `model`: plan for it without the project's rows. `tokens`: length of all rows. `memory`: bytes to fit into.
    `hardware`: a GPU of `rates.HARDWARE` instead of this machine.
    """

    model: str | None = None
    tokens: int | None = None
    rows: int | None = None
    memory: int | None = None
    hardware: str | None = None


def make_plan(session: Session, arm: Weights, question: PlanQuestion) -> Plan:
    """The plan for the rows of an arm.

    Raises: ModelError for a model without a config that can be planned for; ConfigError for unknown hardware or a
    method that trains nothing in this model; like `training_rows.rows_for`.
    """
    from ragtune.generator import rates
    from ragtune.generator.plan import Plan
    from ragtune.generator.shapes import shape_of

    shape = shape_of(question.model or session.project.generator.model)
    lengths = _asked_lengths(session, arm, question)
    if question.hardware:
        machine = rates.published(question.hardware)
    else:
        from ragtune.generator.machine import best_dtype

        machine = rates.measured(shape, best_dtype())
    if question.memory:
        machine = replace(machine, memory=question.memory)
    return Plan(_job(session, shape, lengths, machine), machine)


def check_rows_fit(session: Session, rows: Sequence[TrainingRow]) -> None:
    """Refuse a run on these rows that this machine's memory cannot hold.

    Raises: TrainingError with the predicted parts, what there is, and what would fit.
    """
    from ragtune.generator import rates
    from ragtune.generator.machine import best_dtype, device
    from ragtune.generator.plan import check_fits, memory
    from ragtune.generator.rates import Machine
    from ragtune.generator.shapes import shape_of

    shape, lengths = shape_of(session.project.generator.model), _row_lengths(session, rows)
    unmeasured = Machine("this machine", rates.available_memory(), 1, 1, device().type == "cuda", measured=True)
    job = _job(session, shape, lengths, unmeasured)
    if memory(job).peak > unmeasured.memory:
        check_fits(job, rates.measured(shape, best_dtype()))


def _job(session: Session, shape: Shape, lengths: Lengths, machine: Machine) -> Job:
    from ragtune.generator.costs import precision
    from ragtune.generator.plan import Job

    config = session.project.tune
    method = _method(config.method, machine)
    job = Job(shape, method, config, *lengths, precision(method, _number_bytes(machine), machine.gpu), machine.gpu)
    if not job.trained:
        raise ConfigError(f"{method.name} trains {method.trains}, and {shape.name} has none; use ia3, ln or lora")
    return job


def _method(name: str, machine: Machine) -> Method:
    from ragtune.generator.methods import METHODS, choose_method

    if name == "auto" and not machine.measured:  # of another machine, so what is in this one does not matter
        return METHODS["qlora"]
    return choose_method(name)[0]


def _number_bytes(machine: Machine) -> int:
    from ragtune.generator.machine import best_dtype

    return best_dtype().itemsize if machine.measured else 2


def _asked_lengths(session: Session, arm: Weights, question: PlanQuestion) -> Lengths:
    if question.model:
        return (question.tokens or _TOKENS,) * (question.rows or _ROWS), _ANSWER_TOKENS
    lengths, answer = _project_lengths(session, arm)
    if question.tokens:
        lengths = (question.tokens,) * len(lengths)
    if question.rows:  # as many as asked for, with the project's mixture of lengths
        lengths = tuple(lengths[i * len(lengths) // question.rows] for i in range(question.rows))
    return lengths, answer


def _project_lengths(session: Session, arm: Weights) -> Lengths:
    """Those of the real rows where there is an index.

    Before there is one, as many as there are train questions, all of the longest length that is allowed.
    """
    from ragtune import training_rows

    if session.project.place("indexes").exists():
        return _row_lengths(session, training_rows.rows_for(session, arm).rows)
    config = session.project.tune
    count = sum(min(len(t.split("train")), config.max_rows_per_task or 10**9) for t in session.tasks) or 1
    session.say(f"there is no index yet: all {count} rows count as {config.max_tokens} tokens (tune.max_tokens)")
    return (config.max_tokens,) * count, _ANSWER_TOKENS


def _row_lengths(session: Session, rows: Sequence[TrainingRow]) -> Lengths:
    from ragtune.generator.generate import load_tokenizer
    from ragtune.generator.train import encode_row

    tokenizer = load_tokenizer(session.base[0])
    encoded = [encode_row(tokenizer, row) for row in rows]
    return tuple(len(ids) for ids, _ in encoded), max(len(ids) - prompt for ids, prompt in encoded)
