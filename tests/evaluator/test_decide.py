import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from ragtune.errors import ConfigError, InputError
from ragtune.evaluator.compare import best_set, holm, permutation_p_value, probability_best, questions_needed
from ragtune.evaluator.decide import Prices, decide
from ragtune.types import Arm, Row

ARMS = {
    name: Arm(name, few_shot, passages, weights, reference)  # type: ignore[arg-type]
    for name, few_shot, passages, weights, reference in [
        ("prompt", False, "none", "base", False),
        ("few-shot", True, "none", "base", False),
        ("tune", False, "none", "tune", False),
        ("tune+retrieve", False, "retrieved", "tune", False),
        ("oracle", False, "gold", "base", True),
    ]
}
TOKENS = {"prompt": 60, "few-shot": 300, "tune": 400, "tune+retrieve": 2400, "oracle": 300}


def rows_of(scores: Mapping[str, Sequence[float | None]], task: str = "facts") -> list[Row]:
    """Rows whose cost is that of the prompt tokens alone."""
    return [
        Row(task, f"q{i:04}", arm, score, {}, "", (), (), TOKENS[arm], 0, 0.1 * (i + 1), False)
        for arm, values in scores.items()
        for i, score in enumerate(values)
    ]


def right(share: float, n: int, start: float = 0.0) -> list[float]:
    """A share of n questions right, spread evenly, beginning at a part of the way through."""
    ones = [(i * 0.6180339887 + start) % 1.0 < share for i in range(n)]
    return [float(one) for one in ones]


def test_the_best_arm_wins_when_cheaper_ones_are_worse() -> None:
    verdict = decide("facts", rows_of({"few-shot": right(0.5, 200), "tune": right(0.9, 200)}), ARMS)
    assert (verdict.arm, verdict.status, verdict.questions_needed) == ("tune", "decided", None)
    assert {s.arm: s.in_best_set for s in verdict.arms} == {"few-shot": False, "tune": True}
    (comparison,) = verdict.comparisons
    assert (comparison.a, comparison.b) == ("tune", "few-shot")
    assert comparison.difference.mean == pytest.approx(0.4, abs=0.01)
    assert (comparison.wins + comparison.ties + comparison.losses, comparison.losses) == (200, 0)
    assert comparison.p_value == pytest.approx(1 / 10_001)


def test_the_reason_says_it_in_plain_words() -> None:
    scores = {"few-shot": right(0.53, 200), "tune": right(0.91, 200), "tune+retrieve": right(0.905, 200, 0.03)}
    reason = decide("facts", rows_of(scores), ARMS).reason
    assert re.fullmatch(
        r"`tune` scores 0\.91 \(0\.8\d to 0\.9\d\), and no arm scores higher\. "
        r"`few-shot`, which would be cheaper, is worse by 0\.38 \(0\.3\d to 0\.4\d\)\. "
        r"`tune\+retrieve` is not shown better and costs 6 times as much\.",
        reason,
    )


def test_the_cheapest_within_the_margin_wins() -> None:
    scores = {"tune": right(0.90, 200), "tune+retrieve": right(0.91, 200)}
    verdict = decide("facts", rows_of(scores), ARMS, margin=0.02)
    assert (verdict.arm, verdict.status) == ("tune", "decided")
    assert "within 0.02 of the highest, `tune+retrieve` with 0.91, which costs 6 times as much" in verdict.reason
    assert "No other arm is cheaper." in verdict.reason


