import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ragtune.errors import InputError
from ragtune.evaluator.compare import (
    Array,
    best_set,
    holm,
    mean_interval,
    paired_difference,
    paired_spread,
    permutation_p_value,
    probability_best,
    questions_needed,
    smallest_detectable_difference,
    win_tie_loss,
)

NAN = math.nan


def correlated(rng: np.random.Generator, n: int, means: list[float], binary: bool = True) -> dict[str, Array]:
    """Scores of arms a0, a1, ... with the given true means on n questions, some of which are hard for all arms."""
    shared, own = rng.normal(size=(n, 1)), rng.normal(size=(n, len(means)))
    noise = stats.norm.cdf((shared + own) / math.sqrt(2))  # uniform on [0, 1] for each arm
    x = (noise < means).astype(float) if binary else np.asarray(means) + 0.2 * (noise - 0.5)
    return {f"a{i}": x[:, i] for i in range(len(means))}


def in_documents(rng: np.random.Generator, documents: int, size: int, arms: int) -> tuple[list[Array], list[str]]:
    """Right or wrong with probability 0.6, by arm; how well an arm reads a document is the same for all its questions.

    Half of an arm's luck belongs to the document, so two questions of one document correlate by about 0.33.
    """
    labels = np.repeat(np.arange(documents), size)
    luck = (rng.normal(size=(documents, arms))[labels] + rng.normal(size=(documents * size, arms))) / math.sqrt(2)
    x = (stats.norm.cdf(luck) < 0.6).astype(float)
    return list(x.T), [f"document {label}" for label in labels]


# --- intervals of a mean ---


@pytest.mark.parametrize("kind", ["share", "skewed", "difference"])
def test_interval_against_scipy_bca(kind: str) -> None:
    rng = np.random.default_rng(3)
    x = {
        "share": (rng.random(300) < 0.9).astype(float),
        "skewed": rng.beta(6, 1, 300),
        "difference": rng.choice([-1.0, 0.0, 1.0], 300, p=[0.05, 0.8, 0.15]),
    }[kind]
    ours = mean_interval(x, seed=1)
    theirs = stats.bootstrap((x,), np.mean, n_resamples=10_000, method="BCa", rng=2).confidence_interval
    assert ours.mean == pytest.approx(x.mean())
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.05 * width)


@pytest.mark.parametrize(("n", "tolerance"), [(12, 0.04), (60, 0.03)])
def test_interval_covers_the_true_mean(n: int, tolerance: float) -> None:
    rng = np.random.default_rng(5)
    draws = {0.8: lambda: (rng.random(n) < 0.8).astype(float), 0.75: lambda: rng.beta(3, 1, n)}
    for truth, draw in draws.items():
        intervals = [mean_interval(draw(), seed=i, resamples=400) for i in range(400)]
        assert np.mean([i.low <= truth <= i.high for i in intervals]) >= 0.95 - tolerance


@pytest.mark.parametrize("n", [1, 5, 20, 200])
def test_all_right_or_all_wrong_gives_the_clopper_pearson_interval(n: int) -> None:
    right, wrong = mean_interval(np.ones(n)), mean_interval(np.zeros(n))
    assert (right.mean, right.high, wrong.mean, wrong.low) == (1.0, 1.0, 0.0, 0.0)
    assert right.low == pytest.approx(stats.beta.ppf(0.025, n, 1))
    assert wrong.high == pytest.approx(stats.beta.ppf(0.975, 1, n))


def test_the_constant_interval_is_the_rule_of_three() -> None:
    assert mean_interval(np.zeros(100), confidence=0.90).high == pytest.approx(3 / 100, rel=0.02)


def test_other_constants_are_never_a_point() -> None:
    other = 1 - 0.025 ** (1 / 20)
    half = mean_interval(np.full(20, 0.5))
    assert (half.low, half.mean, half.high) == pytest.approx((0.5 - other / 2, 0.5, 0.5 + other / 2))
    tie = paired_difference(np.ones(20), np.ones(20))
    assert (tie.low, tie.mean, tie.high) == pytest.approx((-other, 0.0, other))


