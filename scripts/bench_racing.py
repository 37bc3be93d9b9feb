"""`python scripts/bench_racing.py RUN` replays a run in which every arm answered everything: what would racing save?

RUN is a finished run with `racing_error = 0` under `[evaluate]`. Its answers are given again in the rounds of an
evaluation, in 20 random orders of the questions (`--orders`), and each race's verdict is compared with that of all
answers. The last line is one JSON object, means over tasks and orders: `saved`, the share of the generations that a
race did not need; `same_arm`, the share of races that name the arm of the full verdict; `decided`;
`both_decided_otherwise`, where both are decided and name different arms; `races`, how many there were; and the same
`by_task`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ragtune import store
from ragtune.config import EvaluateConfig
from ragtune.errors import InputError
from ragtune.evaluator.decide import Prices, decide
from ragtune.records import question_from_json
from ragtune.results import load_run
from ragtune.rounds import Contest, clusters_of, generations, random_order, rows_of, run_rounds
from ragtune.types import Arm, Question, Row, Verdict


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run's folder")
    parser.add_argument("--orders", type=int, default=20, help="random orders of the questions")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    figures = json.dumps(replay(args.run, args.orders))
    if args.json:
        args.json.write_text(figures + "\n", encoding="utf-8")
    print(figures)


def replay(folder: Path, orders: int) -> dict[str, Any]:
    """The figures named above.

    Raises: InputError when an arm did not answer every question of its task.
    """
    run, manifest = load_run(folder), store.read_manifest(folder, "run")
    arms = {value["name"]: Arm(**value) for value in manifest["arms"]}
    questions = [question_from_json(value) for value in store.read_jsonl(folder / "questions.jsonl")]
    config = EvaluateConfig(margin=manifest["inputs"]["config"]["evaluate"]["margin"])
    prices = _prices(manifest)
    races = {}
    for verdict in run.verdicts:
        rows = {(row.arm, row.question_id): row for row in run.rows if row.task == verdict.task}
        names = dict.fromkeys(arm for arm, _ in rows)
        asked = [q for q in questions if q.task == verdict.task]
        if len(rows) != len(names) * len(asked):
            raise InputError(f"{folder}: not every arm answered all of {verdict.task}; evaluate with racing_error = 0")
        contest = (verdict.task, [arms[name] for name in names], asked)
        races[verdict.task] = [_race(contest, rows, config, prices, seed) for seed in range(orders)]
        compared = _compare(verdict, races[verdict.task])
        print(f"{verdict.task}: " + ", ".join(f"{key} {value:.2f}" for key, value in compared.items()), flush=True)
    by_task = {verdict.task: _compare(verdict, races[verdict.task]) for verdict in run.verdicts}
    means = {key: fmean(each[key] for each in by_task.values()) for key in next(iter(by_task.values()))}
    return {**means, "races": orders * len(by_task), "by_task": by_task}


def _prices(manifest: Mapping[str, Any]) -> Prices:
    config, paid_off = manifest["inputs"]["config"]["prices"], manifest["questions_paid_off"]
    training = {arm: cost / paid_off for arm, cost in manifest["training_cost"].items()}
    return Prices(config["prompt"], config["output"], currency=config["currency"], training=training)


def _race(
    contest: tuple[str, Sequence[Arm], Sequence[Question]],
    rows: Mapping[tuple[str, str], Row],
    config: EvaluateConfig,
    prices: Prices,
    seed: int,
) -> tuple[float, Verdict]:
    """The share of generations saved, and the verdict, of one race over recorded answers."""
    task, arms, questions = contest
    race = Contest(task, random_order(questions, seed), tuple(arms))
    run_rounds([race], lambda arm, _, asked: [rows[arm.name, q.id] for q in asked], config)
    needed, in_full = generations([race])
    verdict = decide(
        task,
        rows_of([race]),
        {arm.name: arm for arm in arms},
        config.margin,
        prices,
        seed,
        clusters=clusters_of(questions),
        dropped=race.dropped,
        racing_alpha=config.racing_error,
    )
    return 1 - needed / in_full, verdict


def _compare(full: Verdict, races: Sequence[tuple[float, Verdict]]) -> dict[str, float]:
    verdicts = [verdict for _, verdict in races]
    return {
        "saved": fmean(saved for saved, _ in races),
        "same_arm": fmean(v.arm == full.arm for v in verdicts),
        "decided": fmean(v.status == "decided" for v in verdicts),
        "both_decided_otherwise": fmean(v.arm != full.arm and v.status == full.status == "decided" for v in verdicts),
    }


if __name__ == "__main__":
    main()
