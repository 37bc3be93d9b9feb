"""Paired statistics: how good each arm is, and which differences are more than chance.

`scores` maps an arm to its scores, shape (n,), on the same n questions in the same order; NaN means unscored and is
left out, pair by pair where two arms are compared. `clusters` gives each question the label of the group that it rises
and falls with, such as its source document; whole groups are resampled then, and their number takes the place of n.
None means that the questions are independent. Equal seeds give equal numbers.

With fewer than 10 questions, or fewer than 10 clusters, resampling says too little. One rule holds for both: intervals
are Student's t with (number - 1) degrees of freedom, cut off at what scores can be, and no arm is called worse.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri, stdtrit

from ragtune.errors import InputError
from ragtune.evaluator.resample import Array as Array  # for those who call these functions
from ragtune.evaluator.resample import (
    Sample,
    bayesian_errors,
    bootstrap_errors,
    cluster_sums,
    labels_of,
    sample_of,
    standard_errors,
)
from ragtune.types import Interval

RESAMPLES = 10_000
MINIMUM_QUESTIONS = 10
"""With fewer questions, or clusters, no arm is ever called worse than another."""
_EXACT_UP_TO = 12
_CELLS = 4_000_000  # of one block of signs
_ROUNDING = 1e-12


def mean_interval(
    x: Array,
    confidence: float = 0.95,
    seed: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
    resamples: int = RESAMPLES,
    clusters: Sequence[str] | None = None,
) -> Interval:
    """Mean of `x`, shape (n,), NaN left out, with its BCa bootstrap interval.

    Source: Efron and Tibshirani 1993, chapter 14.3; the nominal level is widened for small n as in Hesterberg 2015,
    "What Teachers Should Know About the Bootstrap" (expanded percentile interval). Scores (or, with clusters, clusters)
    that all have the same mean tell a bootstrap nothing, so there the ends are what unseen ones, scoring anywhere in
    `bounds`, could do (Clopper-Pearson).

    Raises: InputError when nothing is scored, or the labels are not one for each question.
    """
    scored = ~np.isnan(x)
    if not scored.any():
        raise InputError("no question is scored, so there is no mean; score at least one question")
    sample = sample_of(x[scored, None], labels_of(clusters, scored))
    mean = float(sample.means[0])
    if (np.abs(sample.deviations[:, 0]) <= _ROUNDING * sample.counts).all():
        return _constant_interval(mean, sample.clusters, confidence, bounds)
    if sample.clusters < MINIMUM_QUESTIONS:
        half = float(stdtrit(sample.clusters - 1, (1 + confidence) / 2) * standard_errors(sample)[0])
        return Interval(mean, max(mean - half, bounds[0]), min(mean + half, bounds[1]))
    errors = bootstrap_errors(sample, resamples, seed)[:, 0]
    low, high = mean + np.quantile(errors, _bca_levels(errors, sample, confidence))
    return Interval(mean, float(low), float(high))


def _bca_levels(errors: Array, sample: Sample, confidence: float) -> Array:
    """The levels at which the ends of a BCa interval lie in the bootstrap distribution of one mean."""
    below = ((errors < -_ROUNDING).mean() + (errors <= _ROUNDING).mean()) / 2
    bias = ndtri(np.clip(below, 0.5 / len(errors), 1 - 0.5 / len(errors)))
    deviation = sample.deviations[:, 0]
    acceleration = (deviation**3).sum() / (6 * (deviation**2).sum() ** 1.5)
    shifted = bias + _student(ndtri((1 + confidence) / 2), sample.clusters) * np.array([-1.0, 1.0])
    levels: Array = ndtr(bias + shifted / np.maximum(1 - acceleration * shifted, _ROUNDING))
    return levels


def _constant_interval(value: float, n: int, confidence: float, bounds: tuple[float, float]) -> Interval:
    """The interval when all n questions, or clusters, gave the same value.

    By Clopper and Pearson 1934 at most a share p = 1 - (alpha/2)^(1/n) of all questions gives another value (the
    two-sided form of the "rule of three", Hanley and Lippman-Hand 1983); the ends are where that share lies on a bound.
    """
    other = 1 - ((1 - confidence) / 2) ** (1 / n)
    low, high = bounds
    return Interval(value, value - other * (value - low), value + other * (high - value))


def _student(z: float, n: int) -> float:
    """A normal quantile -> the one to use on a bootstrap distribution of n values, which is too narrow (Hesterberg)."""
    return float(-stdtrit(n - 1, ndtr(-z)) * math.sqrt(n / (n - 1)))


def paired_difference(
    a: Array, b: Array, confidence: float = 0.95, seed: int = 0, clusters: Sequence[str] | None = None
) -> Interval:
    """Mean of a - b over the questions that both scored, with its BCa interval (for scores in [0, 1]).

    Raises: InputError when no question is scored by both.
    """
    return mean_interval(a - b, confidence, seed, bounds=(-1.0, 1.0), clusters=clusters)


def paired_spread(a: Array, b: Array, clusters: Sequence[str] | None = None) -> float:
    """The standard deviation of a - b, over the questions that both scored, that a sample size is computed from.

    With clusters it is the one for which sd / sqrt(n) is the standard error that the clusters allow: the plain one
    times the root of the design effect (Kish 1965, Survey Sampling, section 8.2). 0.0 where there is but one cluster.
    """
    scored = ~np.isnan(a - b)
    sample = sample_of((a - b)[scored, None], labels_of(clusters, scored))
    return float(standard_errors(sample)[0] * math.sqrt(scored.sum())) if sample.clusters > 1 else 0.0


def win_tie_loss(a: Array, b: Array) -> tuple[int, int, int]:
    """On how many questions `a` scored higher, the same, lower; their sum is the number that both scored."""
    difference = a - b
    return (
        int((difference > _ROUNDING).sum()),
        int((np.abs(difference) <= _ROUNDING).sum()),
        int((difference < -_ROUNDING).sum()),
    )


def permutation_p_value(
    a: Array, b: Array, seed: int = 0, resamples: int = RESAMPLES, clusters: Sequence[str] | None = None
) -> float:
    """Two-sided sign-flip p-value of the paired difference; 1.0 when `a` and `b` never differ.

    With clusters all differences of a cluster flip together. All sign patterns are counted when at most 12 questions
    (clusters) differ; with more the p-value is (count + 1) / (resamples + 1), never 0. Sources: Good 2005, Permutation,
    Parametric and Bootstrap Tests of Hypotheses; Phipson and Smyth 2010 for the + 1.

    Raises: InputError when the labels are not one for each question.
    """
    scored = ~np.isnan(a - b)
    difference = cluster_sums((a - b)[scored, None], labels_of(clusters, scored))[0][:, 0]
    difference = difference[np.abs(difference) > _ROUNDING]
    if len(difference) <= _EXACT_UP_TO:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(difference))))
        return float(_as_extreme(signs @ difference, difference).mean())
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // len(difference))
    count = 0
    for start in range(0, resamples, step):
        flips = rng.integers(0, 2, size=(min(step, resamples - start), len(difference)), dtype=np.int8)
        count += int(_as_extreme(2 * (flips @ difference) - difference.sum(), difference).sum())
    return (count + 1) / (resamples + 1)


def _as_extreme(sums: Array, difference: Array) -> npt.NDArray[np.bool_]:
    threshold = abs(difference.sum()) - 1e-9 * np.abs(difference).sum()
    return np.asarray(np.abs(sums) >= threshold)


def holm(p_values: Sequence[float], family: int | None = None) -> list[float]:
    """p-values adjusted so that all those below alpha are right together with probability 1 - alpha (Holm 1979).

    `family` is the number of tests that could have been made, when those at hand were picked after looking: each is
    then adjusted as if the tests that were not made had larger p-values, which is never too bold.

    Raises: InputError when the family is smaller than the number of p-values.
    """
    family = len(p_values) if family is None else family
    if family < len(p_values):
        raise InputError(f"a family of {family} tests can't hold {len(p_values)} p-values; count every test")
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (family - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def probability_best(
    scores: Mapping[str, Array], seed: int = 0, clusters: Sequence[str] | None = None, resamples: int = RESAMPLES
) -> dict[str, float]:
    """How probable it is that each arm is the best one, by the Bayesian bootstrap; arms that tie share the draw.

    Each draw weighs the questions (clusters) at random; the probability is the share of draws that an arm wins. It
    knows no other questions than those asked: an arm that was right on all of them wins every draw. Only questions that
    all arms scored are used. Source: Rubin 1981, "The Bayesian Bootstrap".

    Raises: InputError when no question is scored by all arms.
    """
    sample = _common(scores, clusters)
    means = sample.means + bayesian_errors(sample, resamples, seed)
    wins = means >= means.max(axis=1, keepdims=True) - 1e-9
    shares = (wins / wins.sum(axis=1, keepdims=True)).mean(axis=0)
    return {name: float(share) for name, share in zip(scores, shares, strict=True)}


def _common(scores: Mapping[str, Array], clusters: Sequence[str] | None) -> Sample:
    """The questions that all arms scored, a column for each arm."""
    x = np.column_stack(list(scores.values()))
    scored = np.asarray(~np.isnan(x).any(axis=1))
    if not scored.any():
        raise InputError("no question is scored for every arm; score the same questions with all arms")
    return sample_of(x[scored], labels_of(clusters, scored))


def best_set(
    scores: Mapping[str, Array],
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
    clusters: Sequence[str] | None = None,
) -> tuple[set[str], dict[str, Interval]]:
    """The arms not shown worse than another, and for each arm the interval of (arm - best other arm).

    An arm is out when some other arm is shown better. With at least the stated probability every such pair is right,
    so that the set holds the best arm, and all arms that tie with it: all pairs of arms are tested together, two-sided,
    by the largest of their paired t values, whose distribution comes from resampling questions for all arms at once
    (Westfall and Young 1993; Hothorn, Bretz and Westfall 2008). Pairs that are shown to differ leave the family and the
    rest is tested again, until nothing more is shown (step-down: Romano and Wolf 2005, JASA 100, algorithm 1). All
    pairs and not only those with the best, because which arm is the best is seen in the same scores.

    The intervals are those of the first step and hold at once with the stated probability (Hsu 1996, Multiple
    Comparisons, section 4.2: from all pairs to the best other); the set can be smaller than they say, never larger. Two
    arms that never differ tie; a constant difference counts as shown. With fewer than 10 questions or clusters nobody
    is out and the intervals are [-1, 1]. Only questions that all arms scored are used.

    Raises: InputError when no question is scored by all arms.
    """
    names = list(scores)
    sample = _common(scores, clusters)
    if len(names) == 1:
        return set(names), {}
    first, second = np.triu_indices(len(names), k=1)
    gaps = sample.means[first] - sample.means[second]
    if sample.clusters < MINIMUM_QUESTIONS:
        reach, shown = np.full(len(gaps), math.inf), np.zeros(len(gaps), dtype=bool)
    else:
        reach, shown = _all_pairs(sample, confidence, seed, resamples)
    worse = {names[j if gap > 0 else i] for i, j, gap in zip(first[shown], second[shown], gaps[shown], strict=True)}
    return set(names) - worse, _against_best_other(names, sample.means, reach)


def _all_pairs(sample: Sample, confidence: float, seed: int, resamples: int) -> tuple[Array, npt.NDArray[np.bool_]]:
    """For each pair of columns i < j: half the simultaneous interval of i - j, and whether they are shown to differ."""
    first, second = np.triu_indices(len(sample.means), k=1)
    gaps = np.abs(sample.means[first] - sample.means[second])
    deviations = sample.deviations[:, first] - sample.deviations[:, second]
    errors = standard_errors(Sample(gaps, deviations, sample.counts))
    varies = errors > _ROUNDING
    boot = bootstrap_errors(sample, resamples, seed)
    t = np.abs(boot[:, first] - boot[:, second]) / np.where(varies, errors, math.inf)

    def half_widths(pairs: npt.NDArray[np.bool_]) -> Array:
        largest = np.max(t, axis=1, where=pairs, initial=0.0)
        return _student(float(np.quantile(largest, confidence)), sample.clusters) * errors

    shown = ~varies & (gaps > _ROUNDING)
    reach = half_widths(varies)
    more = varies & (gaps > reach)
    while more.any():
        shown |= more
        rest = varies & ~shown
        more = rest & (gaps > half_widths(rest))
    return reach, shown


def _against_best_other(names: Sequence[str], means: Array, reach: Array) -> dict[str, Interval]:
    """Intervals of (arm - best other arm) from the half-widths of all pairs (in the order of np.triu_indices)."""
    halves = np.zeros((len(names), len(names)))
    halves[np.triu_indices(len(names), k=1)] = reach
    halves += halves.T
    intervals = {}
    for i, name in enumerate(names):
        gaps, half = np.delete(means[i] - means, i), np.delete(halves[i], i)
        low, high = max((gaps - half).min(), -1.0), min((gaps + half).min(), 1.0)
        intervals[name] = Interval(float(gaps.min()), float(low), float(high))
    return intervals


def smallest_detectable_difference(sd: float, n: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """The true mean difference that n paired questions show with the stated power (two-sided z-test).

    (z[1 - alpha/2] + z[power]) * sd / sqrt(n), `sd` being that of the paired differences. Source: Chow, Shao and Wang
    2008, Sample Size Calculations in Clinical Research, section 3.1.
    """
    return float((ndtri(1 - alpha / 2) + ndtri(power)) * sd / math.sqrt(n))


def questions_needed(difference: float, sd: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """How many paired questions, in all, show a true mean `difference`; the same formula solved for n, rounded up.

    Raises: InputError when the difference is 0, which no number of questions can show.
    """
    if difference == 0:
        raise InputError("no number of questions shows a difference of 0; give the smallest difference that matters")
    return math.ceil(smallest_detectable_difference(sd, 1, alpha, power) ** 2 / difference**2)
