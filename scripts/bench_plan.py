"""`python scripts/bench_plan.py [--quick] [--json FILE]` holds `ragtune plan` against what training really takes.

Each case trains the embedded model for two optimiser steps on made-up rows of exactly the stated length, in a process
of its own, and reads the most memory that the process ever held (VmHWM in /proc, so Linux only) and the time of its
second step. The prediction for the same case is made afterwards, from the model's config and rates that are measured
there. Ten cases take about four minutes of 2 cores; `--quick` takes three of them.

The constants of ragtune/generator/plan.py come from other cases than those.

The last line, also written with `--json FILE`, is one JSON object:

- `worst`, `mean`: the largest and the mean relative error of the predicted peak, signs left out; goal 0.15 at most.
- `worst_seconds`: the largest relative error of the predicted time of a step.
- `cases`: for each its settings, `peak_bytes`, `predicted_bytes`, `seconds`, `predicted_seconds`, `parts`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

Case = dict[str, Any]

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
    from ragtune.generator.train import encode_row, train

    folder = models.resolve(MODEL)
    tokenizer = load_tokenizer(folder)
    row = row_of(chosen["tokens"], lambda row: len(encode_row(tokenizer, row)[0]))
    ids, prompt = encode_row(tokenizer, row)
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as work:
        rows = [row] * (chosen["batch"] * STEPS)
        train(
            rows,
            folder,
            METHODS[chosen["method"]],
            config_of(chosen),
            Path(work),
            lambda step: ends.append(step.seconds),
        )
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
    from ragtune.generator.costs import precision
    from ragtune.generator.machine import best_dtype
    from ragtune.generator.methods import METHODS
    from ragtune.generator.plan import Job, memory, seconds
    from ragtune.generator.shapes import shape_of

    method, shape, dtype = METHODS[chosen["method"]], shape_of(MODEL), best_dtype()
    lengths, answer = tuple(tokens for tokens, _ in rows), max(tokens - prompt for tokens, prompt in rows)
    job = Job(shape, method, config_of(chosen), lengths, answer, precision(method, dtype.itemsize))
    machine = rates.measured(shape, dtype)
    told = memory(job)
    rate = {"products": machine.products, "elements": machine.elements}
    return {
        "predicted_bytes": told.peak,
        "predicted_seconds": seconds(job, machine),
        "parts": told.parts,
        "rates": rate,
    }


def run(cases: Sequence[Case]) -> list[Case]:
    """Run cases one after another, showing each."""
    results = []
    print(f"{'case':44} {'measured':>9} {'predicted':>10} {'':6} {'step':>7} {'predicted':>10}")
    for chosen in cases:
        result = run_apart(chosen)
        name = " ".join(f"{value}" for value in list(chosen.values())[:2])
        name += f", {chosen['batch']} x {chosen['tokens']}{', checkpointing' if chosen['checkpointing'] else ''}"
        if result is None:
            print(f"{name:44} left out: this machine does not compute in {chosen['dtype']}")
            continue
        results.append(result)
        print(
            f"{name:44} {result['peak_bytes'] / 1e9:6.2f} GB {result['predicted_bytes'] / 1e9:7.2f} GB "
            f"{error(result, 'peak_bytes', 'predicted_bytes'):+6.1%} {result['seconds']:5.1f} s "
            f"{result['predicted_seconds']:8.1f} s",
            flush=True,
        )
    return results


def error(result: Case, truth: str, told: str) -> float:
    return float(result[told] / result[truth] - 1)


def summarise(results: Sequence[Case]) -> dict[str, Any]:
    """The figures as named above."""
    errors = [abs(error(result, "peak_bytes", "predicted_bytes")) for result in results]
    times = [abs(error(result, "seconds", "predicted_seconds")) for result in results]
    return {"worst": max(errors), "mean": fmean(errors), "worst_seconds": max(times), "cases": results}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three cases only")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        figures = train_and_predict(arguments.case)
    else:
        figures = summarise(run(CASES[:3] if arguments.quick else CASES))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
