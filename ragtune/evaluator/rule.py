"""The rule of a verdict: the cheapest arm within the margin of the best, and whether more questions might change it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ragtune.evaluator.compare import Array, paired_difference, paired_spread, permutation_p_value
from ragtune.types import ArmSummary, Interval

_ROUNDING = 1e-9  # means and costs are sums of floats


def ranked(summaries: Iterable[ArmSummary]) -> list[ArmSummary]:
    """Best first; of equal means the cheaper first, then by name."""
    return sorted(summaries, key=lambda s: (-round(s.score.mean, 9), s.cost, s.arm))


def choose(contenders: Sequence[ArmSummary], margin: float) -> ArmSummary:
    """The cheapest of the arms whose mean is within `margin` of the leader's; of equal costs the better one.

    `contenders` are the arms that can win, ranked, so that the first is the leader. That an arm within the margin is
    shown worse doesn't matter: with many questions any difference is shown, and the margin says which ones count.
    """
    near = [s for s in contenders if s.score.mean >= contenders[0].score.mean - margin - _ROUNDING]
    lowest = min(s.cost for s in near)
    return next(s for s in near if not costs_less(lowest, s.cost))


def pending(contenders: Sequence[ArmSummary], choice: ArmSummary) -> list[ArmSummary]:
    """The arms that more questions might yet choose: cheaper than the choice, and not shown worse than the best.

    They lie more than the margin below the leader, or one of them would be the choice. None: the verdict is decided.
    """
    return [s for s in contenders if s.in_best_set and costs_less(s.cost, choice.cost)]


def costs_less(a: float, b: float) -> bool:
    """Less by more than the rounding of a sum."""
    return a < b and not math.isclose(a, b, rel_tol=_ROUNDING)


@dataclass(frozen=True, slots=True)
class Standing:
    """What a verdict follows from. `contenders` can win, `dropped` lost the race; both best first.

    `scores` has shape (questions,) for each arm, NaN where it doesn't count; `clusters` labels the questions.
    """

    contenders: Sequence[ArmSummary]
    dropped: Sequence[ArmSummary]
    choice: ArmSummary
    margin: float
    scores: Mapping[str, Array]
    clusters: Sequence[str] | None
    confidence: float
    seed: int

    @property
    def leader(self) -> ArmSummary:
        """The arm with the highest mean."""
        return self.contenders[0]

    @property
    def others(self) -> list[ArmSummary]:
        """All arms that began and are not the choice, those that can win first, best first."""
        return [s for s in (*self.contenders, *self.dropped) if s is not self.choice]

    @property
    def pending(self) -> list[ArmSummary]:
        """The cheaper arms that more questions might yet choose, best first."""
        return pending(self.contenders, self.choice)

    @property
    def sources(self) -> int:
        """How many clusters the choice's questions come from; without clusters, how many questions there are."""
        scored = ~np.isnan(self.scores[self.choice.arm])
        return self.choice.n if self.clusters is None else len(set(itertools.compress(self.clusters, scored)))

    def shared(self, a: ArmSummary, b: ArmSummary) -> int:
        """How many questions have a score that counts for both arms."""
        return int((~np.isnan(self.scores[a.arm] - self.scores[b.arm])).sum())

    def difference(self, a: ArmSummary, b: ArmSummary) -> Interval:
        """Arm a minus arm b on the questions that they share."""
        return paired_difference(self.scores[a.arm], self.scores[b.arm], self.confidence, self.seed, self.clusters)

    def spread(self, a: ArmSummary, b: ArmSummary) -> float:
        """Standard deviation of the paired differences, as `compare.paired_spread` has it."""
        return paired_spread(self.scores[a.arm], self.scores[b.arm], self.clusters)

    def p_value(self, other: ArmSummary) -> float:
        """Of the choice against another arm, not corrected."""
        return permutation_p_value(
            self.scores[self.choice.arm], self.scores[other.arm], self.seed, clusters=self.clusters
        )
