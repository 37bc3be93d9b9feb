"""Racing: which arms need not answer any more questions, because another is already shown better.

After every question, for every pair of arms, a gambler bets on "arm i scores more than arm j + margin" at odds that are
fair if that is not so. Whoever multiplies a fair stake by 1 / alpha was either right or luckier than chance allows with
probability alpha (Ville 1939), at whatever time one looks, and however often. So scores may be looked at after every
batch, which no p-value and no bootstrap interval allows.

Sources: Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting", JRSS B 86, section 4
(the capital process); Cover 1991, "Universal Portfolios", for the mixture of constant bets.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ragtune.errors import ConfigError, InputError
from ragtune.evaluator.compare import MINIMUM_QUESTIONS, Array

RACING_ALPHA = 0.02
"""The part of a verdict's 5 % of error that racing may use; the set of best arms gets the rest."""

_BETS = 1 - ((np.arange(8) + 0.5) / 8) ** 2
"""Shares of the capital that are staked, mixed in equal parts; denser near 1, which suits arms that are far apart."""


def drop(
    scores: Mapping[str, Array],
    alpha: float = RACING_ALPHA,
    margin: float = 0.0,
    clusters: Sequence[str] | None = None,
) -> dict[str, int]:
    """The arms to drop, in the order in which they fall, each with the number of questions after which it was decided.

    `scores` holds every arm that began, dropped ones included, in the order in which questions were asked, which must
    be random; each array may end where its arm was dropped. NaN is unscored and left out, pair by pair. For arms i and
    j the null hypothesis is H(i, j): E[score_i - score_j] <= margin. Its capital starts at 1 and is multiplied,
    question by question, by 1 + bet * (score_i - score_j - margin) / (1 + margin), a mixture over constant bets between
    0 and 1. Under H(i, j) it never grows on average, and so reaches 1 / alpha, ever, with probability <= alpha.

    With K arms, j is dropped when its evidence, the mean of the capitals against it over its K - 1 rivals, reaches
    1 / alpha. For the best arm all K - 1 hypotheses are true, their mean never grows on average either, and so the best
    arm (any arm within `margin` of it, too) is dropped, ever, with probability <= alpha. That contains the union bound:
    one rival whose capital reaches (K - 1) / alpha is enough. Nothing falls before question 10, nor does the last arm.

    Once dropped is dropped for ever: what is returned for the first t questions is returned for more of them, too. An
    arm's scores after it fell are not used, so the batches in which questions are asked make no difference either.

    All this needs independent questions. With `clusters`, one label for each question in the order asked, only the
    first question of each cluster is bet on, since what a cluster's first question showed makes the next one no fair
    bet; nothing falls before the tenth cluster.

    Raises: ConfigError for alpha outside (0, 1) or margin outside [0, 1); InputError for scores outside [0, 1], to
    which the bound is tied, and for fewer labels than questions.
    """
    if not (0 < alpha < 1 and 0 <= margin < 1):
        raise ConfigError(f"alpha is {alpha} and margin {margin}; expected alpha above 0 and both below 1")
    names = list(scores)
    dropped: dict[str, int] = {}
    if len(names) < 2:
        return dropped
    x = _side_by_side(scores)
    first = _first_of_cluster(x.shape[1], clusters)
    capital = _capital(np.where(first, x, np.nan), margin)
    racing = np.ones(len(names), dtype=bool)
    while racing.sum() > 1:
        evidence = np.where(racing[:, None], capital.sum(axis=0) / (len(names) - 1), 0.0)
        evidence[:, first.cumsum() < MINIMUM_QUESTIONS] = 0.0
        over = (evidence >= 1 / alpha).any(axis=0)
        if not over.any():
            break
        at = int(over.argmax())
        worst = int(evidence[:, at].argmax())
        dropped[names[worst]] = at + 1
        racing[worst] = False
        capital[worst, :, at + 1 :] = capital[worst, :, at, None]  # it bets no more
    return dropped


def settled(arms: Collection[str], dropped: Collection[str]) -> bool:
    """Whether more questions can no longer change the choice: one arm is left.

    As long as two are left they can. Arms that look alike are no reason to stop: to show that two arms differ by less
    than a margin of 0.02 takes thousands of questions, and whoever stops when a difference looks small or large has
    spoilt the intervals and the set of best arms, which are for a number of questions that the scores don't decide.
    """
    return len(set(arms) - set(dropped)) <= 1


def _side_by_side(scores: Mapping[str, Array]) -> Array:
    """The arms' scores, shape (arms, questions), NaN after the end of a shorter one."""
    x = np.full((len(scores), max(map(len, scores.values()))), np.nan)
    for row, (name, values) in zip(x, scores.items(), strict=True):
        row[: len(values)] = values
        if (row < 0).any() or (row > 1).any():
            raise InputError(f"arm {name!r} has scores outside 0 to 1; racing needs a metric from 0 to 1")
    return x


def _first_of_cluster(questions: int, clusters: Sequence[str] | None) -> npt.NDArray[np.bool_]:
    """Which questions are the first of their cluster, shape (questions,)."""
    if clusters is None:
        return np.ones(questions, dtype=bool)
    if len(clusters) < questions:
        raise InputError(f"{len(clusters)} cluster labels for {questions} questions; give one label for each question")
    first = np.zeros(questions, dtype=bool)
    first[np.unique(np.asarray(clusters[:questions]), return_index=True)[1]] = True
    return first


def _capital(x: Array, margin: float) -> Array:
    """[i, j, t]: the capital against H(i, j) after question t + 1; 0 for i = j."""
    gains = np.nan_to_num((x[:, None] - x[None, :] - margin) / (1 + margin))  # an unscored question: nothing is staked
    capital = np.zeros_like(gains)
    with np.errstate(over="ignore"):  # beyond 1e308 is over any threshold
        for bet in _BETS:
            capital += np.cumprod(1 + bet * gains, axis=2) / len(_BETS)
    capital[np.eye(len(x), dtype=bool)] = 0.0
    return capital