def test_a_difference_below_the_margin_is_not_paid_for_even_when_it_is_shown() -> None:
    """At 1,000 questions a gap of 0.008 is shown; the margin says that it doesn't matter."""
    tune = right(0.80, 1000)
    better = [max(score, float(i % 25 == 24)) for i, score in enumerate(tune)]
    scores = {"few-shot": right(0.5, 1000), "tune": tune, "tune+retrieve": better}
    verdict = decide("facts", rows_of(scores), ARMS, margin=0.02)
    assert (verdict.arm, verdict.status, verdict.questions_needed) == ("tune", "decided", None)
    assert [s.in_best_set for s in verdict.arms] == [False, False, True]
    assert re.search(
        r"which costs 6 times as much\. It is shown to be worse, by 0\.00\d \(0\.0\d\d to 0\.0\d\d\), but by less than "
        r"the margin\. `few-shot`, which would be cheaper, is worse than `tune\+retrieve` by 0\.3",
        verdict.reason,
    )
    assert decide("facts", rows_of(scores), ARMS, margin=0.0).arm == "tune+retrieve"


def test_the_leader_that_is_not_shown_better_is_not_said_to_be() -> None:
    scores = {"tune": right(0.90, 200), "tune+retrieve": right(0.91, 200)}
    assert "shown to be worse" not in decide("facts", rows_of(scores), ARMS).reason


def test_a_cheaper_arm_that_may_suffice_leaves_it_undecided() -> None:
    tune, few = right(0.80, 60), right(0.75, 60, 0.3)
    verdict = decide("facts", rows_of({"few-shot": few, "tune": tune}), ARMS)
    assert (verdict.arm, verdict.status) == ("tune", "undecided")
    difference = np.array(tune) - np.array(few)
    assert verdict.questions_needed == questions_needed(difference.mean(), difference.std(ddof=1))
    assert verdict.questions_needed > 60
    assert "`few-shot` would be cheaper and scores lower by 0.07" in verdict.reason
    assert re.search(r"about \d+0 questions would tell", verdict.reason)
    assert decide("facts", rows_of({"few-shot": few, "tune": tune}), ARMS, margin=0.1).arm == "few-shot"


@pytest.mark.parametrize(
    ("cheap", "dear", "text"),
    [
        (400, 2400, "costs 6 times as much"),
        (400, 1000, "costs 2.5 times as much"),
        (100, 1240, "costs 12 times as much"),
        (100, 130, "costs 30 % more"),
        (1000, 1001, "costs about as much"),
        (0, 100, "costs more"),
    ],
)
def test_the_dearer_arm_is_priced_in_words(cheap: int, dear: int, text: str) -> None:
    tokens = {"tune": cheap, "tune+retrieve": dear}
    rows = rows_of({"tune": right(0.9, 40), "tune+retrieve": right(0.9, 40, 0.5)})
    rows = [replace(row, prompt_tokens=tokens[row.arm]) for row in rows]
    assert f" {text}." in decide("facts", rows, ARMS).reason


def test_an_open_dearer_arm_does_not_keep_it_open() -> None:
    scores = {"tune": right(0.80, 60), "tune+retrieve": right(0.75, 60, 0.3)}
    assert decide("facts", rows_of(scores), ARMS).status == "decided"


def test_equal_scores_and_prices_go_by_name_and_equal_scores_to_the_cheaper() -> None:
    same = right(0.7, 40)
    assert decide("facts", rows_of({"tune+retrieve": same, "tune": same}), ARMS).arm == "tune"
    free = Prices(0.0, 0.0)
    assert decide("facts", rows_of({"tune+retrieve": same, "few-shot": same}), ARMS, prices=free).arm == "few-shot"
    scores = {"few-shot": [1.0] * 39 + [0.0], "tune": [1.0] * 40}
    assert decide("facts", rows_of(scores), ARMS, margin=0.1, prices=free).arm == "tune"
    assert decide("facts", rows_of(scores), ARMS, margin=0.1).arm == "few-shot"


def test_fewer_than_ten_common_questions_decide_nothing() -> None:
    verdict = decide("facts", rows_of({"few-shot": [0.0] * 9, "tune": [1.0] * 9}), ARMS)
    assert (verdict.arm, verdict.status, verdict.questions_needed) == ("tune", "undecided", 10)
    assert verdict.reason == "Only 9 questions have a score for every arm; it takes at least 10 to tell arms apart."
    assert decide("facts", rows_of({"few-shot": [0.0] * 10, "tune": [1.0] * 10}), ARMS).status == "decided"
    assert "Only 1 question has" in decide("facts", rows_of({"few-shot": [0.0], "tune": [1.0]}), ARMS).reason


