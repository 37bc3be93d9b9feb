import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ragtune.config import EvaluateConfig
from ragtune.errors import ConfigError, InputError
from ragtune.evaluator.compare import Array
from ragtune.evaluator.race import RACING_ALPHA, drop, settled

NAN = math.nan
BETS = [1 - ((i + 0.5) / 8) ** 2 for i in range(8)]


def drawn(rng: np.random.Generator, n: int, means: list[float]) -> dict[str, Array]:
    """Right or wrong on n questions; half of each arm's luck is the difficulty of the question."""
    luck = stats.norm.cdf((rng.normal(size=(n, 1)) + rng.normal(size=(n, len(means)))) / math.sqrt(2))
    return {f"a{i}": (luck[:, i] < mean).astype(float) for i, mean in enumerate(means)}


def by_hand(scores: Mapping[str, Array], alpha: float, margin: float) -> dict[str, int]:
    """The race question by question and pair by pair, without arrays."""
    racing, capital = list(scores), {(i, j, bet): 1.0 for i in scores for j in scores if i != j for bet in BETS}
    dropped: dict[str, int] = {}
    for t in range(len(next(iter(scores.values())))):
        for i, j, bet in capital:
            difference = scores[i][t] - scores[j][t]
            if i in racing and not math.isnan(difference):
                capital[i, j, bet] *= 1 + bet * (difference - margin) / (1 + margin)
        while len(racing) > 1 and t + 1 >= 10:
            evidence = {
                j: sum(capital[i, j, bet] / 8 for i in scores if i != j for bet in BETS) / (len(scores) - 1)
                for j in racing
            }
            worst = max(racing, key=lambda name: evidence[name])
            if evidence[worst] < 1 / alpha:
                break
            racing.remove(worst)
            dropped[worst] = t + 1
    return dropped


@pytest.mark.parametrize("margin", [0.0, 0.02, 0.1])
def test_the_race_against_one_written_out(margin: float) -> None:
    rng = np.random.default_rng(1)
    falls = 0
    for _ in range(12):
        scores = drawn(rng, 120, [0.9, 0.85, 0.5, 0.3, 0.1])
        scores["a1"][rng.random(120) < 0.2] = NAN
        found = drop(scores, 0.02, margin)
        assert found == by_hand(scores, 0.02, margin)
        falls += len(found)
    assert falls >= 24


def test_two_arms_by_hand() -> None:
    """The capital after t wins is the mean of (1 + bet)^t: 205 after 9, 391 after 10, 2,769 after 13."""
    assert [round(sum((1 + bet) ** t for bet in BETS) / 8) for t in (9, 10, 12, 13)] == [205, 391, 1438, 2769]
    wins = {"a": np.ones(30), "b": np.zeros(30)}
    assert drop(wins, 1 / 300) == {"b": 10}
    assert drop(wins, 1 / 2000) == {"b": 13}
    assert drop(wins, 0.5) == {"b": 10}  # never before the tenth question
    assert drop({name: x[:9] for name, x in wins.items()}, 0.5) == {}


@pytest.mark.parametrize("binary", [True, False])
def test_the_best_arm_is_rarely_dropped_whenever_one_looks(binary: bool) -> None:
    """All arms are equal and every question is a chance to drop a0; the bound is for all of them together."""
    rng = np.random.default_rng(2)
    runs, alpha, false = 500, 0.05, 0
    for _ in range(runs):
        scores = drawn(rng, 300, [0.6] * 4)
        if not binary:
            scores = {name: np.clip(0.5 * x + rng.uniform(0, 0.5, 300), 0, 1) for name, x in scores.items()}
        false += "a0" in drop(scores, alpha)
    assert false <= stats.binom.ppf(0.999, runs, alpha)


def test_an_arm_within_the_margin_is_rarely_dropped_and_one_beyond_it_is() -> None:
    rng = np.random.default_rng(3)
    runs, alpha, within, beyond = 150, 0.05, 0, 0
    for _ in range(runs):
        dropped = drop(drawn(rng, 600, [0.7, 0.6, 0.4]), alpha, margin=0.1)
        within += "a1" in dropped
        beyond += "a2" in dropped
    assert within <= stats.binom.ppf(0.999, runs, alpha)
    assert beyond >= 0.95 * runs


def test_arms_far_apart_fall_early() -> None:
    rng = np.random.default_rng(4)
    after = [drop(drawn(rng, 200, [0.8, 0.5]), 0.02, 0.02).get("a1", 200) for _ in range(100)]
    assert np.median(after) <= 60
    assert np.mean(np.array(after) < 200) >= 0.98


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 80), st.integers(2, 5))
def test_what_is_dropped_stays_dropped_and_the_last_arm_stays(seed: int, t: int, arms: int) -> None:
    rng = np.random.default_rng(seed)
    scores = {f"a{i}": (rng.random(80) < rng.random()).astype(float) for i in range(arms)}
    for x in scores.values():
        x[rng.random(80) < 0.1] = NAN
    whole = drop(scores, 0.2)
    assert drop({name: x[:t] for name, x in scores.items()}, 0.2) == {k: v for k, v in whole.items() if v <= t}
    assert len(whole) < arms
    assert all(10 <= after <= 80 for after in whole.values())


