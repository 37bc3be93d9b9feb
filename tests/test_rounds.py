"""Rounds against scripted arms whose true scores are known."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtune.config import EvaluateConfig
from ragtune.errors import InputError
from ragtune.rounds import Contest, Pace, clusters_of, generations, random_order, rows_of, run_rounds
from ragtune.types import Arm, Question, Row, Span

QUESTIONS = tuple(Question(f"q{i:03}", f"Which one is {i}?", ("it",), "facts", "test") for i in range(200))
GOOD, MIDDLING, BAD = (Arm(name, False, "none", "base") for name in ("good", "middling", "bad"))
ORACLE = Arm("oracle", False, "gold", "raft", reference=True)
RACING, NO_RACING = EvaluateConfig(), EvaluateConfig(racing_error=0)
TRUTH = {"good": 0.9, "middling": 0.88, "bad": 0.1, "oracle": 0.0}


def row(task: str, question: str, arm: str, score: float | None) -> Row:
    return Row(task, question, arm, score, {}, "", (), (), 1, 1, 0.1, False)


class Asked:
    """An `ask` that flips a coin per question and keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, tuple[str, ...]]] = []

    def __call__(self, arm: Arm, task: str, questions: Sequence[Question]) -> list[Row]:
        self.calls.append((arm.name, task, tuple(q.id for q in questions)))
        coins = [random.Random(f"{arm.name}/{task}/{q.id}").random() < TRUTH[arm.name] for q in questions]
        return [row(task, q.id, arm.name, float(coin)) for q, coin in zip(questions, coins, strict=True)]


def contest(*arms: Arm, task: str = "facts", n: int = 200) -> Contest:
    return Contest(task, QUESTIONS[:n], arms)


def test_a_bad_arm_is_dropped_and_asked_no_more() -> None:
    race, ask = contest(GOOD, MIDDLING, BAD, ORACLE), Asked()
    run_rounds([race], ask, RACING)
    assert set(race.dropped) == {"bad"}
    assert race.dropped["bad"] <= len(race.rows["bad"]) < 100
    assert {len(race.rows[name]) for name in ("good", "middling", "oracle")} == {200}
    assert not race.open
    asked, in_full = generations([race])
    assert (asked, in_full) == (600 + len(race.rows["bad"]), 800)


def test_each_arm_is_asked_each_question_once_and_in_order() -> None:
    race, ask = contest(GOOD, MIDDLING), Asked()
    run_rounds([race], ask, RACING)
    for arm in ("good", "middling"):
        asked = [id for name, _, ids in ask.calls for id in ids if name == arm]
        assert asked == [q.id for q in QUESTIONS]
    assert [r.arm for r in rows_of([race])] == ["good"] * 200 + ["middling"] * 200


def test_a_race_of_two_ends_when_one_is_left() -> None:
    race, ask = contest(GOOD, BAD, ORACLE), Asked()
    run_rounds([race], ask, RACING)
    assert set(race.dropped) == {"bad"}
    assert race.asked < 100
    assert not race.open


def test_without_racing_everyone_answers_everything() -> None:
    race = contest(GOOD, BAD)
    run_rounds([race], Asked(), NO_RACING)
    assert race.dropped == {}
    assert {len(rows) for rows in race.rows.values()} == {200}


def test_one_arm_alone_answers_everything() -> None:
    race = contest(BAD, n=30)
    run_rounds([race], Asked(), RACING)
    assert len(race.rows["bad"]) == 30


def test_unscored_rows_do_not_drop_anybody() -> None:
    def ask(arm: Arm, task: str, questions: Sequence[Question]) -> list[Row]:
        return [row(task, q.id, arm.name, 1.0 if arm is GOOD else None) for q in questions]

    race = contest(GOOD, BAD)
    run_rounds([race], ask, RACING)
    assert race.dropped == {}


def test_rounds_drop_the_same_arms_when_they_are_run_again() -> None:
    races = [contest(GOOD, MIDDLING, BAD) for _ in range(2)]
    for race in races:
        run_rounds([race], Asked(), RACING)
    assert races[0].dropped == races[1].dropped
    assert rows_of(races[:1]) == rows_of(races[1:])


def test_a_budget_gives_each_task_a_first_round_and_then_ends() -> None:
    races = [contest(GOOD, MIDDLING, task="facts"), contest(GOOD, MIDDLING, task="other")]
    ticks = iter(range(100))
    run_rounds(races, Asked(), RACING, Pace(time_left=lambda: next(ticks) < 3))
    assert sorted(race.asked for race in races) == [24, 48]


def test_so_many_questions_and_no_more() -> None:
    races = [contest(GOOD, BAD, task="near"), contest(GOOD, MIDDLING, task="far")]
    ask = Asked()
    run_rounds(races, ask, NO_RACING, Pace(max_questions=60))
    assert [race.asked for race in races] == [36, 24]  # a first round each, then what is left where it tells most
    run_rounds(races, ask, NO_RACING, Pace(max_questions=60))
    assert [race.asked for race in races] == [36, 24]


def test_with_time_left_the_task_nearer_to_an_answer_goes_first() -> None:
    near, far = contest(GOOD, BAD, task="near"), contest(GOOD, MIDDLING, task="far")
    ask = Asked()
    run_rounds([far, near], ask, NO_RACING)
    assert [task for _, task, _ in ask.calls[:6:2]] == ["far", "near", "near"]


def test_a_budget_without_time_for_an_answer_is_an_error() -> None:
    with pytest.raises(InputError, match="give more time"):
        run_rounds([contest(GOOD)], Asked(), RACING, Pace(time_left=lambda: False))


def test_standings_are_shown_after_each_round() -> None:
    seen: list[int] = []
    race = contest(GOOD, MIDDLING, n=60)
    run_rounds([race], Asked(), RACING, Pace(standings=lambda contests: seen.append(contests[0].asked)))
    assert seen == [24, 48, 60]
    best, second = race.means()
    scores = [r.score or 0.0 for r in race.rows["good"]]
    assert best == ("good", pytest.approx(np.mean(scores)), pytest.approx(1.96 * np.std(scores) / 60**0.5))
    assert second[0] == "middling"


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 99), few=st.integers(0, 60), more=st.integers(0, 60))
def test_more_questions_begin_with_the_same_ones(seed: int, few: int, more: int) -> None:
    small, large = random_order(QUESTIONS, seed, few), random_order(QUESTIONS, seed, few + more)
    assert large[:few] == small
    assert len(set(large)) == few + more
    assert set(random_order(QUESTIONS, seed)) == set(QUESTIONS)


def test_questions_of_one_document_are_one_cluster() -> None:
    def asked(id: str, *documents: str) -> Question:
        return Question(id, id, ("a",), "facts", "test", tuple(Span(d, 0, 1, "a") for d in documents))

    questions = (asked("1", "rules.md"), asked("2", "rules.md", "fees.md"), asked("3", "fees.md"), asked("4"))
    assert clusters_of(questions) == {"1": "rules.md", "2": "rules.md", "3": "fees.md", "4": "4"}