def test_one_arm_is_not_compared_with_anything() -> None:
    verdict = decide("facts", rows_of({"tune": right(0.9, 50), "oracle": [1.0] * 50}), ARMS)
    assert (verdict.arm, verdict.status, verdict.questions_needed) == ("tune", "undecided", None)
    assert verdict.reason.startswith("Only one arm, `tune`, was measured")
    assert verdict.smallest_difference == 1.0


def test_reference_arms_are_reported_but_never_win_nor_limit_the_questions() -> None:
    oracle: list[float | None] = [1.0] * 40 + [None] * 160
    scores: dict[str, Sequence[float | None]] = {"few-shot": right(0.5, 200), "tune": right(0.9, 200), "oracle": oracle}
    verdict = decide("facts", rows_of(scores), ARMS)
    summary = verdict.summary("oracle")
    assert verdict.arm == "tune"
    assert (summary.reference, summary.in_best_set, summary.n, summary.unscored) == (True, False, 40, 160)
    assert verdict.summary("tune").n == 200
    assert {c.b for c in verdict.comparisons} == {"few-shot", "oracle"}
    unscored = rows_of({"tune": right(0.9, 20), "few-shot": right(0.5, 20), "oracle": [None] * 20})
    assert [s.arm for s in decide("facts", unscored, ARMS).arms] == ["few-shot", "tune"]


def test_p_values_are_corrected_for_every_pair_and_reference_arms_by_themselves() -> None:
    scores = {
        "few-shot": right(0.62, 120, 0.2),
        "tune": right(0.8, 120),
        "tune+retrieve": right(0.66, 120, 0.5),
        "oracle": right(0.9, 120, 0.4),
    }
    verdict = decide("facts", rows_of(scores), ARMS, seed=3)
    x = {name: np.array(values) for name, values in scores.items()}
    raced = holm([permutation_p_value(x["tune"], x[name], 3) for name in ("few-shot", "tune+retrieve")], family=3)
    oracle = holm([permutation_p_value(x["tune"], x["oracle"], 3)], family=3)
    assert [(c.b, c.p_value) for c in verdict.comparisons] == [
        ("few-shot", raced[0]),
        ("tune+retrieve", raced[1]),
        ("oracle", oracle[0]),
    ]
    without = decide("facts", rows_of({name: v for name, v in scores.items() if name != "oracle"}), ARMS, seed=3)
    assert without.comparisons == verdict.comparisons[:2]


def test_the_probability_of_being_best_is_that_of_the_arms_that_can_win() -> None:
    scores = {"few-shot": right(0.75, 60, 0.3), "tune": right(0.8, 60), "oracle": [1.0] * 60}
    verdict = decide("facts", rows_of(scores), ARMS, seed=2)
    expected = probability_best({name: np.array(scores[name]) for name in ("few-shot", "tune")}, 2)
    assert {s.arm: s.probability_best for s in verdict.arms} == {**expected, "oracle": 0.0}
    assert 0.5 < expected["tune"] < 1.0


# --- clusters ---


def test_questions_of_one_document_are_resampled_together() -> None:
    tune, few = right(0.80, 60), right(0.7, 60, 0.3)
    rows = rows_of({"few-shot": few * 4, "tune": tune * 4})  # four copies of each question
    copies = {f"q{i:04}": f"document {i % 60}" for i in range(240)}
    plain, clustered = decide("facts", rows, ARMS), decide("facts", rows, ARMS, clusters=copies)
    once = decide("facts", rows_of({"few-shot": few, "tune": tune}), ARMS)
    assert plain.status == "decided"
    assert clustered.status == once.status == "undecided"
    assert clustered.smallest_difference == pytest.approx(once.smallest_difference)
    assert clustered.comparisons[0].p_value == pytest.approx(once.comparisons[0].p_value, abs=0.02)
    assert clustered.questions_needed == pytest.approx(4 * (once.questions_needed or 0), abs=4)
    assert clustered.summary("tune").score.low == pytest.approx(once.summary("tune").score.low, abs=0.01)


