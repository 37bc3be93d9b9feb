"""`ragtune plan`: memory and time of a training run, before it is started."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragtune.cli.output import config_option, json_option, out, print_json, watching
from ragtune.config import ProjectConfig, build_config, load_config

if TYPE_CHECKING:
    from ragtune.generator.plan import Job, Plan

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_MEANING = {
    "weights": "the base model",
    "constants": "scales of NF4",
    "adapters": "what is trained beside the base",
    "gradients": "of what is trained",
    "optimiser": "AdamW's two moments",
    "activations": "kept for the backward pass",
    "logits": "at the answers' places",
    "workspace": "of one layer's backward pass",
    "overhead": "holes that the allocator leaves",
    "framework": "Python, torch and their code",
}


class _Bytes(click.ParamType):  # type: ignore[type-arg]
    """A size such as `24GB` or `16GiB`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"([\d.]+) ?([KMGT]?I?B?)", str(value).strip().upper())
        unit = found and (found[2] if found[2][-1:] in ("B", "") else f"{found[2]}B")
        if not found or unit not in _UNITS or found[1].count(".") > 1 or not float(found[1]):
            self.fail(f"{value!r} is no size; expected a number with MB, GB or GiB, such as 24GB", param, ctx)
        return round(float(found[1]) * _UNITS[unit])


@click.command("plan")
@config_option
@click.option("--arm", type=click.Choice(["raft", "tune"]), default="raft", show_default=True, help="Whose rows.")
@click.option("--model", help="Plan for this model, without a project: name, folder, config.json or llama-7b ... -65b.")
@click.option("--method", help="auto, or a name that `ragtune methods` lists.")
@click.option("--tokens", type=click.IntRange(min=1), help="Length of all rows, instead of the project's own.")
@click.option("--rows", type=click.IntRange(min=1), help="Number of rows, instead of the project's own.")
@click.option("--batch", type=int, help="Rows at a time.")
@click.option("--checkpointing/--no-checkpointing", default=None, help="Compute activations again, or keep them.")
@click.option("--memory", type=_Bytes(), help="Memory to fit into, such as 24GB, instead of this machine's.")
@click.option("--hardware", help="A GPU that is not here, by name, such as a100-80gb: at half its published rates.")
@json_option
def command(
    config_path: Path,
    arm: str,
    model: str | None,
    method: str | None,
    tokens: int | None,
    rows: int | None,
    batch: int | None,
    checkpointing: bool | None,
    memory: int | None,
    hardware: str | None,
    as_json: bool,
) -> None:
    """Predict memory and time of `ragtune tune`, and say what fits. No weights are loaded.

    Rows are the project's own where there is an index. With --model no project is read: 1,000 rows of 512 tokens,
    unless told otherwise. This machine's speed is measured for a second.

    \b
    Examples:
      ragtune plan
      ragtune plan --method full --batch 4 --checkpointing
      ragtune plan --model llama-65b --method qlora --batch 1 --hardware a100-80gb
    """
    from ragtune import pipeline
    from ragtune.planning import PlanQuestion

    overrides = {"tune.method": method, "tune.batch_size": batch, "tune.checkpointing": checkpointing}
    project = _without_project(model, overrides) if model else load_config(config_path, overrides)
    question = PlanQuestion(model, tokens, rows, memory, hardware)
    with watching() as watch:
        plan = pipeline.plan(project, arm, question, watch)
    if as_json:
        print_json(plan_json(plan))
    else:
        _print(plan)


def _without_project(model: str, overrides: dict[str, Any]) -> ProjectConfig:
    tune = {name.removeprefix("tune."): value for name, value in overrides.items() if value is not None}
    return build_config({"name": "plan", "generator": {"model": model}, "tune": tune}, Path("the command line"))


def plan_json(plan: Plan) -> dict[str, Any]:
    """A plan as JSON: `peak_bytes`, `seconds`, `parts` in bytes, and the same of the suggestion."""
    from ragtune.generator.plan import memory, seconds

    machine = plan.machine
    return {
        **_job_json(plan.job),
        "peak_bytes": plan.memory.peak,
        "seconds": plan.seconds,
        "parts": plan.memory.parts,
        "memory_bytes": machine.memory,
        "fits": plan.fits,
        "hardware": {"name": machine.name, "measured": machine.measured}
        | {"flops_per_second": machine.products, "numbers_per_second": machine.elements},
        "suggestion": plan.suggestion
        and _job_json(plan.suggestion)
        | {"peak_bytes": memory(plan.suggestion).peak, "seconds": seconds(plan.suggestion, machine)},
    }


def _job_json(job: Job) -> dict[str, Any]:
    return {
        "model": job.shape.name,
        "parameters": job.shape.parameters,
        "trained_parameters": job.trained,
        "method": job.method.name,
        "batch": job.batch,
        "checkpointing": job.config.checkpointing,
        "rows": len(job.lengths),
        "longest_row": max(job.lengths),
    }


def _print(plan: Plan) -> None:
    from ragtune.generator.plan import describe, memory, seconds

    job, machine = plan.job, plan.machine
    rows = f"{len(job.lengths)} rows of up to {max(job.lengths)} tokens"
    out().print(f"{job.shape.name}: {describe(job)}, {rows}", markup=False)
    share = job.trained / job.shape.parameters
    out().print(f"trains {job.trained:,} of {job.shape.parameters:,} parameters ({share:.3%})", markup=False)
    for name, size in plan.memory.parts.items():
        if size:
            out().print(f"  {name:12} {size / 1e9:9.3f} GB  {_MEANING[name]}", markup=False)
    verdict = "fits" if plan.fits else "does not fit"
    room = f"{machine.memory / 1e9:.1f} GB"
    out().print(f"peak {plan.memory.peak / 1e9:.2f} GB: {verdict} into the {room} of {machine.name}", markup=False)
    kind = "measured" if machine.measured else "half of the published rates, not measured"
    rate = f"{machine.products / 1e12:.2f} TFLOP/s, {machine.elements / 1e9:.1f} billion numbers/s, {kind}"
    out().print(f"time {duration(plan.seconds)} on {machine.name} ({rate})", markup=False)
    if not plan.suggestion:
        out().print("nothing fits here: choose a smaller model or shorter rows", markup=False)
    elif plan.suggestion != job:
        other = plan.suggestion
        figures = f"{memory(other).peak / 1e9:.2f} GB, {duration(seconds(other, machine))}"
        out().print(f"suggestion: {describe(other)} ({figures})", markup=False)


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
