import contextlib
import io
import itertools
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtune.evaluator.compare import mean_interval
from ragtune.evaluator.ingredients import GRID, INGREDIENTS, Coalition, Ingredients, ingredients, shapley
from ragtune.types import Arm, Row

ARMS = {
    name: Arm(name, few_shot, passages, weights, reference)  # type: ignore[arg-type]
    for name, few_shot, passages, weights, reference in [
        ("prompt", False, "none", "base", False),
        ("few-shot", True, "none", "base", False),
        ("retrieve", False, "retrieved", "base", False),
        ("retrieve+few-shot", True, "retrieved", "base", False),
        ("tune", False, "none", "tune", False),
        ("tune+retrieve", False, "retrieved", "tune", False),
        ("raft", False, "retrieved", "raft", False),
        ("oracle", False, "gold", "raft", True),
        ("raft-closed", False, "none", "raft", True),
    ]
}
SIX = [name for name in GRID if name != "tune+retrieve"]
MEANS = {"prompt": 0.1, "few-shot": 0.2, "retrieve": 0.4, "retrieve+few-shot": 0.45, "tune": 0.3, "raft": 0.8}


def rows_of(scores: Mapping[str, Sequence[float | None]], task: str = "facts") -> list[Row]:
    return [
        Row(task, f"q{i:04}", arm, score, {}, "", (), (), 1, 1, 0.1, False)
        for arm, values in scores.items()
        for i, score in enumerate(values)
    ]


def noisy(means: Mapping[str, float], n: int, seed: int) -> dict[str, list[float]]:
    """Right or wrong with the given probabilities; hard questions are hard for every arm."""
    rng = np.random.default_rng(seed)
    hard = rng.random(n)
    # half of the questions share their luck among the arms, the others don't
    luck = {arm: np.where(rng.random(n) < 0.5, hard, rng.random(n)) for arm in means}
    return {arm: list((luck[arm] < mean).astype(float)) for arm, mean in means.items()}


def found(scores: Mapping[str, Sequence[float | None]], **options: object) -> Ingredients:
    result = ingredients("facts", rows_of(scores), ARMS, **options)  # type: ignore[arg-type]
    assert result is not None
    return result


def test_shares_and_effects_by_hand() -> None:
    """v(-) .1, v(P) .2, v(R) .4, v(PR) .45, v(T) = v(PT) .3, v(RT) = v(PRT) .8."""
    result = found({arm: [mean] * 12 for arm, mean in MEANS.items()})
    assert (result.task, result.n) == ("facts", 12)
    assert result.gain.mean == pytest.approx(0.7)
    assert {share.name: share.value.mean for share in result.shares} == pytest.approx(
        {
            "prompting": (0.2 - 0.1) / 3 + (0.45 - 0.4) / 6,
            "retrieval": (0.4 - 0.1) / 3 + (0.45 - 0.2) / 6 + (0.8 - 0.3) / 6 + (0.8 - 0.3) / 3,
            "tuning": (0.3 - 0.1) / 3 + (0.3 - 0.2) / 6 + (0.8 - 0.4) / 6 + (0.8 - 0.45) / 3,
        }
    )
    assert {effect.name: effect.value.mean for effect in result.effects} == pytest.approx(
        {
            "prompting": (0.1 + 0.05) / 2,
            "retrieval": (0.3 + 0.25 + 0.5) / 3,
            "tuning": (0.2 + 0.4) / 2,
            "prompting x retrieval": 0.05 - 0.1,
            "retrieval x tuning": 0.5 - 0.3,
        }
    )


@given(st.lists(st.floats(0, 1), min_size=8, max_size=8))
def test_shapley_is_the_mean_over_all_orders_of_adding(values: list[float]) -> None:
    """The definition of Shapley's value, for any game of three players."""
    coalitions = [Coalition(c) for size in range(4) for c in itertools.combinations(INGREDIENTS, size)]
    v = dict(zip(coalitions, np.array(values)[:, None], strict=True))
    for name in INGREDIENTS:
        added = []
        for order in itertools.permutations(INGREDIENTS):
            before = Coalition(order[: order.index(name)])
            added.append(float((v[before | {name}] - v[before])[0]))
        assert shapley(v, name)[0] == pytest.approx(np.mean(added), abs=1e-12)
    total = sum(float(shapley(v, name)[0]) for name in INGREDIENTS)
    assert total == pytest.approx(values[-1] - values[0], abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(*[st.floats(0, 1)] * 6), min_size=1, max_size=15))
def test_shares_sum_to_the_gain(questions: list[tuple[float, ...]]) -> None:
    result = found(dict(zip(SIX, zip(*questions, strict=True), strict=True)))
    assert sum(share.value.mean for share in result.shares) == pytest.approx(result.gain.mean, abs=1e-12)
    for value in (result.gain, *(effect.value for effect in (*result.shares, *result.effects))):
        assert value.low - 1e-9 <= value.mean <= value.high + 1e-9