@pytest.mark.parametrize("n", [2, 5, 9])
def test_under_ten_questions_the_interval_is_students_t_within_bounds(n: int) -> None:
    x = np.random.default_rng(n).uniform(0.4, 0.6, n)
    low, high = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    interval = mean_interval(x)
    assert (interval.low, interval.high) == pytest.approx((max(low, 0.0), min(high, 1.0)))
    wide = mean_interval(np.array([0.0, 1.0] * (n // 2)))
    assert 0.0 <= wide.low < 0.5 < wide.high <= 1.0


def test_unscored_questions_are_left_out() -> None:
    x = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    assert mean_interval(np.insert(x, 2, NAN), seed=4) == mean_interval(x, seed=4)
    with pytest.raises(InputError, match="no question is scored"):
        mean_interval(np.array([NAN, NAN]))


def test_equal_seeds_give_equal_intervals_also_in_several_blocks() -> None:
    rng = np.random.default_rng(0)
    x = rng.random(900)  # 10,000 resamples need three blocks
    assert mean_interval(x, seed=1) == mean_interval(x, seed=1) != mean_interval(x, seed=2)
    half = 1.96 * x.std(ddof=1) / 30
    interval = mean_interval(x, seed=1)
    assert (interval.low, interval.high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.05 * half)


def test_more_confidence_is_wider() -> None:
    x = np.random.default_rng(0).random(40)
    narrow, wide = mean_interval(x, 0.8), mean_interval(x, 0.999)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=15))
def test_intervals_hold_their_mean_and_stay_in_range(values: list[float]) -> None:
    interval = mean_interval(np.array(values), resamples=500)
    assert -1e-9 <= interval.low <= interval.mean + 1e-9
    assert interval.mean - 1e-9 <= interval.high <= 1 + 1e-9


# --- pairs ---


def test_paired_difference_uses_the_questions_that_both_scored() -> None:
    a = np.array([1.0, 1.0, NAN, 0.0, 1.0, 1.0])
    b = np.array([0.0, 1.0, 1.0, 0.0, NAN, 0.0])
    assert paired_difference(a, b).mean == 0.5
    assert win_tie_loss(a, b) == (2, 2, 0)
    assert win_tie_loss(b, a) == (0, 2, 2)
    reverse = paired_difference(b, a)
    assert reverse.mean == -0.5
    with pytest.raises(InputError):
        paired_difference(np.array([1.0, NAN]), np.array([NAN, 1.0]))


def test_rounding_errors_are_ties() -> None:
    a, b = np.array([0.1 + 0.2, 0.7]), np.array([0.3, 0.6])
    assert win_tie_loss(a, b) == (1, 1, 0)
    assert permutation_p_value(a, b) == 1.0  # one question differs: both signs are as extreme


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 0), (8, 1), (6, 6), (3, 9), (12, 0)])
def test_few_wins_and_losses_give_the_exact_sign_test(wins: int, losses: int) -> None:
    difference = np.array([1.0] * wins + [-1.0] * losses + [0.0] * 30)
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert permutation_p_value(difference, np.zeros(len(difference))) == pytest.approx(expected)


def test_many_wins_and_losses_come_close_to_the_sign_test() -> None:
    difference = np.array([1.0] * 30 + [-1.0] * 14 + [0.0] * 100)
    expected = stats.binomtest(30, 44).pvalue
    assert permutation_p_value(difference, np.zeros(144), seed=3) == pytest.approx(expected, abs=0.005)


