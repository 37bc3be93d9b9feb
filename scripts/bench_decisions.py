"""`python scripts/bench_decisions.py [--tasks N] [--quick] [--seed N] [--json FILE]` checks verdicts on known truths.

Simulates tasks whose true scores are known and puts `ragtune.evaluator` to the test: does the set of arms that may be
the best hold the best, how often is a claim false, how good is the arm that the verdict chooses, what does racing save.
Takes about three minutes of one core; `--quick` ten seconds. A table goes to standard output, progress to standard
error, and the last line is one JSON object (also written to `--json FILE`).

A simulated task. Seven arms with the prices of ARMS. The best arm is drawn with the odds of ARMS (combining is often
best), with a true score from 0.5 to 0.95. The next best lies `gap` below, the others up to 0.4 further; of the tasks
with gap 0 every second has seven equal arms, the hardest case for false claims. Questions differ in difficulty: 30 to
70 % of an arm's luck is shared by all arms. Scores are 0 or 1, or graded (u^(1/mean - 1), u uniform on [0, 1], whose
mean is exact). All combinations of SIZES, GAPS and the two kinds get equally many tasks.

What is counted, as shares of tasks or in points of score:

- coverage: the set holds every truly best arm; goal 0.95.
- false_claims: some arm is called worse (out of the set) though it is truly best, or some p-value of the verdict is
  at most 0.05 with the wrong sign or a true difference of 0; goal at most 0.05.
- regret: utility lost against the right arm, the truly cheapest of those truly within the margin of the best. Utility
  of an arm = min(true score, best true score - margin), less another `margin` if it costs more than the right arm: what
  the margin says, in points. Whoever sets a margin of 0.02 gives up to 0.02 for the cheaper arm, and no more.
- right: the verdict chooses exactly the right arm. score_regret: best true score minus that of the choice, prices
  ignored; a margin costs some of it on purpose. decided: the verdict is decided.
- Peers: the highest mean; the cheapest arm that Welch's unpaired t test at 0.05 doesn't call worse than the highest
  mean; always `tune+retrieve`.
- racing_*: the same with arms dropped after rounds of questions, as `ragtune evaluate` asks them. racing_saved: answers
  saved, out of all that asking every arm everything takes, where the best arm is really ahead (gap above 0);
  racing_saved_all: in all tasks. racing_false_drop: a truly best arm was dropped; goal at most RACING_ALPHA.

To be quick the simulation uses fewer resamples than ragtune (499 and 999, not 10,000). That adds noise to each verdict,
so real verdicts are, if anything, a little steadier.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from scipy.special import ndtr, stdtr

from ragtune.evaluator.compare import Array, best_set, holm, permutation_p_value
from ragtune.evaluator.decide import ALPHA, MARGIN
from ragtune.evaluator.race import RACING_ALPHA, drop, settled
from ragtune.evaluator.rule import choose, pending, ranked
from ragtune.types import ArmSummary, Interval

ARMS = {  # price of a question, odds of being the best
    "prompt": (0.005, 1),
    "few-shot": (0.020, 1),
    "retrieve": (0.025, 2),
    "tune": (0.030, 2),
    "retrieve+few-shot": (0.040, 2),
    "tune+retrieve": (0.050, 4),
    "raft": (0.055, 4),
}
NAMES = tuple(ARMS)
COSTS = np.array([cost for cost, _ in ARMS.values()])
ODDS = np.array([odds for _, odds in ARMS.values()]) / sum(odds for _, odds in ARMS.values())
COMBINE = NAMES.index("tune+retrieve")

SIZES = (30, 60, 100, 200, 500, 1000)
GAPS = (0.0, 0.02, 0.05, 0.1, 0.2)
KINDS = ("binary", "graded")
LEAST_ROUND, GROWTH = 24, 1.5  # as in ragtune.rounds
BOOTSTRAPS, PERMUTATIONS = 499, 999
SMALLEST_MEAN = 0.02

KEYS = (
    "coverage",
    "false_claims",
    "regret",
    "regret_highest_mean",
    "regret_unpaired",
    "regret_always_combine",
    "racing_saved",
    "racing_saved_all",
    "racing_false_drop",
    "racing_regret",
    "racing_false_claims",
    "right",
    "right_highest_mean",
    "right_unpaired",
    "right_always_combine",
    "racing_right",
    "score_regret",
    "score_regret_highest_mean",
    "decided",
    "racing_decided",
)
COLUMNS = (
    "coverage",
    "false_claims",
    "decided",
    "right",
    "regret",
    "regret_highest_mean",
    "regret_unpaired",
    "regret_always_combine",
    "racing_saved_all",
    "racing_false_drop",
    "racing_regret",
)
Outcome = Mapping[str, float]
"""What one simulated task came to; see KEYS."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of task."""

    n: int
    gap: float
    kind: str


