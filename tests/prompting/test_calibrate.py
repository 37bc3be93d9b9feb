"""Batch calibration against arithmetic by hand."""

from __future__ import annotations

import math

import pytest

from ragtune.prompting.calibrate import label_prior, likeliest


def logs(**shares: float) -> dict[str, float]:
    return {label: math.log(share) for label, share in shares.items()}


def test_a_prior_is_the_log_of_the_mean_share() -> None:
    found = label_prior([logs(red=0.6, blue=0.2), logs(red=0.1, blue=0.3)])  # shares 0.75 and 0.25, 0.25 and 0.75
    assert found == pytest.approx(logs(red=0.5, blue=0.5))
    assert label_prior([logs(red=0.9, blue=0.1)]) == pytest.approx(logs(red=0.9, blue=0.1))
    assert label_prior([]) == {}


def test_an_impossible_label_has_a_finite_prior() -> None:
    assert math.isfinite(label_prior([{"red": 0.0, "blue": -5000.0}])["blue"])


def test_the_label_that_exceeds_its_prior_most_is_picked() -> None:
    scores = logs(red=0.6, blue=0.4)
    assert likeliest(scores, {}) == "red"
    assert likeliest(scores, logs(red=0.8, blue=0.2)) == "blue"
    assert likeliest(logs(red=0.5, blue=0.5), {}) == "red"