@settings(max_examples=25)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_exact_p_value_against_all_sign_patterns(values: list[int]) -> None:
    sums = [
        sum(s * v for s, v in zip(signs, values, strict=True))
        for signs in itertools.product((-1, 1), repeat=len(values))
    ]
    expected = np.mean([abs(s) >= abs(sum(values)) for s in sums])
    difference = np.array(values, dtype=float) / 10
    assert permutation_p_value(difference, np.zeros(len(values))) == pytest.approx(expected)
    assert permutation_p_value(np.zeros(len(values)), difference) == pytest.approx(expected)


def test_sampled_p_value_against_scipy() -> None:
    rng = np.random.default_rng(8)
    a, b = rng.random(40), rng.random(40) - 0.1
    theirs = stats.permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=10_000, rng=1
    )
    assert permutation_p_value(a, b, seed=2) == pytest.approx(theirs.pvalue, abs=0.015)


def test_the_p_value_is_never_zero() -> None:
    assert permutation_p_value(np.ones(60), np.zeros(60), resamples=999) == 1 / 1000


def test_p_values_are_uniform_when_nothing_differs() -> None:
    rng = np.random.default_rng(11)
    p = [permutation_p_value(rng.normal(size=25), rng.normal(size=25), seed=i, resamples=499) for i in range(500)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


# --- several comparisons ---


def test_holm_by_hand() -> None:
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04; never below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=8), st.floats(0.01, 0.5))
def test_holm_against_its_step_down_procedure(p_values: list[float], alpha: float) -> None:
    rejected = set()
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[i] * (len(p_values) - rank) > alpha:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(holm(p_values)) if p <= alpha} == rejected


def test_two_arms_give_the_paired_t_interval() -> None:
    rng = np.random.default_rng(2)
    a = rng.normal(0.5, 0.1, 80)
    b = a - rng.normal(0.03, 0.05, 80)
    best, intervals = best_set({"a": a, "b": b})
    low, high = stats.ttest_1samp(a - b, 0).confidence_interval(0.95)
    assert best == {"a"}
    assert (intervals["a"].low, intervals["a"].high) == pytest.approx((low, high), abs=0.002)
    assert (intervals["b"].low, intervals["b"].high) == pytest.approx((-high, -low), abs=0.002)
    assert intervals["b"].mean == -intervals["a"].mean == pytest.approx((b - a).mean())
    assert low > 0


def test_no_arm_is_called_worse_when_all_are_equal() -> None:
    """The hardest case: any arm that is out is a false claim, and every one of ten pairs can be it."""
    rng = np.random.default_rng(7)
    for n in (10, 40):
        false = sum(len(best_set(correlated(rng, n, [0.6] * 5), seed=i, resamples=300)[0]) < 5 for i in range(400))
        assert false <= stats.binom.ppf(0.999, 400, 0.05)


def test_what_is_shown_leaves_the_family() -> None:
    """Four arms far apart; a1 trails a0 by 2.3 standard errors: enough for one pair (1.97), not for six (2.6)."""
    rng = np.random.default_rng(3)
    base = rng.random(200)
    noise = rng.normal(size=200)
    noise = 0.1 * (noise - noise.mean()) / noise.std(ddof=1)
    a1 = base - 2.3 * 0.1 / math.sqrt(200) + noise
    far = [base - gap + 0.1 * rng.normal(size=200) for gap in (0.5, 1.0)]
    best, intervals = best_set({"a0": base, "a1": a1, "a2": far[0], "a3": far[1]})
    assert best == {"a0"}
    assert intervals["a0"].low < 0 < intervals["a0"].mean  # the intervals are those of the first step
    alone, between_two = best_set({"a0": base, "a1": a1})
    assert alone == {"a0"} and between_two["a0"].low > 0


