"""`python scripts/bench_router.py` measures the router on the test questions of corpora/harbourline (half a minute).

It learns from the train and dev questions, as `ragtune evaluate` lets it, and then routes the test questions, whose
documents are others. `--quick` learns from at most 64 questions of each task and asks at most 30. `--json FILE` writes
the figures that the last line prints: `accuracy` (mean of the tasks' recalls, no abstaining), `covered`, `precision`
(of the routed), `calibration_error` (ten bins), all as if each task were asked equally often; `cross_validated` the
same from training; `n`; and `confusion`, rows the right task, columns the picked one, the last column left to the
default.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import ragtune
from ragtune.router import Router
from ragtune.session import Session
from ragtune.types import Embedder, Task

CORPUS = Path(__file__).resolve().parents[1] / "corpora" / "harbourline"


def measure(tasks: tuple[Task, ...], embedder: Embedder, most: int = 512, asked: int | None = None) -> dict[str, Any]:
    """The figures named above; `most` questions to learn from and `asked` test questions of each task."""
    router = Router.from_tasks(tasks, embedder, default="", most=most)
    questions = [(q.text, router.tasks.index(task.name)) for task in tasks for q in task.split("test")[:asked]]
    likely = router.probabilities([text for text, _ in questions], embedder)
    y, picked, confidence = np.array([k for _, k in questions]), likely.argmax(axis=1), likely.max(axis=1)
    weights = 1 / (np.bincount(y)[y] * len(tasks))
    right, routed = picked == y, confidence >= router.threshold
    confusion = np.zeros((len(tasks), len(tasks) + 1), dtype=int)
    np.add.at(confusion, (y, np.where(routed, picked, len(tasks))), 1)
    return {
        "accuracy": float(weights @ right),
        "covered": float(weights @ routed),
        "precision": float(weights @ (right & routed) / (weights @ routed)),
        "calibration_error": calibration_error(confidence, right, weights),
        "n": len(y),
        "cross_validated": asdict(router.facts) if router.facts else None,
        "threshold": router.threshold,
        "confusion": {name: row.tolist() for name, row in zip(router.tasks, confusion, strict=True)},
    }


def calibration_error(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: mean distance of confidence and share right over equal bins (Guo et al. 2017, 2)."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(place, weights * (right - confidence))).sum() / weights.sum())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer questions")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    arguments = parser.parse_args()
    session = Session(ragtune.load_config(CORPUS), say=print)
    sizes = (64, 30) if arguments.quick else (512, None)
    figures = json.dumps(measure(session.tasks, session.embedder, *sizes))
    if arguments.json:
        arguments.json.write_text(figures + "\n", encoding="utf-8")
    print(figures)


if __name__ == "__main__":
    main()
