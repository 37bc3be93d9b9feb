"""Resampling of questions, whole clusters at a time: what the mean would be had other questions been asked.

A cluster is a group of questions that rise and fall together, such as those about one source document. It is what gets
drawn, so that its questions count as one observation where they agree. Without labels every question is a cluster.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ragtune.errors import InputError

Array = npt.NDArray[np.float64]

_CELLS = 4_000_000  # of one block of weights: 32 MB


@dataclass(frozen=True, slots=True)
class Sample:
    """Scores of n questions in m clusters, in columns (one for each arm).

    `means`, shape (columns,), are over the questions. `deviations`, shape (m, columns), add up score - mean over the
    questions of each cluster; `counts`, shape (m,), are how many questions that is.
    """

    means: Array
    deviations: Array
    counts: Array

    @property
    def clusters(self) -> int:
        """How many clusters there are: the number of independent observations."""
        return len(self.counts)


def labels_of(clusters: Sequence[str] | None, kept: npt.NDArray[np.bool_]) -> Sequence[str] | None:
    """The labels of the questions that are kept; `kept` has shape (n,).

    Raises: InputError when the labels are not one for each question.
    """
    if clusters is None:
        return None
    if len(clusters) != len(kept):
        raise InputError(f"{len(clusters)} cluster labels for {len(kept)} questions; give one label for each question")
    return list(itertools.compress(clusters, kept))


def cluster_sums(x: Array, clusters: Sequence[str] | None) -> tuple[Array, Array]:
    """`x`, shape (n, columns), added up by cluster: (sums, shape (m, columns); questions in each, shape (m,))."""
    if clusters is None:
        return x, np.ones(len(x))
    labels, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((len(labels), x.shape[1]))
    np.add.at(sums, index, x)
    return sums, np.bincount(index).astype(np.float64)


def sample_of(x: Array, clusters: Sequence[str] | None) -> Sample:
    """The sample of `x`, shape (n, columns), without NaN."""
    sums, counts = cluster_sums(x, clusters)
    means = x.mean(axis=0)
    return Sample(means, sums - counts[:, None] * means, counts)


def standard_errors(sample: Sample) -> Array:
    """Of each column's mean, clusters being independent; it takes at least two.

    sqrt(m / (m - 1) * sum of squared deviations) / n. With every question its own cluster that is the usual
    sd / sqrt(n). Sources: Cochran 1977, Sampling Techniques, section 9A; Miller 2024, "Adding Error Bars to Evals",
    section 2.2, without the factor m / (m - 1).
    """
    m = sample.clusters
    errors: Array = np.sqrt(m / (m - 1) * (sample.deviations**2).sum(axis=0)) / sample.counts.sum()
    return errors


def bootstrap_errors(sample: Sample, resamples: int, seed: int) -> Array:
    """Means of resamples minus the means, shape (resamples, columns): m of the m clusters with replacement.

    Source: Davison and Hinkley 1997, Bootstrap Methods and their Application, section 3.8 (whole clusters drawn).
    """
    return _errors(sample, _blocks(sample.clusters, resamples, seed, _draws))


def bayesian_errors(sample: Sample, resamples: int, seed: int) -> Array:
    """The same with clusters weighed at random, by Dirichlet(1, ..., 1), in place of drawn.

    Source: Rubin 1981, "The Bayesian Bootstrap". Exponential weights do, as their sum cancels out.
    """
    return _errors(sample, _blocks(sample.clusters, resamples, seed, _exponentials))


def _errors(sample: Sample, blocks: Iterator[npt.NDArray[Any]]) -> Array:
    weights = (np.asarray(block, dtype=np.float64) for block in blocks)
    return np.concatenate([w @ sample.deviations / (w @ sample.counts)[:, None] for w in weights])


def _blocks(
    m: int, resamples: int, seed: int, draw: Callable[[int, int, int, int], npt.NDArray[Any]]
) -> Iterator[npt.NDArray[Any]]:
    """Weights of m clusters in blocks, shape (rows, m), that have `resamples` rows together."""
    step = max(1, _CELLS // m)
    for block, start in enumerate(range(0, resamples, step)):
        yield draw(m, min(step, resamples - start), seed, block)


@functools.lru_cache(maxsize=16)  # of 4 MB; a verdict asks some twenty times for the same draws
def _draws(m: int, rows: int, seed: int, block: int) -> npt.NDArray[np.uint8]:
    """How often each of m clusters is drawn in m draws; more than 255 times will not be seen."""
    rng = np.random.default_rng([seed, block])
    picks = rng.integers(0, m, size=(rows, m), dtype=np.int32) + m * np.arange(rows, dtype=np.int32)[:, None]
    weights = np.bincount(picks.ravel(), minlength=rows * m).reshape(rows, m).astype(np.uint8)
    weights.flags.writeable = False
    return weights


def _exponentials(m: int, rows: int, seed: int, block: int) -> Array:
    return np.random.default_rng([seed, block]).standard_exponential((rows, m))