def test_a_strictly_best_arm_is_kept_and_the_intervals_hold_at_once() -> None:
    rng = np.random.default_rng(9)
    means = [0.70, 0.66, 0.60, 0.40]
    truth = {f"a{i}": m - max(means[:i] + means[i + 1 :]) for i, m in enumerate(means)}
    missed = uncovered = dropped = 0
    for i in range(300):
        best, intervals = best_set(correlated(rng, 60, means), seed=i, resamples=300)
        missed += "a0" not in best
        dropped += "a3" not in best
        uncovered += any(not intervals[a].low - 1e-9 <= truth[a] <= intervals[a].high + 1e-9 for a in truth)
    assert missed / 300 <= 0.05
    assert uncovered / 300 <= 0.05 + 0.025
    assert dropped / 300 >= 0.8  # and it is not kept by keeping everybody


def test_arms_that_never_differ_tie() -> None:
    x = np.array([1.0, 0.0] * 10)
    best, intervals = best_set({"a": x, "b": x, "c": 1 - x})
    assert {"a", "b"} <= best
    assert intervals["a"].low <= intervals["a"].mean == 0.0 <= intervals["a"].high


@pytest.mark.parametrize(("n", "expected"), [(9, {"a", "b"}), (10, {"a"})])
def test_a_constant_difference_counts_from_ten_questions_on(n: int, expected: set[str]) -> None:
    x = np.random.default_rng(0).random(n)
    best, intervals = best_set({"a": x + 0.1, "b": x})
    assert best == expected
    assert intervals["a"].mean == pytest.approx(0.1)


def test_under_ten_questions_nobody_is_out() -> None:
    best, intervals = best_set({"a": np.ones(9), "b": np.zeros(9)})
    assert best == {"a", "b"}
    assert (intervals["b"].low, intervals["b"].mean, intervals["b"].high) == (-1.0, -1.0, 1.0)


def test_only_questions_that_all_arms_scored_count() -> None:
    scores = correlated(np.random.default_rng(1), 30, [0.9, 0.5, 0.2])
    holed = {name: np.concatenate([values, [NAN if name == "a1" else 1.0]]) for name, values in scores.items()}
    assert best_set(holed, seed=3) == best_set(scores, seed=3)
    with pytest.raises(InputError, match="for every arm"):
        best_set({"a": np.array([1.0, NAN]), "b": np.array([NAN, 1.0])})


def test_a_single_arm_is_the_best_one() -> None:
    assert best_set({"a": np.zeros(20)}) == ({"a"}, {})


def test_holm_within_a_larger_family() -> None:
    # two of six tests at hand: the smaller p times 6, the larger times 5
    assert holm([0.02, 0.001], family=6) == pytest.approx([0.1, 0.006])
    assert holm([0.02, 0.001], family=2) == holm([0.02, 0.001])
    assert holm([], family=3) == []
    with pytest.raises(InputError, match="family of 1 tests can't hold 2"):
        holm([0.1, 0.2], family=1)


@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=8), st.integers(1, 7))
def test_a_part_of_a_family_is_never_bolder_than_the_whole(p_values: list[float], size: int) -> None:
    part = p_values[:size]
    whole = holm(p_values)[:size]
    assert all(p >= q - 1e-12 for p, q in zip(holm(part, family=len(p_values)), whole, strict=True))


# --- the probability of being the best ---


def test_the_probability_of_the_better_of_two_arms() -> None:
    """With many questions the weighed mean is normal with variance sum of squares / (n (n + 1)) (Rubin 1981)."""
    rng = np.random.default_rng(5)
    a, b = rng.random(300), rng.random(300) - 0.03
    d = a - b
    expected = stats.norm.cdf(d.mean() / math.sqrt(((d - d.mean()) ** 2).sum() / (300 * 301)))
    found = probability_best({"a": a, "b": b}, seed=1)
    assert 0.6 < expected < 0.98
    assert found["a"] == pytest.approx(expected, abs=0.015)  # three standard errors of 10,000 draws
    assert sum(found.values()) == pytest.approx(1.0)


