"""`python scripts/bench_plan.py` holds `ragtune plan` against what training really takes (about 6 minutes, 2 cores).

Each case trains the embedded model for two optimiser steps on made-up rows of exactly the stated length, in a process
of its own, and reads the most memory that the process ever held (VmHWM in /proc, so Linux only) and the time of its
second step. The prediction for the same case is made afterwards, from the model's config and rates that are measured
there. `--quick` takes three cases.

`--fit` runs other cases instead, and prints what constants of ragtune/generator/plan.py fit them best.

The last line, also written with `--json FILE`, is one JSON object:

- `worst`, `mean`: the largest and the mean relative error of the predicted peak, signs left out; goal 0.15 at most.
- `worst_seconds`: the largest relative error of the predicted time of a step.
- `cases`: for each its settings, `peak_bytes`, `predicted_bytes`, `seconds`, `predicted_seconds`, `parts`.
- with `--fit` instead: `heap` by kind of case, `touches`, `step_touches`.

`--write` puts the figures into docs/planning.md, with a worked example.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import generated

Case = dict[str, Any]

PAGE = Path(__file__).resolve().parents[1] / "docs" / "planning.md"
MODEL = "smollm2-135m-instruct"
STEPS = 2


def case(method: str, dtype: str, tokens: int, batch: int, checkpointing: bool = False, compile: str = "off") -> Case:
    """The settings of a case."""
    how = {"checkpointing": checkpointing, "compile": compile}
    return {"method": method, "dtype": dtype, "tokens": tokens, "batch": batch, **how}


CASES = (
    case("lora", "bfloat16", 700, 2),
    case("full", "float32", 160, 4),
    case("lora", "bfloat16", 640, 8, checkpointing=True),
    case("lora", "bfloat16", 128, 8),
    case("lora", "bfloat16", 448, 6),
    case("lora", "float32", 300, 4),
    case("qlora", "bfloat16", 512, 4),
    case("qlora", "float32", 500, 4, checkpointing=True),
    case("full", "bfloat16", 300, 4),
    case("full", "bfloat16", 512, 4, checkpointing=True),
)
FITTED_ON = (
    case("lora", "bfloat16", 128, 2),
    case("lora", "bfloat16", 512, 2),
    case("lora", "bfloat16", 384, 8),
    case("lora", "float32", 256, 4),
    case("lora", "bfloat16", 512, 4, checkpointing=True),
    case("lora", "bfloat16", 300, 2, checkpointing=True),
    case("lora", "float32", 400, 4, checkpointing=True),
    case("full", "bfloat16", 256, 4),
    case("full", "float32", 256, 2),
)


def run_apart(chosen: Case) -> Case | None:
    """Measure and predict a case in a process of its own; None where the machine does not compute in its dtype.

    This process loads no library, since on Linux a new one can inherit the peak memory of the old.

    Raises: subprocess.CalledProcessError when it fails.
    """
    done = subprocess.run(
        [sys.executable, __file__, "--case", json.dumps(chosen)], check=True, stdout=subprocess.PIPE, text=True
    )
    result: Case | None = json.loads(done.stdout.splitlines()[-1])
    return result


def train_and_predict(chosen: Case) -> Case | None:
    """A case, measured and only then predicted, in this process."""
    import torch

    if chosen["dtype"] == "float32":  # as on a machine without fast bf16
        torch.cpu._is_amx_tile_supported = torch.cpu._is_avx512_bf16_supported = lambda: False
    from ragtune.generator.machine import best_dtype

    if str(best_dtype()) != f"torch.{chosen['dtype']}":
        return None
    rows, ends = train(chosen)
    return chosen | {"peak_bytes": peak_bytes(), "seconds": ends[-1] - ends[-2]} | predict(chosen, rows)


def peak_bytes() -> int:
    """The most that this process ever held."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def train(chosen: Case) -> tuple[list[tuple[int, int]], list[float]]:
    """Train a case's rows: (tokens, prompt tokens) of each, and the time at the end of each step."""
    from ragtune.generator import models
    from ragtune.generator.generate import load_tokenizer
    from ragtune.generator.methods import METHODS
    from ragtune.generator.train import Progress, encode_row, train

    folder = models.resolve(MODEL)
    tokenizer = load_tokenizer(folder)
    row = row_of(chosen["tokens"], lambda row: len(encode_row(tokenizer, row)[0]))
    ids, prompt = encode_row(tokenizer, row)
    ends: list[float] = []

    def note(step: Progress) -> None:
        ends.append(step.seconds)

    with tempfile.TemporaryDirectory() as work:
        rows = [row] * (chosen["batch"] * STEPS)
        train(rows, folder, METHODS[chosen["method"]], config_of(chosen), Path(work), note)
    return [(len(ids), prompt)] * chosen["batch"], ends


def row_of(tokens: int, count: Callable[[Any], int]) -> Any:
    """A row of exactly so many tokens, 16 of them the answer with its end."""
    from ragtune.generator.examples import TrainingRow
    from ragtune.types import Message

    words = tokens
    while True:
        row = TrainingRow("plan", "q", "plain", (Message("user", " word" * words),), " word" * 15)
        if (found := count(row)) == tokens:
            return row
        words += tokens - found


def config_of(chosen: Case) -> Any:
    """The tuning settings of a case."""
    from ragtune.config import TuneConfig

    return TuneConfig(
        method=chosen["method"],
        batch_size=chosen["batch"],
        checkpointing=chosen["checkpointing"],
        compile=chosen["compile"],
        dequantise="once",
        save_steps=10_000,
    )


