"""Rows -> the verdict of one task: the cheapest arm within the margin of the best, and whether that is settled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ragtune.errors import ConfigError, InputError
from ragtune.evaluator.compare import (
    MINIMUM_QUESTIONS,
    Array,
    best_set,
    holm,
    mean_interval,
    probability_best,
    questions_needed,
    smallest_detectable_difference,
    win_tie_loss,
)
from ragtune.evaluator.race import RACING_ALPHA
from ragtune.evaluator.reason import decided, undecided
from ragtune.evaluator.rule import Standing, choose, ranked
from ragtune.types import Arm, ArmSummary, Comparison, Row, Verdict

ALPHA = 0.05
POWER = 0.8
MARGIN = 0.02
_ROUNDING = 1e-9  # means and costs are sums of floats


@dataclass(frozen=True, slots=True)
class Prices:
    """What an answer costs. `training` holds, by arm, the share of its adapter's training that one question bears.

    By default an output token costs as much as four prompt tokens and time costs nothing, so that a verdict doesn't
    change with how busy the machine was. `by_arm` holds the two token prices of arms that have their own.
    """

    per_1k_prompt_tokens: float = 0.05
    per_1k_output_tokens: float = 0.20
    per_1k_seconds: float = 0.0
    currency: str = "units"
    training: Mapping[str, float] = field(default_factory=dict)
    by_arm: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def cost(self, row: Row) -> float:
        """The price of one answer."""
        prompt, output = self.by_arm.get(row.arm, (self.per_1k_prompt_tokens, self.per_1k_output_tokens))
        thousandfold = row.prompt_tokens * prompt + row.output_tokens * output + row.seconds * self.per_1k_seconds
        return thousandfold / 1000 + self.training.get(row.arm, 0.0)


_DEFAULT_PRICES = Prices()


Answered = Mapping[str, Row]
"""The rows of one arm by question id."""


def decide(
    task: str,
    rows: Sequence[Row],
    arms: Mapping[str, Arm],
    margin: float = MARGIN,
    prices: Prices = _DEFAULT_PRICES,
    seed: int = 0,
    *,
    clusters: Mapping[str, str] | None = None,
    dropped: Mapping[str, int] | None = None,
    racing_alpha: float = RACING_ALPHA,
) -> Verdict:
    """The verdict over the arms that have rows of this task; each mean is over the questions scored for all of them.

    The leader is the arm with the highest mean, the choice the cheapest arm whose mean is within `margin` of it. The
    verdict is undecided when only one arm was measured, when there are fewer than 10 questions (or clusters), or when
    an arm cheaper than the choice is not shown worse than another (`compare.best_set`) although its mean lies more
    than `margin` below the leader's: more questions would show whether it suffices. `questions_needed` is then the
    total for that arm against the leader (80 % power, Bonferroni over the pairs of arms). `ArmSummary.cost` is the mean
    price of one question. The order of `rows` doesn't matter.

    Reference arms never win and don't limit the questions; one without a score on them is left out. Their p-values are
    a Holm family of their own. The choice was picked after looking, so each family counts every pair that could have
    been compared: all pairs of arms that can win, and all of those with a reference arm.

    `clusters` gives the cluster of each question id, such as its source document (see `compare`); a question that it
    doesn't name is a cluster by itself.

    `dropped` says after how many questions racing dropped an arm; {} is a race that dropped none, None no race. A
    dropped arm is out, is summarised over its own questions, doesn't limit the others', and is compared on the shared
    ones, with a p-value of at least `racing_alpha`, since it was stopped when it looked worst. If all but one are
    dropped, racing has decided. Racing may be wrong with probability `racing_alpha`; the best set gets what is left of
    5 %.

    Raises: ConfigError for a negative margin or a `racing_alpha` outside [0, 0.05); InputError when rows name an
    unknown arm, repeat a question, or leave no question that all arms have scored, or when `dropped` names an arm that
    did not race or leaves none.
    """
    if margin < 0:
        raise ConfigError(f"margin is {margin}, expected 0 or more (0.02 means two points out of a hundred)")
    if not 0 <= racing_alpha < ALPHA:
        raise ConfigError(f"racing_alpha is {racing_alpha}, expected at least 0 and less than the {ALPHA} of a verdict")
    measured = _measured(task, rows, arms, dropped or {}, clusters)
    alpha = ALPHA if dropped is None else ALPHA - racing_alpha
    summaries = _summaries(measured, arms, prices, 1 - alpha, seed)
    contenders = ranked(s for s in summaries if s.arm in measured.contenders)
    standing = Standing(
        contenders=contenders,
        dropped=ranked(s for s in summaries if s.dropped_after is not None),
        choice=choose(contenders, margin),
        margin=margin,
        scores=measured.scores,
        clusters=measured.clusters,
        confidence=1 - ALPHA,
        seed=seed,
    )
    status, reason, needed = _settle(standing, alpha)
    return Verdict(
        task=task,
        arm=standing.choice.arm,
        status=status,
        reason=reason,
        questions_needed=needed,
        smallest_difference=_smallest_difference(standing),
        arms=summaries,
        comparisons=_comparisons(standing, summaries, racing_alpha),
    )


@dataclass(frozen=True, slots=True)
class _Measured:
    """One task's rows, ready to compare. Arrays have shape (questions,), in the order of the sorted question ids.

    `scores` of the arms that can still win, and of reference arms, are NaN outside the questions that all of the former
    have scored; those of a dropped arm are its own.
    """

    rows: Mapping[str, list[Row]]
    scores: Mapping[str, Array]
    unscored: Mapping[str, int]
    contenders: frozenset[str]
    dropped: Mapping[str, int]
    clusters: Sequence[str] | None


def _measured(
    task: str,
    rows: Sequence[Row],
    arms: Mapping[str, Arm],
    dropped: Mapping[str, int],
    clusters: Mapping[str, str] | None,
) -> _Measured:
    table = _by_arm(task, rows, arms)
    contenders = _contenders(task, table, arms, dropped)
    common = _common_questions(task, {name: table[name] for name in contenders})
    asked = sorted({question for answered in table.values() for question in answered})
    counted = {name: set(answered) if name in dropped else common for name, answered in table.items()}
    scores = {name: _scores(answered, asked, counted[name]) for name, answered in table.items()}
    return _Measured(
        rows={name: [row for q, row in sorted(table[name].items()) if q in counted[name]] for name in table},
        scores={name: values for name, values in scores.items() if not np.isnan(values).all()},
        unscored={
            name: (len(answered) if name in dropped else len(asked))
            - sum(row.score is not None for row in answered.values())
            for name, answered in table.items()
        },
        contenders=frozenset(contenders),
        dropped=dropped,
        clusters=None if clusters is None else [clusters.get(q, f"question {q}") for q in asked],
    )


def _contenders(
    task: str, table: Mapping[str, Answered], arms: Mapping[str, Arm], dropped: Mapping[str, int]
) -> list[str]:
    """The arms that can win and were not dropped."""
    raced = [name for name in table if not arms[name].reference]
    if not raced:
        raise InputError(f"task {task!r} has no rows of an arm that can win; measure at least one such arm")
    strangers = set(dropped) - set(raced)
    if strangers:
        raise InputError(f"task {task!r}: {min(strangers)!r} was dropped, but it has no rows or is a reference arm")
    left = [name for name in raced if name not in dropped]
    if not left:
        raise InputError(f"task {task!r}: all arms were dropped; a race leaves at least one")
    return left


def _by_arm(task: str, rows: Sequence[Row], arms: Mapping[str, Arm]) -> dict[str, dict[str, Row]]:
    """The task's rows by arm and question, arms in the order of `arms`, those without rows left out."""
    table: dict[str, dict[str, Row]] = {name: {} for name in arms}
    for row in rows:
        if row.task != task:
            continue
        if row.arm not in table:
            raise InputError(f"task {task!r} has rows of arm {row.arm!r}; the arms given are {', '.join(arms)}")
        if row.question_id in table[row.arm]:
            raise InputError(f"task {task!r}, arm {row.arm!r}: question {row.question_id!r} has two rows; keep one")
        table[row.arm][row.question_id] = row
    return {name: answered for name, answered in table.items() if answered}