def test_an_ingredient_that_changes_nothing_has_no_share() -> None:
    scores = noisy({"prompt": 0.3, "retrieve": 0.7}, 60, 1)
    scores |= {"few-shot": scores["prompt"], "tune": scores["prompt"]}
    scores |= {"retrieve+few-shot": scores["retrieve"], "raft": scores["retrieve"]}
    result = found(scores)
    shares = {share.name: share.value for share in result.shares}
    assert shares["retrieval"] == result.gain
    assert shares["prompting"].mean == shares["tuning"].mean == 0.0


def test_the_gain_has_the_paired_interval_of_its_two_arms() -> None:
    scores = noisy(MEANS, 80, 2)
    difference = np.array(scores["raft"]) - np.array(scores["prompt"])
    assert found(scores, seed=9).gain == mean_interval(difference, seed=9, bounds=(-1.0, 1.0))


def test_raft_stands_for_retrieval_and_tuning_where_it_was_measured() -> None:
    scores = {arm: [mean] * 12 for arm, mean in MEANS.items()} | {"tune+retrieve": [0.5] * 12}
    assert found(scores).gain.mean == pytest.approx(0.7)
    without = {arm: values for arm, values in scores.items() if arm != "raft"}
    assert found(without).gain.mean == pytest.approx(0.4)
    # reference arms play no part, and the order of the rows doesn't either
    rows = rows_of(scores | {"oracle": [1.0] * 12, "raft-closed": [0.9] * 12})
    random.Random(4).shuffle(rows)
    assert ingredients("facts", rows, dict(reversed(ARMS.items()))) == found(scores)


def test_only_questions_that_all_six_scored_are_used() -> None:
    scores: dict[str, Sequence[float | None]] = {arm: [0.5] * 20 for arm in SIX}
    scores["few-shot"] = [1.0] * 8  # dropped after 8 questions
    scores["raft"] = [None, *[1.0] * 19]
    result = found(scores)
    assert (result.n, result.gain.mean) == (7, 0.5)
    rows = [row for row in rows_of(scores) if row.score is not None]
    assert ingredients("facts", rows, ARMS) == result  # a missing row is an unscored question


@pytest.mark.parametrize("missing", [name for name in SIX if name != "raft"])
def test_without_one_of_the_arms_there_are_no_shares(missing: str) -> None:
    scores = {arm: [0.5] * 12 for arm in SIX}
    assert ingredients("facts", rows_of({a: s for a, s in scores.items() if a != missing}), ARMS) is None
    assert ingredients("facts", rows_of(scores), {n: a for n, a in ARMS.items() if n != missing}) is None


def test_without_rows_or_a_common_question_there_are_no_shares() -> None:
    scores = {arm: [0.5] * 12 for arm in SIX}
    assert ingredients("other", rows_of(scores), ARMS) is None
    apart = [replace(r, question_id="x" + r.question_id) if r.arm == "tune" else r for r in rows_of(scores)]
    assert ingredients("facts", apart, ARMS) is None


def test_questions_that_go_together_widen_the_intervals() -> None:
    """Four copies of each question tell no more than one of them."""
    scores = {arm: [s for s in values for _ in range(4)] for arm, values in noisy(MEANS, 25, 5).items()}
    alone, together = found(scores), found(scores, clusters={f"q{i:04}": f"d{i // 4}" for i in range(100)})
    for one, other in zip((*alone.shares, *alone.effects), (*together.shares, *together.effects), strict=True):
        assert other.value.mean == one.value.mean
        assert other.value.high - other.value.low > 1.5 * (one.value.high - one.value.low)


def test_intervals_hold_a_known_truth() -> None:
    """200 simulated tasks of 50 questions: each 95 % interval holds the true share or effect about as often."""
    truth = found({arm: [mean] * 12 for arm, mean in MEANS.items()})
    tasks = 200
    inside = {}
    for i in range(tasks):
        result = found(noisy(MEANS, 50, 100 + i), seed=i % 4)
        for kind in ("shares", "effects"):
            for true, seen in zip(getattr(truth, kind), getattr(result, kind), strict=True):
                hit = seen.value.low <= true.value.mean <= seen.value.high
                inside[kind, seen.name] = inside.get((kind, seen.name), 0) + hit
    assert len(inside) == 8
    # the lower limit is 0.95 less three standard errors of 200 draws
    assert min(inside.values()) >= (0.95 - 3 * (0.95 * 0.05 / tasks) ** 0.5) * tasks, inside


def test_the_example_of_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "findings.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```\n\n^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for code, expected in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, {})
        assert printed.getvalue() == expected