@pytest.mark.parametrize("batch", [1, 7, 24])
def test_batches_make_no_difference(batch: int) -> None:
    """An arm that fell answers no more; what it would have answered is not missed."""
    rng = np.random.default_rng(5)
    for _ in range(5):
        scores = drawn(rng, 150, [0.9, 0.8, 0.6, 0.4, 0.2])
        dropped: dict[str, int] = {}
        asked = {name: 0 for name in scores}
        while max(asked.values()) < 150:
            asked |= {name: min(150, n + batch) for name, n in asked.items() if name not in dropped}
            dropped = drop({name: x[: asked[name]] for name, x in scores.items()}, 0.02)
        assert dropped == drop(scores, 0.02)
        assert len(dropped) >= 2


def test_unscored_questions_are_no_bets() -> None:
    scores = drawn(np.random.default_rng(6), 100, [0.9, 0.3])
    after = drop(scores)["a1"]
    assert (
        drop({"a0": np.append([NAN] * 5, scores["a0"]), "a1": np.append(np.ones(5), scores["a1"])})["a1"] == after + 5
    )


def test_of_a_cluster_only_the_first_question_counts() -> None:
    rng = np.random.default_rng(7)
    scores = drawn(rng, 400, [0.7, 0.5, 0.2])
    labels = [f"d{i}" for i in rng.integers(0, 150, 400)]
    seen: set[str] = set()
    first = np.array([not (label in seen or seen.add(label)) for label in labels])  # type: ignore[func-returns-value]
    dropped = drop(scores, clusters=labels)
    assert len(dropped) == 2
    assert dropped == drop({name: np.where(first, x, NAN) for name, x in scores.items()})
    assert dropped["a1"] > drop(scores)["a1"]
    assert drop(scores, clusters=["one"] * 400) == {}
    assert drop(scores, clusters=[f"{i}" for i in range(400)]) == drop(scores)


def test_clustered_questions_keep_the_bound_with_labels_and_break_it_without() -> None:
    """Two equal arms; most of their luck belongs to the document, which has ten questions."""
    rng = np.random.default_rng(8)
    runs, alpha, false = 200, 0.05, {"with": 0, "without": 0}
    for _ in range(runs):
        order = rng.permutation(np.repeat(np.arange(60), 10))
        luck = 0.9 * rng.normal(size=(60, 2))[order] + math.sqrt(0.19) * rng.normal(size=(600, 2))
        scores = {f"a{i}": (luck[:, i] < 0.3).astype(float) for i in range(2)}
        false["with"] += "a0" in drop(scores, alpha, clusters=[str(label) for label in order])
        false["without"] += "a0" in drop(scores, alpha)
    assert false["with"] <= stats.binom.ppf(0.999, runs, alpha)
    assert false["without"] > 0.1 * runs


def test_one_arm_or_none_does_not_race() -> None:
    assert drop({"a": np.ones(50)}) == {}
    assert drop({}) == {}
    assert drop({"a": np.array([]), "b": np.array([])}) == {}


def test_more_than_a_thousand_wins_do_no_harm() -> None:
    """Capitals beyond what a number can hold; c falls with 116.6 against a and 0.1 against b, whose mean passes 50."""
    assert drop({"a": np.ones(3000), "b": np.zeros(3000), "c": np.full(3000, 0.5)}) == {"b": 10, "c": 14}


def test_the_race_is_over_when_one_arm_is_left() -> None:
    assert settled(["a", "b", "c"], {"b": 10, "c": 20})
    assert not settled(["a", "b", "c"], {"b": 10})
    assert settled(["a"], {})


def test_wrong_inputs_say_what_is_wrong() -> None:
    fine = {"a": np.ones(20), "b": np.zeros(20)}
    with pytest.raises(ConfigError, match="alpha is 0"):
        drop(fine, 0.0)
    with pytest.raises(ConfigError, match="margin 1"):
        drop(fine, 0.05, 1.0)
    with pytest.raises(InputError, match="arm 'b' has scores outside 0 to 1"):
        drop(fine | {"b": np.full(20, -0.1)})
    with pytest.raises(InputError, match="arm 'a' has scores outside 0 to 1"):
        drop(fine | {"a": np.full(20, 1.1)})
    with pytest.raises(InputError, match="3 cluster labels for 20 questions"):
        drop(fine, clusters=["x", "y", "z"])


def test_an_evaluation_races_at_the_error_rate_that_the_simulation_measures() -> None:
    assert EvaluateConfig().racing_error == RACING_ALPHA