def test_a_question_without_a_cluster_stands_alone() -> None:
    rows = rows_of({"few-shot": right(0.7, 60, 0.3), "tune": right(0.8, 60)})
    named = {f"q{i:04}": f"question q{i:04}" for i in range(60)}
    assert decide("facts", rows, ARMS, clusters={}) == decide("facts", rows, ARMS, clusters=named)


def test_fewer_than_ten_sources_decide_nothing() -> None:
    rows = rows_of({"few-shot": [0.0] * 45, "tune": [1.0] * 45})
    verdict = decide("facts", rows, ARMS, clusters={f"q{i:04}": f"document {i % 9}" for i in range(45)})
    assert (verdict.arm, verdict.status, verdict.questions_needed) == ("tune", "undecided", 50)
    assert verdict.reason == (
        "The 45 questions that have a score for every arm come from only 9 sources; "
        "it takes at least 10 sources to tell arms apart."
    )
    assert all(s.in_best_set for s in verdict.arms)
    one = decide("facts", rows, ARMS, clusters=dict.fromkeys((f"q{i:04}" for i in range(45)), "manual"))
    assert "come from only 1 source;" in one.reason
    assert (
        decide("facts", rows, ARMS, clusters={f"q{i:04}": f"document {i % 10}" for i in range(45)}).status == "decided"
    )


# --- racing ---


def raced(scores: Mapping[str, Sequence[float | None]], asked: Mapping[str, int]) -> list[Row]:
    """Rows of a race: some arms answered only the first questions."""
    return rows_of({name: values[: asked.get(name, len(values))] for name, values in scores.items()})


def test_a_dropped_arm_is_out_and_keeps_its_own_questions() -> None:
    scores = {"prompt": right(0.1, 200), "few-shot": right(0.86, 200, 0.3), "tune": right(0.9, 200)}
    verdict = decide("facts", raced(scores, {"prompt": 24}), ARMS, dropped={"prompt": 17})
    dropped = verdict.summary("prompt")
    assert (dropped.n, dropped.unscored, dropped.dropped_after, dropped.in_best_set) == (24, 0, 17, False)
    assert dropped.score.mean == pytest.approx(np.mean(scores["prompt"][:24]))
    assert dropped.seconds_p50 == pytest.approx(1.25)  # of 0.1 to 2.4 seconds
    assert dropped.probability_best == 0.0
    assert [(s.n, s.unscored, s.dropped_after) for s in verdict.arms if s is not dropped] == [(200, 0, None)] * 2
    against = next(c for c in verdict.comparisons if c.b == "prompt")
    assert against.wins + against.ties + against.losses == 24
    assert against.difference.mean == pytest.approx(np.mean(scores["tune"][:24]) - dropped.score.mean)
    assert against.p_value == 0.02  # racing stopped it when it looked worst
    assert verdict.arm == "tune"
    assert verdict.reason.endswith("`prompt` was shown worse early and dropped after 17 questions.")


def test_the_best_set_gets_the_error_that_racing_left() -> None:
    scores = {"few-shot": right(0.75, 90, 0.3), "tune": right(0.8, 90), "tune+retrieve": right(0.84, 90, 0.1)}
    x = {name: np.array(values) for name, values in scores.items()}
    for seed in range(3):
        for dropped, confidence in ((None, 0.95), ({}, 0.97)):
            verdict = decide("facts", rows_of(scores), ARMS, seed=seed, dropped=dropped)
            assert {s.arm for s in verdict.arms if s.in_best_set} == best_set(x, confidence, seed)[0]