def draw_truth(rng: np.random.Generator, gap: float, all_equal: bool) -> Array:
    """The true mean score of each arm, shape (arms,)."""
    top = rng.uniform(0.5, 0.95)
    if all_equal:
        return np.full(len(NAMES), top)
    best = rng.choice(len(NAMES), p=ODDS)
    others = rng.permutation(np.delete(np.arange(len(NAMES)), best))
    further = np.append(0.0, rng.uniform(0, 0.4, len(others) - 1))
    truth = np.empty(len(NAMES))
    truth[best] = top
    truth[others] = np.maximum(top - gap - further, SMALLEST_MEAN)
    return truth


def draw_scores(rng: np.random.Generator, truth: Array, n: int, kind: str) -> Array:
    """Scores of all arms on the same n questions, shape (n, arms)."""
    shared = rng.uniform(0.3, 0.7)
    difficulty, luck = rng.normal(size=(n, 1)), rng.normal(size=(n, len(truth)))
    u = ndtr(math.sqrt(shared) * difficulty + math.sqrt(1 - shared) * luck)
    scores: Array = (u < truth).astype(np.float64) if kind == "binary" else u ** (1 / truth - 1)
    return scores


def verdict(x: Array, arms: Sequence[int], alpha: float, seed: int) -> tuple[int, bool, set[int]]:
    """The rule of `ragtune.evaluator` for some arms: (chosen arm, whether decided, arms that are called worse)."""
    best, _ = best_set({NAMES[i]: x[:, i] for i in arms}, 1 - alpha, seed, BOOTSTRAPS)
    contenders = ranked(summary(i, float(x[:, i].mean()), NAMES[i] in best) for i in arms)
    choice = choose(contenders, MARGIN)
    worse = {i for i in arms if NAMES[i] not in best}
    return NAMES.index(choice.arm), not pending(contenders, choice), worse


def summary(arm: int, mean: float, in_best_set: bool) -> ArmSummary:
    """As much of a summary as the rule reads."""
    return ArmSummary(
        NAMES[arm], Interval(mean, mean, mean), 0, 0, float(COSTS[arm]), 0, 0, 0, 0, False, in_best_set=in_best_set
    )


def false_p_value(x: Array, truth: Array, choice: int, seed: int) -> bool:
    """Whether some corrected p-value of the choice against another arm says what is not so."""
    others = [i for i in range(len(truth)) if i != choice]
    p_values = holm(
        [permutation_p_value(x[:, choice], x[:, i], seed, PERMUTATIONS) for i in others], math.comb(len(truth), 2)
    )
    seen = x[:, [choice]].mean(axis=0) - x[:, others].mean(axis=0)
    return any(
        p <= ALPHA and difference * (truth[choice] - truth[i]) <= 0
        for p, difference, i in zip(p_values, seen, others, strict=True)
    )


def unpaired_choice(x: Array) -> int:
    """The cheapest arm that an unpaired t test doesn't call worse than the highest mean."""
    means, variances = x.mean(axis=0), x.var(axis=0, ddof=1) / len(x)
    leader = int(means.argmax())
    total = variances + variances[leader]
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = total**2 * (len(x) - 1) / (variances**2 + variances[leader] ** 2)
        p_values = 2 * stdtr(freedom, (means - means[leader]) / np.sqrt(total))
    p_values = np.where(total > 0, p_values, means == means[leader])  # no spread in either arm: the means decide
    return int(np.where(p_values > ALPHA, COSTS, np.inf).argmin())


def right_arm(truth: Array) -> int:
    """The truly cheapest arm of those truly within the margin of the best."""
    return int(np.where(truth >= truth.max() - MARGIN - 1e-9, COSTS, np.inf).argmin())


def regret(truth: Array, choice: int) -> float:
    """Utility lost against the right arm; see the head of this file."""
    lost = max(0.0, truth.max() - MARGIN - truth[choice])
    return float(lost + MARGIN * (COSTS[choice] > COSTS[right_arm(truth)]))


def rounds(n: int) -> list[int]:
    """How many questions are asked at the end of each round."""
    ends = [min(n, LEAST_ROUND)]
    while ends[-1] < n:
        ends.append(min(n, ends[-1] + max(LEAST_ROUND, int(ends[-1] * (GROWTH - 1)))))
    return ends