def predict(chosen: Case, rows: Sequence[tuple[int, int]]) -> Case:
    """What `ragtune plan` says of one step on these rows."""
    from ragtune.generator import rates
    from ragtune.generator.costs import numbers_by_layer, precision
    from ragtune.generator.machine import best_dtype
    from ragtune.generator.methods import METHODS
    from ragtune.generator.plan import Job, memory, seconds
    from ragtune.generator.shapes import shape_of

    method, shape, dtype = METHODS[chosen["method"]], shape_of(MODEL), best_dtype()
    lengths, answer = tuple(tokens for tokens, _ in rows), max(tokens - prompt for tokens, prompt in rows)
    job = Job(shape, method, config_of(chosen), lengths, answer, precision(method, dtype.itemsize))
    machine = rates.measured(shape, dtype)
    told, again = memory(job), chosen["checkpointing"]
    return {
        "predicted_bytes": told.peak,
        "predicted_seconds": seconds(job, machine),
        "parts": told.parts,
        "rates": {"products": machine.products, "elements": machine.elements},
        "products_seconds": seconds(job, replace(machine, elements=float("inf"))),
        "touched": [job.widest * shape.layers * numbers_by_layer(shape) * (4 / 3 if again else 1), job.trained],
        "kept": job.widest * shape.layers * job.kept_by_layer,
        "kind": f"checkpointing, {chosen['dtype']}" if again else "all kept",
    }


def run(cases: Sequence[Case]) -> list[Case]:
    """Run cases one after another, showing each as a row of a Markdown table."""
    results = []
    print(HEAD, flush=True)
    for chosen in cases:
        result = run_apart(chosen)
        if result is None:
            print(f"{name_of(chosen)}: left out, since this machine does not compute in {chosen['dtype']}", flush=True)
            continue
        results.append(result)
        print(row_of_table(result), flush=True)
    return results


HEAD = "| case | measured | predicted | | a step | predicted |\n|---|---|---|---|---|---|"


def name_of(chosen: Case) -> str:
    """A case in words."""
    again = ", checkpointing" if chosen["checkpointing"] else ""
    compiled = ", compiled" if chosen["compile"] == "on" else ""
    return f"{chosen['method']}, {chosen['dtype']}, {chosen['batch']} x {chosen['tokens']} tokens{again}{compiled}"


def row_of_table(result: Case) -> str:
    """A result as a row under `HEAD`."""
    memory = f"{result['peak_bytes'] / 1e9:.2f} GB | {result['predicted_bytes'] / 1e9:.2f} GB"
    wrong = f"{error(result, 'peak_bytes', 'predicted_bytes'):+.0%}"
    time = f"{result['seconds']:.1f} s | {result['predicted_seconds']:.1f} s"
    return f"| {name_of(result)} | {memory} | {wrong} | {time} |"


def error(result: Case, truth: str, told: str) -> float:
    """How far what was told is from the truth, relative to that."""
    return float(result[told] / result[truth] - 1)


def summarise(results: Sequence[Case]) -> dict[str, Any]:
    """The figures as named above."""
    errors = [abs(error(result, "peak_bytes", "predicted_bytes")) for result in results]
    times = [abs(error(result, "seconds", "predicted_seconds")) for result in results]
    return {"worst": max(errors), "mean": fmean(errors), "worst_seconds": max(times), "cases": results}


def fit(results: Sequence[Case]) -> dict[str, Any]:
    """The constants of ragtune/generator/plan.py that fit these cases best, by least squares."""
    import numpy as np

    heap = {}
    for kind in sorted({result["kind"] for result in results}):
        own = [result for result in results if result["kind"] == kind]
        kept = np.array([result["kept"] for result in own])
        missing = [result["peak_bytes"] - result["predicted_bytes"] + result["parts"]["overhead"] for result in own]
        heap[kind] = float(kept @ np.array(missing) / (kept @ kept))
    touched = np.array([[each / result["rates"]["elements"] for each in result["touched"]] for result in results])
    left = np.array([result["seconds"] - result["products_seconds"] for result in results])
    touches, step_touches = np.linalg.lstsq(touched, left, rcond=None)[0]
    return {"heap": heap, "touches": float(touches), "step_touches": float(step_touches), "cases": results}


def page(figures: dict[str, Any]) -> Iterator[str]:
    """The worked example, then the figures, as Markdown."""
    from ragtune.config import TuneConfig
    from ragtune.generator.costs import SIXTEEN_BIT
    from ragtune.generator.methods import METHODS
    from ragtune.generator.plan import Job, memory
    from ragtune.generator.shapes import shape_of

    shape, config = shape_of("llama-65b"), TuneConfig(batch_size=1, rank=64, checkpointing=True)
    jobs = [Job(shape, METHODS[name], config, (512,), 32, SIXTEEN_BIT, gpu=True) for name in ("full", "lora", "qlora")]
    told = [memory(job) for job in jobs]
    yield "| part, in GB | " + " | ".join(job.method.name for job in jobs) + " |"
    yield "|---" * 4 + "|"
    for part in told[0].parts:
        yield f"| {part} | " + " | ".join(f"{each.parts[part] / 1e9:.2f}" for each in told) + " |"
    yield "| **peak** | " + " | ".join(f"**{each.peak / 1e9:.1f}**" for each in told) + " |"
    yield ""
    yield HEAD
    yield from (row_of_table(result) for result in figures["cases"])
    yield ""
    yield f"Peak memory is off by {figures['mean']:.0%} on average and by {figures['worst']:.0%} at worst."


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three cases only")
    parser.add_argument("--fit", action="store_true", help="run the cases that the constants come from, and fit them")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/planning.md")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        figures = train_and_predict(arguments.case)
    elif arguments.fit:
        figures = fit(run(FITTED_ON))
    else:
        figures = summarise(run(CASES[:3] if arguments.quick else CASES))
        if arguments.write:
            generated.fill(PAGE, "bench_plan.py", page(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