def test_racing_can_cost_the_decision() -> None:
    """A difference that 5 % of error just shows is not shown by the 3 % that racing leaves."""
    tune = [1.0] * 70
    few = [0.0] * 5 + [1.0] * 65
    rows = rows_of({"few-shot": few, "tune": tune})
    assert decide("facts", rows, ARMS, dropped=None).status == "decided"
    assert decide("facts", rows, ARMS, dropped={}).status == "undecided"
    assert decide("facts", rows, ARMS, dropped={}, racing_alpha=0.0).status == "decided"


def test_one_arm_left_is_decided_by_racing() -> None:
    scores = {"prompt": right(0.1, 80), "few-shot": right(0.4, 80, 0.3), "tune": right(0.9, 80), "oracle": [1.0] * 80}
    verdict = decide(
        "facts", raced(scores, {"prompt": 24, "few-shot": 60}), ARMS, dropped={"prompt": 20, "few-shot": 48}
    )
    assert (verdict.arm, verdict.status, verdict.questions_needed) == ("tune", "decided", None)
    assert re.fullmatch(
        r"`tune` scores 0\.90 \(0\.\d\d to 0\.\d\d\), and no arm scores higher\. "
        r"`few-shot`, the best of the 2 cheaper arms, is worse by 0\.5\d \(0\.3\d to 0\.6\d\) "
        r"on the 60 questions that both answered\. "
        r"All other arms were shown worse early and dropped after 20 to 48 questions\.",
        verdict.reason,
    )
    assert verdict.summary("tune").probability_best == 1.0
    assert {c.b for c in verdict.comparisons} == {"prompt", "few-shot", "oracle"}
    assert 0 < verdict.smallest_difference < 1


def test_dropped_arms_do_not_limit_the_questions_nor_their_gaps_anyone() -> None:
    prompt: list[float | None] = [None] * 4 + [0.0] * 20
    scores: dict[str, Sequence[float | None]] = {"prompt": prompt, "few-shot": right(0.5, 90), "tune": right(0.9, 90)}
    verdict = decide("facts", rows_of(scores), ARMS, dropped={"prompt": 22})
    assert [(s.n, s.unscored) for s in verdict.arms] == [(20, 4), (90, 0), (90, 0)]
    plain = decide("facts", rows_of({name: v for name, v in scores.items() if name != "prompt"}), ARMS, dropped={})
    assert [s for s in verdict.arms if s.arm != "prompt"] == list(plain.arms)


def test_what_was_dropped_must_have_raced() -> None:
    rows = rows_of({"few-shot": right(0.5, 20), "tune": right(0.9, 20), "oracle": [1.0] * 20})
    with pytest.raises(InputError, match="'oracle' was dropped, but it has no rows or is a reference arm"):
        decide("facts", rows, ARMS, dropped={"oracle": 10})
    with pytest.raises(InputError, match="'prompt' was dropped, but it has no rows"):
        decide("facts", rows, ARMS, dropped={"prompt": 10})
    with pytest.raises(InputError, match="all arms were dropped"):
        decide("facts", rows, ARMS, dropped={"tune": 10, "few-shot": 10})
    with pytest.raises(ConfigError, match=r"racing_alpha is 0\.05, expected at least 0 and less than the 0\.05"):
        decide("facts", rows, ARMS, dropped={}, racing_alpha=0.05)


# --- all together ---


def test_unscored_questions_count_for_no_arm() -> None:
    """Both arms score 1.0 on the twenty questions they share; 0 for the unscored ones would say otherwise."""
    few: list[float | None] = [None] * 5 + [1.0] * 20
    rows = rows_of({"few-shot": few, "tune": [0.0] * 5 + [1.0] * 20})
    verdict = decide("facts", [*rows, *rows_of({"tune": [0.0] * 50}, task="other")], ARMS)
    assert verdict.arm == "few-shot"
    assert [(s.n, s.unscored, s.score.mean) for s in verdict.arms] == [(20, 5, 1.0), (20, 0, 1.0)]
    missing = [row for row in rows if row.score is not None]
    assert decide("facts", missing, ARMS) == verdict  # a missing row is an unscored question