def _common_questions(task: str, contenders: Mapping[str, Answered]) -> set[str]:
    """The questions that all these arms answered with a score."""
    scored = {name: {q for q, row in rows.items() if row.score is not None} for name, rows in contenders.items()}
    common = set.intersection(*scored.values())
    if not common:
        fewest = min(scored, key=lambda name: len(scored[name]))
        raise InputError(
            f"task {task!r} has no question with a score for every arm ({fewest!r} has a score for "
            f"{len(scored[fewest])}); evaluate all arms on the same questions"
        )
    return common


def _scores(answered: Answered, asked: Sequence[str], counted: Set[str]) -> Array:
    found = (answered.get(question) if question in counted else None for question in asked)
    return np.array([math.nan if row is None or row.score is None else row.score for row in found])


def _summaries(
    measured: _Measured, arms: Mapping[str, Arm], prices: Prices, confidence: float, seed: int
) -> tuple[ArmSummary, ...]:
    """One summary for each arm with a score, in the order of `arms`."""
    scores = {name: values for name, values in measured.scores.items() if name in measured.contenders}
    best, _ = best_set(scores, confidence, seed, clusters=measured.clusters)
    probability = probability_best(scores, seed, measured.clusters)
    return tuple(
        ArmSummary(
            arm=name,
            score=mean_interval(values, 1 - ALPHA, seed, clusters=measured.clusters),
            n=int((~np.isnan(values)).sum()),
            unscored=measured.unscored[name],
            **_expenses(measured.rows[name], prices),
            reference=arms[name].reference,
            in_best_set=name in best,
            probability_best=probability.get(name, 0.0),
            dropped_after=measured.dropped.get(name),
        )
        for name, values in measured.scores.items()
    )


