"""What prompting, retrieval and tuning each add: Shapley shares of the gain, main effects and interactions.

All of these are weighted sums of arms' means. The same sum of a question's own scores is that question's contribution,
so each quantity is a mean over questions and has the paired interval of `compare.mean_interval`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial

import numpy as np

from ragtune.evaluator.compare import Array, mean_interval
from ragtune.types import Arm, Interval, Row

INGREDIENTS = ("prompting", "retrieval", "tuning")
GRID = ("prompt", "few-shot", "retrieve", "retrieve+few-shot", "tune", "tune+retrieve", "raft")
"""The arms that differ by ingredients alone. `raft` stands last: it replaces `tune+retrieve` where it was measured."""

Coalition = frozenset[str]
"""Ingredients that are used together; empty for a bare prompt."""

_NONE: Coalition = frozenset()
_ALL: Coalition = frozenset(INGREDIENTS)
_COALITIONS = [Coalition(some) for size in range(4) for some in combinations(INGREDIENTS, size)]

_BESIDE: dict[str, tuple[Coalition, ...]] = {
    "prompting": (_NONE, Coalition({"retrieval"})),
    "retrieval": (_NONE, Coalition({"prompting"}), Coalition({"tuning"})),
    "tuning": (_NONE, Coalition({"retrieval"})),
}
"""Beside what each ingredient was measured with and without; tuned weights are never asked with examples."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What an ingredient adds to the mean score, or with `a x b` how much more the two add together than apart."""

    name: str
    value: Interval


@dataclass(frozen=True, slots=True)
class Ingredients:
    """The gain of all ingredients over none on n questions, shared out (`shares` sum to it), and single `effects`."""

    task: str
    n: int
    gain: Interval
    shares: tuple[Effect, ...]
    effects: tuple[Effect, ...]


def ingredients(
    task: str,
    rows: Sequence[Row],
    arms: Mapping[str, Arm],
    seed: int = 0,
    clusters: Mapping[str, str] | None = None,
) -> Ingredients | None:
    """Share out the gain of one task among the ingredients; None unless all coalitions scored some common question.

    The value v of a coalition of P (prompting: few-shot examples), R (retrieval) and T (tuning) is an arm's mean score:

        v(-) = prompt      v(P) = few-shot        v(T) = v(PT)  = tune
        v(R) = retrieve    v(PR) = retrieve+few-shot    v(RT) = v(PRT) = raft, or tune+retrieve without it

    Tuned weights learned from the train questions that examples are drawn from, so arms never combine the two and P
    adds nothing to T by definition. Only questions that all six arms scored are used.

    - `gain` is v(PRT) - v(-), which need not be the gain of the best arm.
    - `shares` are Shapley values (Shapley 1953): what an ingredient adds, averaged over the six orders of adding them.
    - `effects`: a main effect is the mean of what an ingredient adds beside the others, over the pairs of arms that
      differ by it alone (raft and tune count as such, though they are two adapters); an interaction `a x b` is how much
      more a adds beside b than without any other ingredient (a difference of differences, twice that of Box, Hunter
      and Hunter 2005, chapter 5). Prompting x tuning is not measured.

    `clusters` maps question ids to clusters that are resampled whole; a question that it lacks is its own.
    """
    scores = _scores(task, rows)
    measured = {_ingredients_of(arms[name]): scores[name] for name in GRID if name in arms and name in scores}
    arm_of = {coalition: _as_measured(coalition) for coalition in _COALITIONS}
    if not all(coalition in measured for coalition in arm_of.values()):
        return None
    questions = sorted(set.intersection(*(set(measured[c]) for c in arm_of.values())))
    if not questions:
        return None
    v = {c: np.array([measured[arm][q] for q in questions]) for c, arm in arm_of.items()}
    labels = None if clusters is None else [clusters.get(q, q) for q in questions]

    def effect(name: str, contributions: Array, bound: float = 1.0) -> Effect:
        return Effect(name, mean_interval(contributions, seed=seed, bounds=(-bound, bound), clusters=labels))

    return Ingredients(
        task=task,
        n=len(questions),
        gain=effect("gain", v[_ALL] - v[_NONE]).value,
        shares=tuple(effect(name, shapley(v, name)) for name in INGREDIENTS),
        effects=(
            *(effect(name, np.mean([_added(v, name, c) for c in _BESIDE[name]], axis=0)) for name in INGREDIENTS),
            effect("prompting x retrieval", _interaction(v, "prompting", "retrieval"), 2.0),
            effect("retrieval x tuning", _interaction(v, "retrieval", "tuning"), 2.0),
        ),
    )


def shapley(v: Mapping[Coalition, Array], name: str) -> Array:
    """The Shapley value of one of three players in the game v, for each question on its own; shape (n,).

    sum over coalitions S without the player of |S|! (2 - |S|)! / 3! * (v(S and the player) - v(S)), which for three
    players weighs the empty S and the largest by 1/3 and the two between by 1/6. Source: Shapley 1953, A Value for
    n-Person Games.
    """
    weighted = [
        factorial(len(s)) * factorial(2 - len(s)) / factorial(3) * _added(v, name, s)
        for s in _COALITIONS
        if name not in s
    ]
    value: Array = np.sum(weighted, axis=0)
    return value


def _added(v: Mapping[Coalition, Array], name: str, beside: Coalition) -> Array:
    return v[beside | {name}] - v[beside]


def _interaction(v: Mapping[Coalition, Array], a: str, b: str) -> Array:
    return _added(v, a, Coalition({b})) - _added(v, a, _NONE)


def _scores(task: str, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Scores by arm and question, unscored rows left out."""
    scores: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.task == task and row.score is not None:
            scores.setdefault(row.arm, {})[row.question_id] = row.score
    return scores


def _ingredients_of(arm: Arm) -> Coalition:
    has = (arm.few_shot, arm.passages == "retrieved", arm.weights != "base")
    return Coalition(name for name, used in zip(INGREDIENTS, has, strict=True) if used)


def _as_measured(coalition: Coalition) -> Coalition:
    """The coalition whose arm stands for this one: tuned weights need no examples."""
    return coalition - {"prompting"} if "tuning" in coalition else coalition