def race(x: Array, truth: Array, seed: int) -> Outcome:
    """The same verdict with arms dropped on the way."""
    n, best = len(x), {int(i) for i in np.flatnonzero(truth == truth.max())}
    dropped = drop(dict(zip(NAMES, x.T, strict=True)), RACING_ALPHA, MARGIN)
    answered = {name: next(end for end in rounds(n) if end >= after) for name, after in dropped.items()}
    asked = max(answered.values()) if settled(NAMES, dropped) else n
    left = [i for i, name in enumerate(NAMES) if name not in dropped]
    choice, decided, worse = verdict(x[:asked], left, ALPHA - RACING_ALPHA, seed)
    lost = best & {NAMES.index(name) for name in dropped}
    saved = 1 - (sum(answered.values()) + asked * len(left)) / (n * len(NAMES))
    return {
        "racing_saved": saved if np.sum(truth == truth.max()) == 1 else math.nan,
        "racing_saved_all": saved,
        "racing_false_drop": bool(lost),
        "racing_false_claims": bool(lost or worse & best),
        "racing_regret": regret(truth, choice),
        "racing_right": choice == right_arm(truth),
        "racing_decided": decided,
    }


def judge(x: Array, truth: Array, seed: int) -> Outcome:
    """What a verdict on these scores comes to, given the truth."""
    choice, decided, worse = verdict(x, range(len(NAMES)), ALPHA, seed)
    missed = any(truth[i] == truth.max() for i in worse)
    choices = {
        "": choice,
        "_highest_mean": int(x.mean(axis=0).argmax()),  # of equal means the cheapest: arms are in the order of price
        "_unpaired": unpaired_choice(x),
        "_always_combine": COMBINE,
    }
    return {
        "coverage": not missed,
        "false_claims": missed or false_p_value(x, truth, choice, seed),
        "decided": decided,
        **{f"regret{rule}": regret(truth, arm) for rule, arm in choices.items()},
        **{f"right{rule}": arm == right_arm(truth) for rule, arm in choices.items()},
        **{f"score_regret{rule}": float(truth.max() - truth[arm]) for rule, arm in choices.items()},
        **race(x, truth, seed),
    }


def simulate(cell: Cell, tasks: int, seed: int) -> list[Outcome]:
    """The outcomes of some tasks of one kind."""
    rng = np.random.default_rng([seed, cell.n, round(1000 * cell.gap), KINDS.index(cell.kind)])
    outcomes = []
    for number in range(tasks):
        truth = draw_truth(rng, cell.gap, all_equal=cell.gap == 0 and number % 2 == 1)
        outcomes.append(judge(draw_scores(rng, truth, cell.n, cell.kind), truth, seed=int(rng.integers(2**31))))
    return outcomes


def run(tasks: int, seed: int, sizes: Sequence[int]) -> dict[Cell, list[Outcome]]:
    """At least `tasks` tasks, equally many in each cell."""
    cells = [Cell(*values) for values in product(sizes, GAPS, KINDS)]
    each = math.ceil(tasks / len(cells))
    start = time.monotonic()
    results = {}
    for number, cell in enumerate(cells, 1):
        results[cell] = simulate(cell, each, seed)
        seconds = time.monotonic() - start
        print(f"\r{number * each} of {len(cells) * each} tasks, {seconds:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)
    return results


def means(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The mean of every figure over the tasks that have it (NaN: has not)."""
    return {key: float(np.nanmean([o[key] for o in outcomes])) for key in KEYS}


def table(results: Mapping[Cell, list[Outcome]]) -> str:
    """Markdown: a line for each number of questions, each gap and each kind of scores, and one for everything."""
    groups = {
        **{f"{n} questions": [o for cell in results if cell.n == n for o in results[cell]] for n in SIZES},
        **{f"gap {gap:g}": [o for cell in results if cell.gap == gap for o in results[cell]] for gap in GAPS},
        **{f"{kind} scores": [o for cell in results if cell.kind == kind for o in results[cell]] for kind in KINDS},
        "all": [o for found in results.values() for o in found],
    }
    lines = ["| tasks | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for label, outcomes in groups.items():
        values = (_rounded(key, float(np.mean([o[key] for o in outcomes]))) for key in COLUMNS)
        lines.append(f"| {label} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def _rounded(key: str, value: float) -> str:
    digits = 4 if "regret" in key or "false" in key else 3
    return f"{value:.{digits}f}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check verdicts against simulated truths.")
    parser.add_argument("--tasks", type=int, default=24_000, help="simulated tasks, at least (default 24,000)")
    parser.add_argument("--quick", action="store_true", help="600 tasks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args(arguments)
    results = run(600 if options.quick else options.tasks, options.seed, SIZES)
    outcomes = [outcome for found in results.values() for outcome in found]
    figures = {**{key: round(value, 5) for key, value in means(outcomes).items()}, "tasks": len(outcomes)}
    print(table(results))
    line = json.dumps(figures)
    if options.json:
        options.json.write_text(line + "\n", encoding="utf-8")
    print(line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