def _expenses(rows: Sequence[Row], prices: Prices) -> dict[str, float]:
    """What one question took, on average, and in seconds at the median and the 95th percentile."""
    p50, p95 = np.percentile([row.seconds for row in rows], (50, 95))
    return {
        "cost": math.fsum(map(prices.cost, rows)) / len(rows),
        "prompt_tokens": math.fsum(row.prompt_tokens for row in rows) / len(rows),
        "output_tokens": math.fsum(row.output_tokens for row in rows) / len(rows),
        "seconds_p50": float(p50),
        "seconds_p95": float(p95),
    }


def _settle(standing: Standing, alpha: float) -> tuple[Literal["decided", "undecided"], str, int | None]:
    """Status, reason, questions needed."""
    choice, arms = standing.choice, len(standing.contenders)
    if arms == 1 and not standing.dropped:
        return "undecided", f"Only one arm, `{choice.arm}`, was measured, so there is nothing to compare it with.", None
    too_few = _too_few(standing)
    if too_few:
        return "undecided", *too_few
    if standing.pending:
        rival = min(standing.pending, key=lambda s: s.cost)
        gap = standing.leader.score.mean - rival.score.mean
        needed = questions_needed(gap, standing.spread(standing.leader, rival), alpha / math.comb(arms, 2), POWER)
        needed = max(needed, choice.n + 1)  # with very few questions the formula is bolder than the best set
        return "undecided", undecided(standing, rival, needed), needed
    return "decided", decided(standing), None


def _too_few(standing: Standing) -> tuple[str, int] | None:
    """Why the questions are too few to tell any arms apart, and how many it takes; None when they are not."""
    n = standing.choice.n
    if n < MINIMUM_QUESTIONS:
        reason = (
            f"Only {n} question{'s have' if n > 1 else ' has'} a score for every arm; "
            f"it takes at least {MINIMUM_QUESTIONS} to tell arms apart."
        )
        return reason, MINIMUM_QUESTIONS
    sources = standing.sources
    if sources < MINIMUM_QUESTIONS:
        reason = (
            f"The {n} questions that have a score for every arm come from only {sources} "
            f"source{'s' if sources > 1 else ''}; it takes at least {MINIMUM_QUESTIONS} sources to tell arms apart."
        )
        return reason, math.ceil(n * MINIMUM_QUESTIONS / sources)
    return None


def _smallest_difference(standing: Standing) -> float:
    """What these questions can show between the choice and the best other arm; 1.0 when they can show nothing."""
    if not standing.others:
        return 1.0
    other = standing.others[0]
    spread = standing.spread(standing.choice, other)
    if spread <= _ROUNDING:  # they never differed, or always alike: what unseen questions could still change
        interval = standing.difference(standing.choice, other)
        return min(1.0, max(interval.high - interval.mean, interval.mean - interval.low))
    return min(1.0, smallest_detectable_difference(spread, standing.shared(standing.choice, other), ALPHA, POWER))


def _comparisons(standing: Standing, summaries: Sequence[ArmSummary], racing_alpha: float) -> tuple[Comparison, ...]:
    """The choice against every other arm. Reference arms are a family of their own; see `decide` for the sizes."""
    choice, raced = standing.choice, standing.others
    references = [s for s in summaries if s.reference]
    p_values = [
        *holm([standing.p_value(s) for s in raced], math.comb(len(raced) + 1, 2)),
        *holm([standing.p_value(s) for s in references], len(references) * (len(raced) + 1)),
    ]
    adjusted = {s.arm: p for s, p in zip((*raced, *references), p_values, strict=True)}
    return tuple(
        Comparison(
            choice.arm,
            s.arm,
            standing.difference(choice, s),
            adjusted[s.arm] if s.dropped_after is None else max(adjusted[s.arm], racing_alpha),
            *win_tie_loss(standing.scores[choice.arm], standing.scores[s.arm]),
        )
        for s in summaries
        if s is not choice
    )