def test_summaries_are_those_of_the_common_questions() -> None:
    rows = rows_of({"few-shot": right(0.5, 20), "tune": right(0.9, 20)})
    rows = [replace(row, output_tokens=10) for row in rows]
    summary = decide("facts", rows, ARMS, prices=Prices(0.05, 0.20, 1.0)).summary("tune")
    assert summary.cost == pytest.approx((400 * 0.05 + 10 * 0.2 + 1.05 * 1.0) / 1000)  # mean of 0.1 .. 2.0 s is 1.05
    assert (summary.prompt_tokens, summary.output_tokens) == (400, 10)
    assert (summary.seconds_p50, summary.seconds_p95) == pytest.approx((1.05, 1.905))


def test_time_does_not_change_a_verdict_by_default() -> None:
    rows = rows_of({"few-shot": right(0.9, 40), "tune": right(0.9, 40, 0.2)})
    slow = [replace(row, seconds=row.seconds * 100 if row.arm == "few-shot" else row.seconds) for row in rows]
    verdict, slowed = decide("facts", rows, ARMS), decide("facts", slow, ARMS)
    assert (verdict.arm, verdict.reason) == (slowed.arm, slowed.reason)


def test_the_order_of_rows_does_not_matter_and_equal_seeds_give_equal_verdicts() -> None:
    rows = rows_of({"few-shot": right(0.75, 60, 0.3), "tune": right(0.8, 60), "oracle": right(0.95, 60)})
    shuffled = rows[:]
    random.Random(1).shuffle(shuffled)
    assert decide("facts", rows, ARMS, seed=5) == decide("facts", shuffled, ARMS, seed=5)


def test_smallest_difference_is_that_of_the_choice_and_the_best_other_arm() -> None:
    tune, few = right(0.80, 60), right(0.75, 60, 0.3)
    verdict = decide("facts", rows_of({"prompt": [0.0] * 60, "few-shot": few, "tune": tune}), ARMS)
    spread = (np.array(tune) - np.array(few)).std(ddof=1)
    assert verdict.smallest_difference == pytest.approx(2.8016 * spread / 60**0.5, rel=1e-4)
    tie = decide("facts", rows_of({"few-shot": few, "tune": few}), ARMS)
    assert tie.smallest_difference == pytest.approx(1 - 0.025 ** (1 / 60))


def test_wrong_inputs_say_what_is_wrong() -> None:
    rows = rows_of({"few-shot": right(0.5, 20), "tune": right(0.9, 20)})
    with pytest.raises(ConfigError, match=r"margin is -0\.1, expected 0 or more"):
        decide("facts", rows, ARMS, margin=-0.1)
    with pytest.raises(InputError, match="rows of arm 'tune'; the arms given are few-shot"):
        decide("facts", rows, {"few-shot": ARMS["few-shot"]})
    with pytest.raises(InputError, match="question 'q0003' has two rows"):
        decide("facts", [*rows, rows[3]], ARMS)
    with pytest.raises(InputError, match="no rows of an arm that can win"):
        decide("other", rows, ARMS)
    with pytest.raises(InputError, match="'few-shot' has a score for 0"):
        decide("facts", rows_of({"few-shot": [None] * 20, "tune": [1.0] * 20}), ARMS)


def test_decided_verdicts_are_right_about_a_known_truth() -> None:
    """True means 0.55, 0.60 and 0.80: a decided verdict for the cheap, worse arms is an error."""
    rng = np.random.default_rng(6)
    wrong = decided = 0
    for i in range(60):
        hard = rng.random(80)
        scores = {
            name: list(((0.5 * hard + 0.5 * rng.random(80)) < cut).astype(float))
            for name, cut in [("prompt", 0.525), ("few-shot", 0.55), ("tune", 0.68)]
        }
        verdict = decide("facts", rows_of(scores), ARMS, seed=i)
        decided += verdict.status == "decided"
        wrong += verdict.status == "decided" and verdict.arm != "tune"
    assert wrong <= 0.05 * 60
    assert decided >= 0.5 * 60