def test_arms_that_tie_share_the_probability() -> None:
    x = np.array([1.0, 0.0] * 10)
    assert probability_best({"a": x, "b": x.copy(), "c": np.zeros(20)}) == {"a": 0.5, "b": 0.5, "c": 0.0}
    assert probability_best({"a": x}) == {"a": 1.0}
    holed = np.where(np.arange(20) < 10, x, NAN)
    assert probability_best({"a": holed, "b": 1 - holed}, seed=2) == probability_best({"a": x[:10], "b": 1 - x[:10]}, 2)
    with pytest.raises(InputError, match="for every arm"):
        probability_best({"a": np.array([1.0, NAN]), "b": np.array([NAN, 1.0])})


# --- clusters ---


def test_a_cluster_for_each_question_changes_nothing() -> None:
    rng = np.random.default_rng(4)
    scores = correlated(rng, 40, [0.7, 0.5, 0.5], binary=False)
    labels = [f"q{i:02}" for i in range(40)]  # in sorted order, so that the draws are the same
    a, b = scores["a0"], scores["a1"]
    assert mean_interval(a, clusters=labels) == mean_interval(a)
    assert paired_difference(a, b, clusters=labels) == paired_difference(a, b)
    assert permutation_p_value(a, b, clusters=labels) == permutation_p_value(a, b)
    assert best_set(scores, clusters=labels) == best_set(scores)
    assert probability_best(scores, clusters=labels) == probability_best(scores)
    assert paired_spread(a, b, labels) == pytest.approx(paired_spread(a, b)) == pytest.approx((a - b).std(ddof=1))


def test_copies_of_a_question_count_once() -> None:
    rng = np.random.default_rng(6)
    a, b = (rng.random(30) < 0.8).astype(float), (rng.random(30) < 0.6).astype(float)
    labels = [f"q{i:02}" for i in range(30)] * 4
    many = {"a": np.tile(a, 4), "b": np.tile(b, 4)}
    once, copied = paired_difference(a, b), paired_difference(many["a"], many["b"], clusters=labels)
    assert (copied.low, copied.mean, copied.high) == pytest.approx((once.low, once.mean, once.high))
    assert permutation_p_value(many["a"], many["b"], clusters=labels) == permutation_p_value(a, b)
    assert best_set(many, clusters=labels)[0] == best_set({"a": a, "b": b})[0]
    assert probability_best(many, clusters=labels)["a"] == pytest.approx(probability_best({"a": a, "b": b})["a"])
    assert paired_spread(many["a"], many["b"], labels) == pytest.approx(2 * paired_spread(a, b))  # root of 4 copies
    assert paired_difference(many["a"], many["b"]).low > copied.low  # as if they were 120 questions


def test_clustered_intervals_cover_and_plain_ones_do_not() -> None:
    """40 documents with 6 questions each; the plain interval is too narrow by the design effect."""
    rng = np.random.default_rng(8)
    runs, covered = 300, {"clustered": 0, "plain": 0}
    for i in range(runs):
        (x,), labels = in_documents(rng, 40, 6, 1)
        for kind, clusters in (("clustered", labels), ("plain", None)):
            interval = mean_interval(x, seed=i, resamples=300, clusters=clusters)
            covered[kind] += interval.low <= 0.6 <= interval.high
    assert covered["clustered"] >= stats.binom.ppf(0.001, runs, 0.94)  # with 40 clusters, a point is forgiven
    assert covered["plain"] < 0.85 * runs


def test_clustered_tests_keep_their_level_and_plain_ones_do_not() -> None:
    """Two equal arms whose luck belongs to the document."""
    rng = np.random.default_rng(9)
    runs, false = 250, {"clustered": np.zeros(2), "plain": np.zeros(2)}
    for i in range(runs):
        (a, b), labels = in_documents(rng, 30, 8, 2)
        for kind, clusters in (("clustered", labels), ("plain", None)):
            out = len(best_set({"a": a, "b": b}, seed=i, resamples=300, clusters=clusters)[0]) < 2
            low_p = permutation_p_value(a, b, seed=i, resamples=299, clusters=clusters) <= 0.05
            false[kind] += (out, low_p)
    assert (false["clustered"] <= stats.binom.ppf(0.999, runs, 0.05)).all()
    assert (false["plain"] > 0.12 * runs).all()


