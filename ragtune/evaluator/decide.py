"""Rows -> the verdict of one task: the cheapest arm within the margin of the best, among those not shown worse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from ragtune.errors import ConfigError, InputError
from ragtune.evaluator.compare import (
    MINIMUM_QUESTIONS,
    Array,
    best_set,
    holm,
    mean_interval,
    paired_difference,
    permutation_p_value,
    questions_needed,
    smallest_detectable_difference,
    win_tie_loss,
)
from ragtune.types import Arm, ArmSummary, Comparison, Interval, Row, Verdict

ALPHA = 0.05
POWER = 0.8
MARGIN = 0.02
_ROUNDING = 1e-9  # means and costs are sums of floats


@dataclass(frozen=True, slots=True)
class Prices:
    """What an answer costs. `training` holds, by arm, the share of its adapter's training that one question bears.

    By default an output token costs as much as four prompt tokens and time costs nothing, so that a verdict doesn't
    change with how busy the machine was.
    """

    per_1k_prompt_tokens: float = 0.05
    per_1k_output_tokens: float = 0.20
    per_1k_seconds: float = 0.0
    currency: str = "units"
    training: Mapping[str, float] = field(default_factory=dict)

    def cost(self, row: Row) -> float:
        """The price of one answer."""
        thousandfold = (
            row.prompt_tokens * self.per_1k_prompt_tokens
            + row.output_tokens * self.per_1k_output_tokens
            + row.seconds * self.per_1k_seconds
        )
        return thousandfold / 1000 + self.training.get(row.arm, 0.0)


_DEFAULT_PRICES = Prices()


Answered = Mapping[str, Row]
"""The rows of one arm by question id."""


@dataclass(frozen=True, slots=True)
class _Ranking:
    """The choice and what it follows from. `racers` are the arms that can win, best first."""

    racers: Sequence[ArmSummary]
    choice: ArmSummary
    margin: float
    scores: Mapping[str, Array]
    seed: int

    @property
    def leader(self) -> ArmSummary:
        return self.racers[0]

    def cheaper(self, in_best_set: bool) -> list[ArmSummary]:
        """The arms that cost less than the choice, best first."""
        return [s for s in self.racers if _less(s.cost, self.choice.cost) and s.in_best_set == in_best_set]

    def difference(self, a: ArmSummary, b: ArmSummary) -> Interval:
        return paired_difference(self.scores[a.arm], self.scores[b.arm], 1 - ALPHA, self.seed)

    def spread(self, a: ArmSummary, b: ArmSummary) -> float:
        """Standard deviation of the paired differences."""
        return float(np.std(self.scores[a.arm] - self.scores[b.arm], ddof=1)) if a.n > 1 else 0.0


def decide(
    task: str,
    rows: Sequence[Row],
    arms: Mapping[str, Arm],
    margin: float = MARGIN,
    prices: Prices = _DEFAULT_PRICES,
    seed: int = 0,
) -> Verdict:
    """The verdict over the arms that have rows of this task; each mean is over the questions scored for all of them.

    Let C be the arms that are not shown worse than the best (`compare.best_set`, 95 %) and the leader the arm with the
    highest mean. The choice is the cheapest arm of C within `margin` of the leader. The verdict is undecided when only
    one arm or fewer than 10 questions were measured, or when an arm cheaper than the choice is in C although its mean
    lies more than `margin` below the leader's: more questions would show whether it suffices. `questions_needed` is
    then the total for that arm against the leader (80 % power, Bonferroni over the arms). Reference arms never win and
    don't limit the questions; one without a score on them is left out. `ArmSummary.cost` is the mean price of one
    question. The order of `rows` doesn't matter.

    Raises: ConfigError for a negative margin; InputError when rows name an unknown arm, repeat a question, or leave no
    question that all arms have scored.
    """
    if margin < 0:
        raise ConfigError(f"margin is {margin}, expected 0 or more (0.02 means two points out of a hundred)")
    table = _by_arm(task, rows, arms)
    asked = len({question for answered in table.values() for question in answered})
    racing = {name: answered for name, answered in table.items() if not arms[name].reference}
    questions = _common_questions(task, racing)
    scores = {name: _scores(answered, questions) for name, answered in table.items()}
    scores = {name: values for name, values in scores.items() if not np.isnan(values).all()}
    best, _ = best_set({name: scores[name] for name in racing}, 1 - ALPHA, seed)
    summaries = tuple(
        replace(
            _summary(arms[name], [table[name][q] for q in questions if q in table[name]], prices, scores[name], seed),
            unscored=asked - sum(row.score is not None for row in table[name].values()),
            in_best_set=name in best,
        )
        for name in scores
    )
    ranking = _rank(summaries, margin, scores, seed)
    status, reason, needed = _settle(ranking)
    return Verdict(
        task=task,
        arm=ranking.choice.arm,
        status=status,
        reason=reason,
        questions_needed=needed,
        smallest_difference=_smallest_difference(ranking),
        arms=summaries,
        comparisons=_comparisons(ranking.choice.arm, scores, seed),
    )


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


def _common_questions(task: str, racing: Mapping[str, Answered]) -> list[str]:
    """The questions that all arms answered with a score, sorted."""
    if not racing:
        raise InputError(f"task {task!r} has no rows of an arm that can win; measure at least one such arm")
    scored = {name: {q for q, row in rows.items() if row.score is not None} for name, rows in racing.items()}
    common = set.intersection(*scored.values())
    if not common:
        fewest = min(scored, key=lambda name: len(scored[name]))
        raise InputError(
            f"task {task!r} has no question with a score for every arm ({fewest!r} has a score for "
            f"{len(scored[fewest])}); evaluate all arms on the same questions"
        )
    return sorted(common)


def _scores(answered: Answered, questions: Sequence[str]) -> Array:
    found = (answered.get(question) for question in questions)
    return np.array([math.nan if row is None or row.score is None else row.score for row in found])


def _summary(arm: Arm, rows: Sequence[Row], prices: Prices, scores: Array, seed: int) -> ArmSummary:
    """One arm on the common questions; the caller adds how many are unscored and whether it is in the best set."""
    p50, p95 = np.percentile([row.seconds for row in rows], (50, 95))
    return ArmSummary(
        arm=arm.name,
        score=mean_interval(scores, 1 - ALPHA, seed),
        n=int((~np.isnan(scores)).sum()),
        unscored=0,
        cost=math.fsum(map(prices.cost, rows)) / len(rows),
        prompt_tokens=math.fsum(row.prompt_tokens for row in rows) / len(rows),
        output_tokens=math.fsum(row.output_tokens for row in rows) / len(rows),
        seconds_p50=float(p50),
        seconds_p95=float(p95),
        reference=arm.reference,
        in_best_set=False,
    )


def _less(a: float, b: float) -> bool:
    """Less by more than the rounding of a sum."""
    return a < b and not math.isclose(a, b, rel_tol=_ROUNDING)


def _rank(summaries: Sequence[ArmSummary], margin: float, scores: Mapping[str, Array], seed: int) -> _Ranking:
    def order(s: ArmSummary) -> tuple[float, float, str]:
        return -round(s.score.mean, 9), s.cost, s.arm

    racers = sorted((s for s in summaries if not s.reference), key=order)
    near = [s for s in racers if s.in_best_set and s.score.mean >= racers[0].score.mean - margin - _ROUNDING]
    lowest = min(s.cost for s in near)
    # `near` is sorted by mean, so of those that cost the same the first is the best
    choice = next(s for s in near if not _less(lowest, s.cost))
    return _Ranking(racers, choice, margin, scores, seed)


def _settle(ranking: _Ranking) -> tuple[Literal["decided", "undecided"], str, int | None]:
    """Status, reason, questions needed."""
    choice, leader = ranking.choice, ranking.leader
    if len(ranking.racers) == 1:
        return "undecided", f"Only one arm, `{choice.arm}`, was measured, so there is nothing to compare it with.", None
    if choice.n < MINIMUM_QUESTIONS:
        reason = (
            f"Only {choice.n} question{'s have' if choice.n > 1 else ' has'} a score for every arm; "
            f"it takes at least {MINIMUM_QUESTIONS} to tell arms apart."
        )
        return "undecided", reason, MINIMUM_QUESTIONS
    pending = ranking.cheaper(in_best_set=True)
    if pending:
        rival = min(pending, key=lambda s: s.cost)
        gap = leader.score.mean - rival.score.mean
        needed = questions_needed(gap, ranking.spread(leader, rival), ALPHA / (len(ranking.racers) - 1), POWER)
        needed = max(needed, choice.n + 1)  # with very few questions the formula is bolder than the best set
        return "undecided", _reason_undecided(ranking, rival, needed), needed
    return "decided", _reason_decided(ranking), None


def _smallest_difference(ranking: _Ranking) -> float:
    """What these questions can show between the choice and the best other arm; 1.0 when they can show nothing."""
    others = [s for s in ranking.racers if s.arm != ranking.choice.arm]
    if not others:
        return 1.0
    spread = ranking.spread(ranking.choice, others[0])
    if spread <= _ROUNDING:  # they never differed, or always alike: what unseen questions could still change
        interval = ranking.difference(ranking.choice, others[0])
        return min(1.0, max(interval.high - interval.mean, interval.mean - interval.low))
    return min(1.0, smallest_detectable_difference(spread, ranking.choice.n, ALPHA, POWER))


def _comparisons(choice: str, scores: Mapping[str, Array], seed: int) -> tuple[Comparison, ...]:
    """The choice against every other arm, reference arms included."""
    others = [name for name in scores if name != choice]
    p_values = holm([permutation_p_value(scores[choice], scores[name], seed) for name in others])
    return tuple(
        Comparison(
            choice,
            name,
            paired_difference(scores[choice], scores[name], 1 - ALPHA, seed),
            p_value,
            *win_tie_loss(scores[choice], scores[name]),
        )
        for name, p_value in zip(others, p_values, strict=True)
    )


def _reason_decided(ranking: _Ranking) -> str:
    choice, leader = ranking.choice, ranking.leader
    if choice is leader:
        sentences = [f"`{choice.arm}` scores {_text(choice.score)}, and no arm scores higher."]
    else:
        sentences = [
            f"`{choice.arm}` scores {_text(choice.score)}, within {ranking.margin:g} of the highest, "
            f"`{leader.arm}` with {leader.score.mean:.2f}, which costs {_ratio(leader, choice)}."
        ]
    sentences.append(_about_cheaper(ranking))
    dearer = [s for s in ranking.racers if s.in_best_set and _less(choice.cost, s.cost)]
    if choice is leader and dearer:
        sentences.append(f"`{dearer[0].arm}` is not shown better and costs {_ratio(dearer[0], choice)}.")
    return " ".join(sentences)


def _about_cheaper(ranking: _Ranking) -> str:
    cheaper = ranking.cheaper(in_best_set=False)
    if not cheaper:
        return "No other arm is cheaper."
    which = "which would be cheaper" if len(cheaper) == 1 else f"the best of the {len(cheaper)} cheaper arms"
    than = "" if ranking.choice is ranking.leader else f" than `{ranking.leader.arm}`"
    return f"`{cheaper[0].arm}`, {which}, is worse{than} by {_text(ranking.difference(ranking.leader, cheaper[0]))}."


def _reason_undecided(ranking: _Ranking, rival: ArmSummary, needed: int) -> str:
    choice, leader = ranking.choice, ranking.leader
    than = "" if choice is leader else f" than `{leader.arm}`"
    return (
        f"`{choice.arm}` scores {_text(choice.score)}. `{rival.arm}` would be cheaper and scores lower{than} by "
        f"{_text(ranking.difference(leader, rival))}, which with {len(ranking.racers)} arms and {choice.n} questions "
        f"may still be chance; about {_two_digits(needed)} questions would tell."
    )


def _text(interval: Interval) -> str:
    """`0.91 (0.86 to 0.95)`; a third decimal only where the interval is narrow enough to support it."""
    digits = 3 if interval.high - interval.low < 0.02 else 2
    mean, low, high = (f"{round(v, digits) + 0.0:.{digits}f}" for v in (interval.mean, interval.low, interval.high))
    return f"{mean} ({low} to {high})"


def _ratio(dear: ArmSummary, cheap: ArmSummary) -> str:
    """How much more `dear` costs than `cheap`, in words that follow `costs`."""
    if cheap.cost <= 0:
        return "more"
    ratio = dear.cost / cheap.cost
    if ratio < 1.95:
        return f"{100 * (ratio - 1):.0f} % more" if ratio >= 1.005 else "about as much"
    return f"{ratio:.{0 if ratio >= 9.5 else 1}f}".removesuffix(".0") + " times as much"


def _two_digits(n: int) -> int:
    """Rounded up to two significant digits."""
    unit: int = 10 ** max(0, len(str(n)) - 2)
    return math.ceil(n / unit) * unit
