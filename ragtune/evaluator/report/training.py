"""How the adapters were trained: what it took, and how the loss fell."""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean

from ragtune.evaluator.report import words
from ragtune.evaluator.report.data import ReportData, TrainingFacts
from ragtune.evaluator.report.tables import Table, unmarked

_PARTS = 10


def training_table(data: ReportData) -> Table:
    """One adapter a row: method, learning rate, parameters, work, time and memory."""
    columns = (
        "Adapter",
        "Method",
        "Learning rate",
        "Parameters trained",
        "Share",
        "Steps",
        "Tokens",
        "Seconds",
        "Peak memory",
    )
    rows = [
        (
            facts.adapter,
            facts.method,
            f"{facts.learning_rate:g}",
            f"{facts.trainable_parameters:,}",
            f"{100 * facts.trainable_parameters / facts.all_parameters:.2g} %",
            f"{len(facts.losses):,}",
            f"{facts.tokens:,}",
            f"{facts.seconds:,.0f}",
            f"{facts.peak_memory / 2**30:.1f} GiB" if facts.peak_memory else words.MISSING,
        )
        for facts in data.training
    ]
    return unmarked("Training", columns, rows)


def losses_table(facts: TrainingFacts) -> Table:
    """What stands behind the picture of losses: means over tenths of the steps, and the last dev score in each."""
    n = len(facts.losses)
    edges = sorted({round(n * part / _PARTS) for part in range(_PARTS + 1)})
    rows = []
    for start, end in pairwise(edges):
        steps = f"{start + 1} to {end}" if end > start + 1 else str(end)
        scores = [score for step, score in facts.dev_scores if start < step <= end]
        rows.append((steps, f"{fmean(facts.losses[start:end]):.3f}", f"{scores[-1]:.2f}" if scores else words.MISSING))
    columns = ("Steps", "Mean loss", "Dev score")
    if not facts.dev_scores:
        return unmarked(f"{facts.adapter}: loss", columns[:2], [row[:2] for row in rows])
    return unmarked(f"{facts.adapter}: loss", columns, rows)


def smoothed(losses: tuple[float, ...]) -> list[float]:
    """Each step's mean with those around it, a tenth of all together; fewer at both ends."""
    half = len(losses) // (2 * _PARTS)
    return [fmean(losses[max(0, i - half) : i + half + 1]) for i in range(len(losses))]


def best_step(facts: TrainingFacts) -> int | None:
    """The step whose weights the adapter has where dev questions chose it; of equal scores the earliest."""
    return max(facts.dev_scores, key=lambda scored: (scored[1], -scored[0]))[0] if facts.dev_scores else None
