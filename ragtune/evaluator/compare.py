"""Paired statistics: how good each arm is, and which differences are more than chance.

`scores` maps an arm to its scores, shape (n,), on the same n questions in the same order; NaN means unscored and is
left out, pair by pair where two arms are compared. The questions are resampled as if they were independent. Equal
seeds give equal numbers.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri, stdtrit

from ragtune.errors import InputError
from ragtune.types import Interval

Array = npt.NDArray[np.float64]

RESAMPLES = 10_000
MINIMUM_QUESTIONS = 10
"""With fewer questions no arm is ever called worse than another."""
_EXACT_UP_TO = 12
_CELLS = 4_000_000  # of one block of resampling weights: 32 MB
_ROUNDING = 1e-12


def mean_interval(
    x: Array,
    confidence: float = 0.95,
    seed: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
    resamples: int = RESAMPLES,
) -> Interval:
    """Mean of `x`, shape (n,), NaN left out, with its BCa bootstrap interval.

    Source: Efron and Tibshirani 1993, chapter 14.3; the nominal level is widened for small n as in Hesterberg 2015,
    "What Teachers Should Know About the Bootstrap" (expanded percentile interval). Constant scores tell a bootstrap
    nothing, so there the ends are what unseen questions, scoring anywhere in `bounds`, could do (Clopper-Pearson).

    Raises: InputError when nothing is scored.
    """
    x = x[~np.isnan(x)]
    if not len(x):
        raise InputError("no question is scored, so there is no mean; score at least one question")
    mean = float(x.mean())
    if np.ptp(x) <= _ROUNDING:
        return _constant_interval(mean, len(x), confidence, bounds)
    boot = np.concatenate([weights @ x for weights in _resamples(len(x), resamples, seed)]) / len(x)
    below = ((boot < mean - _ROUNDING).mean() + (boot <= mean + _ROUNDING).mean()) / 2
    bias = ndtri(np.clip(below, 0.5 / resamples, 1 - 0.5 / resamples))
    deviation = x - mean
    acceleration = (deviation**3).sum() / (6 * (deviation**2).sum() ** 1.5)
    shifted = bias + _student(ndtri((1 + confidence) / 2), len(x)) * np.array([-1.0, 1.0])
    ends = bias + shifted / np.maximum(1 - acceleration * shifted, _ROUNDING)
    low, high = np.quantile(boot, ndtr(ends))
    return Interval(mean, float(low), float(high))


def _constant_interval(value: float, n: int, confidence: float, bounds: tuple[float, float]) -> Interval:
    """The interval when all n questions gave the same value.

    By Clopper and Pearson 1934 at most a share p = 1 - (alpha/2)^(1/n) of all questions gives another value (the
    two-sided form of the "rule of three", Hanley and Lippman-Hand 1983); the ends are where that share lies on a bound.
    """
    other = 1 - ((1 - confidence) / 2) ** (1 / n)
    low, high = bounds
    return Interval(value, value - other * (value - low), value + other * (high - value))


def _student(z: float, n: int) -> float:
    """A normal quantile -> the one to use on a bootstrap distribution of n values, which is too narrow (Hesterberg)."""
    return float(-stdtrit(n - 1, ndtr(-z)) * math.sqrt(n / (n - 1)))


def _resamples(n: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each of n questions is drawn, in blocks (rows, n) that together have `resamples` rows."""
    step = max(1, _CELLS // n)
    for block, start in enumerate(range(0, resamples, step)):
        yield _weights(n, min(step, resamples - start), seed, block)


@functools.lru_cache(maxsize=1)  # a verdict asks some twenty times for the same resamples
def _weights(n: int, rows: int, seed: int, block: int) -> Array:
    rng = np.random.default_rng([seed, block])
    picks = rng.integers(0, n, size=(rows, n), dtype=np.int32) + n * np.arange(rows, dtype=np.int32)[:, None]
    weights = np.bincount(picks.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
    weights.flags.writeable = False
    return weights


def paired_difference(a: Array, b: Array, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Mean of a - b over the questions that both scored, with its BCa interval (for scores in [0, 1]).

    Raises: InputError when no question is scored by both.
    """
    return mean_interval(a - b, confidence, seed, bounds=(-1.0, 1.0))


def win_tie_loss(a: Array, b: Array) -> tuple[int, int, int]:
    """On how many questions `a` scored higher, the same, lower; their sum is the number that both scored."""
    difference = _differences(a, b)
    return (
        int((difference > _ROUNDING).sum()),
        int((np.abs(difference) <= _ROUNDING).sum()),
        int((difference < -_ROUNDING).sum()),
    )


def permutation_p_value(a: Array, b: Array, seed: int = 0, resamples: int = RESAMPLES) -> float:
    """Two-sided sign-flip p-value of the paired difference; 1.0 when `a` and `b` never differ.

    All sign patterns are counted when at most 12 questions differ; with more the p-value is
    (count + 1) / (resamples + 1), never 0. Sources: Good 2005, Permutation, Parametric and Bootstrap Tests of
    Hypotheses; Phipson and Smyth 2010 for the + 1.
    """
    difference = _differences(a, b)
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


def _differences(a: Array, b: Array) -> Array:
    difference = a - b
    return difference[~np.isnan(difference)]


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted so that all those below alpha are right together with probability 1 - alpha (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def best_set(
    scores: Mapping[str, Array], confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[set[str], dict[str, Interval]]:
    """The arms not shown worse than the best, and for each arm the interval of (arm - best other arm).

    The set holds the best arm with at least the stated probability, and all intervals hold at once with that
    probability: multiple comparisons with the best (Hsu 1984), each arm in turn being the control of a single-step
    max-t (Hothorn, Bretz and Westfall 2008) whose critical value comes from resampling questions, all arms together
    (Westfall and Young 1993). An arm is out when, for some other arm, the two-sided simultaneous interval of
    (other - arm) lies above 0; two-sided, to agree with the plain intervals and p-values that stand beside it.

    As in Hsu, an interval ends at 0 on the side that the set decides: [0, x] for a single best, [-x, 0] for an arm that
    is out. Two arms that never differ tie; a constant difference counts as shown. With fewer than 10 questions nobody
    is out and the intervals are [-1, 1]. Only questions that all arms scored are used.

    Raises: InputError when no question is scored by all arms.
    """
    names = list(scores)
    x = np.column_stack([scores[name] for name in names])
    x = x[~np.isnan(x).any(axis=1)]
    if not len(x):
        raise InputError("no question is scored for every arm; score the same questions with all arms")
    if len(names) == 1:
        return set(names), {}
    means = x.mean(axis=0)
    gaps = means[:, None] - means  # [i, j]: arm i minus arm j
    others = ~np.eye(len(names), dtype=bool)
    best_other = np.where(others, means, -np.inf).max(axis=1)
    if len(x) < MINIMUM_QUESTIONS:
        return set(names), {
            name: Interval(float(gap), -1.0, 1.0) for name, gap in zip(names, means - best_other, strict=True)
        }
    reach = _simultaneous_half_widths(x, confidence, seed, resamples)
    upper = np.where(others, gaps + reach, np.inf).min(axis=1)
    inside = upper >= -_ROUNDING
    lower = np.where(others & inside, gaps - reach.T, np.inf).min(axis=1)
    intervals = {
        name: Interval(float(means[i] - best_other[i]), _nearest(lower[i], -1.0, 0.0), _nearest(upper[i], 0.0, 1.0))
        for i, name in enumerate(names)
    }
    return {name for name, is_in in zip(names, inside, strict=True) if is_in}, intervals


def _nearest(value: float, low: float, high: float) -> float:
    return float(min(max(value, low), high))


def _simultaneous_half_widths(x: Array, confidence: float, seed: int, resamples: int) -> Array:
    """[i, j]: half the interval of (arm j - arm i), simultaneous over all j for each control i; shape (arms, arms)."""
    n, arms = x.shape
    centred = x - x.mean(axis=0)
    boot = np.concatenate([weights @ centred for weights in _resamples(n, resamples, seed)]) / n
    widths = np.zeros((arms, arms))
    for control in range(arms):
        error = (x - x[:, [control]]).std(axis=0, ddof=1) / math.sqrt(n)
        varies = error > _ROUNDING
        if varies.any():
            t = np.abs(boot[:, varies] - boot[:, [control]]) / error[varies]
            critical = _student(float(np.quantile(t.max(axis=1), confidence)), n)
            widths[control, varies] = critical * error[varies]
    return widths


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