def test_under_ten_clusters_the_interval_is_students_t_and_nobody_is_out() -> None:
    rng = np.random.default_rng(1)
    means = rng.uniform(0.3, 0.7, 9)
    x = np.repeat(means, 20)  # what a cluster's questions share is all there is
    labels = [f"d{i}" for i in range(9) for _ in range(20)]
    low, high = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    interval = mean_interval(x, clusters=labels)
    assert (interval.low, interval.high) == pytest.approx((low, high))
    assert best_set({"a": x, "b": x - 0.3}, clusters=labels)[0] == {"a", "b"}
    assert best_set({"a": x, "b": x - 0.3})[0] == {"a"}


def test_one_cluster_says_next_to_nothing() -> None:
    x = np.array([1.0, 0.0, 1.0, 1.0] * 10)
    interval = mean_interval(x, clusters=["d"] * 40)
    assert (interval.low, interval.high) == pytest.approx((0.75 - 0.975 * 0.75, 0.75 + 0.975 * 0.25))
    assert permutation_p_value(x, np.zeros(40), clusters=["d"] * 40) == 1.0
    assert paired_spread(x, np.zeros(40), ["d"] * 40) == 0.0


def test_the_signs_of_a_cluster_flip_together() -> None:
    # five clusters, all ahead: 2 of 32 sign patterns are as extreme, however many questions they hold
    d = np.array([1.0, 1.0, 0.0, 1.0, 0.5, 1.0, 1.0, 1.0, NAN])
    labels = ["a", "a", "b", "b", "c", "d", "d", "e", "e"]
    assert permutation_p_value(d, np.zeros(9), clusters=labels) == 2 / 32


def test_labels_go_with_the_questions_that_are_scored() -> None:
    a = np.array([1.0, NAN, 0.0, 1.0] * 10)
    labels = [f"d{i // 2}" for i in range(40)]
    kept = ~np.isnan(a)
    expected = mean_interval(a[kept], clusters=[label for label, keep in zip(labels, kept, strict=True) if keep])
    assert mean_interval(a, clusters=labels) == expected
    with pytest.raises(InputError, match="3 cluster labels for 40 questions"):
        mean_interval(a, clusters=["a", "b", "c"])


# --- planning ---


def test_sample_size_by_hand() -> None:
    # z[0.975] + z[0.8] = 1.9600 + 0.8416 = 2.8016
    assert smallest_detectable_difference(0.5, 100) == pytest.approx(2.8016 * 0.5 / 10, abs=1e-5)
    assert questions_needed(0.1, 0.5) == math.ceil((2.8016 * 5) ** 2) == 197
    assert questions_needed(-0.1, 0.5) == 197
    assert questions_needed(0.1, 0.5, alpha=0.01) > 197 > questions_needed(0.1, 0.5, power=0.5)
    with pytest.raises(InputError, match="difference of 0"):
        questions_needed(0.0, 0.5)


@given(st.floats(0.01, 1), st.floats(0.05, 1))
def test_the_questions_needed_are_enough_and_one_fewer_is_not(difference: float, sd: float) -> None:
    n = questions_needed(difference, sd)
    assert smallest_detectable_difference(sd, n) <= difference * (1 + 1e-9)
    assert n == 1 or smallest_detectable_difference(sd, n - 1) > difference * (1 - 1e-9)


def test_the_promised_power_is_reached() -> None:
    rng = np.random.default_rng(4)
    n = questions_needed(0.1, 0.4)
    x = rng.normal(0.1, 0.4, size=(4000, n))
    shown = np.abs(x.mean(axis=1)) / (x.std(axis=1, ddof=1) / math.sqrt(n)) > 1.96
    assert shown.mean() == pytest.approx(0.8, abs=0.02)
