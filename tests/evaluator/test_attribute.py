from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtune.errors import InputError
from ragtune.evaluator.attribute import Cause, Diagnosis, Remedy, diagnose
from ragtune.evaluator.compare import mean_interval
from ragtune.types import AnswerFormat, Arm, Question, Row, Span, Task

CLOSED = Arm("tune", few_shot=False, passages="none", weights="tune")
OPEN = Arm("raft", few_shot=False, passages="retrieved", weights="raft")
EVIDENCE = (Span("a.md", 0, 6, "10 May"),)


@dataclass(frozen=True)
class Case:
    """One question as the arm answered it: wrong in a way that only the settings below change."""

    score: float | None = 0.0
    oracle: float | None = 1.0
    recall: float | None = 1.0
    text: str = "in the autumn"
    refused: bool = False
    evidence: bool = True
    answerable: bool = True
    valid_json: float | None = None
    field_match: float | None = None


def task_of(format: AnswerFormat = "short") -> Task:
    return Task("facts", ("Answer.",), "token_f1", format, (), ("Anchor", "Pilot"))


def explain(cases: Sequence[Case], arm: Arm = OPEN, format: AnswerFormat = "short", **options: object) -> Diagnosis:
    """The diagnosis of questions q00, q01, ... with rows of the arm and of the oracle."""
    questions, rows = {}, []
    for i, case in enumerate(cases):
        id = f"q{i:02}"
        answers = ("10 May",) if case.answerable else ()
        questions[id] = Question(id, "When?", answers, "facts", "test", EVIDENCE if case.evidence else ())
        scores = {"valid_json": case.valid_json, "field_match": case.field_match}
        if arm.passages != "none" and case.evidence:
            scores["recall_at_k"] = case.recall
        row = Row("facts", id, arm.name, case.score, scores, case.text, (), (), 1, 1, 0.1, case.refused)
        rows += [row, replace(row, arm="oracle", score=case.oracle, text="10 May")]
    return diagnose(task_of(format), arm, rows, questions, **options)  # type: ignore[arg-type]


def cause_of(case: Case, arm: Arm = OPEN, format: AnswerFormat = "short") -> Cause:
    (count,) = explain([case], arm, format).causes
    return count.cause


RULES: list[tuple[str, Cause, Case]] = [
    ("half of the score is right", "right", Case(score=0.5)),
    ("right without evidence read", "right", Case(score=1.0, recall=0.0)),
    ("right to refuse", "right", Case(score=1.0, answerable=False, evidence=False, refused=True)),
    ("answered what has no answer", "unjustified answer", Case(answerable=False, evidence=False)),
    ("states it among other words", "format failure", Case(text="It should be the 10 May, I think", score=0.4)),
    ("states it, evidence or not", "format failure", Case(text="It is on 10 May, yes, I think", recall=0.0)),
    ("evidence missed", "retrieval miss", Case(recall=0.0)),
    ("half of the evidence missed", "retrieval miss", Case(recall=0.5)),
    ("nothing was found at all", "retrieval miss", Case(recall=None)),
    ("missed, and said so", "retrieval miss", Case(recall=0.0, refused=True)),
    ("missed, oracle wrong yet better", "retrieval miss", Case(recall=0.0, score=0.1, oracle=0.3)),
    ("missed, no oracle to ask", "retrieval miss", Case(recall=0.0, oracle=None)),
    ("missed, but the oracle was no better", "reading failure", Case(recall=0.0, score=0.2, oracle=0.2)),
    ("missed and refused, oracle no better", "reading failure", Case(recall=0.0, refused=True, oracle=0.0)),
    ("evidence read", "reading failure", Case()),
    ("evidence read, oracle wrong", "reading failure", Case(oracle=0.0)),
    ("evidence read, refused", "wrong refusal", Case(refused=True)),
    ("a refusal states nothing", "wrong refusal", Case(refused=True, text="I cannot say whether it is 10 May.")),
    ("no evidence known, refused", "wrong refusal", Case(evidence=False, refused=True)),
    ("no evidence known", "knowledge gap", Case(evidence=False)),
]


@pytest.mark.parametrize(("expected", "case"), [rule[1:] for rule in RULES], ids=[rule[0] for rule in RULES])
def test_the_rules_for_an_arm_with_passages(expected: Cause, case: Case) -> None:
    assert cause_of(case) == expected


@pytest.mark.parametrize(
    ("expected", "case"),
    [
        ("right", Case(score=0.7)),
        ("unjustified answer", Case(answerable=False, evidence=False)),
        ("format failure", Case(text="That is the 10 May of each year, I believe", score=0.3)),
        ("knowledge gap", Case()),
        ("knowledge gap", Case(refused=True)),
        ("knowledge gap", Case(oracle=0.0)),
        ("knowledge gap", Case(evidence=False)),
    ],
)
def test_the_rules_for_an_arm_without_passages(expected: Cause, case: Case) -> None:
    assert cause_of(case, CLOSED) == expected


@pytest.mark.parametrize(
    ("format", "expected", "case"),
    [
        ("json", "format failure", Case(text="10 May", valid_json=0.0, field_match=0.0)),
        # a record with words around it was read: its fields are wrong, not its form
        ("json", "reading failure", Case(score=0.2, text='Here: {"day": 11}', valid_json=0.0, field_match=0.2)),
        ("json", "reading failure", Case(text='{"day": "10 May is wrong"}', valid_json=1.0, field_match=0.0)),
        ("label", "format failure", Case(text="Anchor, because of the 10 May")),
        ("label", "reading failure", Case(text=" anchor")),
        ("text", "format failure", Case(text="on 10 May and at other times, too", score=0.3)),
    ],
)
def test_form_is_judged_by_the_task_s_format(format: AnswerFormat, expected: Cause, case: Case) -> None:
    assert cause_of(case, format=format) == expected


def test_every_cause_is_tested() -> None:
    assert {rule[1] for rule in RULES} == set(get_args(Cause))


def test_counts_shares_and_examples() -> None:
    cases = [Case(recall=0.0)] * 5 + [Case(score=1.0)] * 3 + [Case(score=None)] * 2 + [Case()] * 2
    result = explain(cases, seed=7)
    assert (result.task, result.arm, result.n) == ("facts", "raft", 10)
    assert [(c.cause, c.count, c.examples) for c in result.causes] == [
        ("right", 3, ("q05", "q06", "q07")),
        ("retrieval miss", 5, ("q00", "q01", "q02")),
        ("reading failure", 2, ("q10", "q11")),
    ]
    indicator = np.array([0.0] * 5 + [1.0] * 3 + [0.0] * 2)
    assert result.causes[0].share == mean_interval(indicator, seed=7)


def test_gains_by_hand() -> None:
    """Ten questions; each remedy's gain is a sum of what it would add, divided by ten."""
    cases = [
        Case(score=0.0, recall=0.0, oracle=1.0),  # retrieval +1
        Case(score=0.2, recall=0.5, oracle=0.6),  # retrieval +0.4
        Case(score=1.0, recall=0.0, oracle=0.5),  # right without the evidence: retrieval -0.5
        Case(score=0.3, recall=0.0, oracle=0.3),  # a reading failure that better search would not change
        Case(score=0.4, recall=1.0, oracle=1.0),  # reading +0.6
        Case(score=0.0, refused=True),  # refusals +1
        Case(score=0.0, answerable=False, evidence=False),  # refusals +1
        Case(score=0.2, text="on 10 May, they say, or so it seems"),  # format +0.8
        Case(score=0.8),  # right: nothing, though a perfect answer has 1.0
        Case(score=1.0),
    ]
    result = explain(cases)
    assert {r.name: r.gain.mean for r in result.remedies} == pytest.approx(
        {"perfect refusals": 0.2, "perfect retrieval": 0.09, "perfect format": 0.08, "perfect reading": 0.06}
    )
    assert [r.gain.mean for r in result.remedies] == sorted((r.gain.mean for r in result.remedies), reverse=True)
    added = np.array([0.0] * 5 + [1.0, 1.0] + [0.0] * 3)
    assert result.remedies[0] == Remedy("perfect refusals", mean_interval(added, bounds=(-1.0, 1.0)))


def test_remedies_that_apply_nowhere_are_left_out() -> None:
    assert explain([Case(score=1.0)] * 5).remedies == ()
    assert [r.name for r in explain([Case()] * 5 + [Case(score=1.0)]).remedies] == ["perfect reading"]
    # without the oracle nobody knows what better search would bring
    assert explain([Case(recall=0.0, oracle=None)] * 5).remedies == ()


def test_an_arm_without_passages_gains_what_the_oracle_gains() -> None:
    (remedy,) = explain([Case(score=0.0, oracle=1.0), Case(score=1.0, oracle=0.5)], CLOSED).remedies
    assert (remedy.name, remedy.gain.mean) == ("perfect retrieval", pytest.approx(0.25))


def test_what_the_oracle_has_no_score_for_says_nothing_about_retrieval() -> None:
    cases = [Case(recall=0.0, oracle=1.0), Case(recall=0.0, oracle=None), Case(score=1.0), Case(score=1.0, oracle=None)]
    (remedy,) = explain(cases).remedies
    assert remedy.gain.mean == pytest.approx(0.5)  # of the two questions that both scored


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.builds(
            Case,
            score=st.none() | st.sampled_from([0.0, 0.2, 0.5, 1.0]),
            oracle=st.none() | st.sampled_from([0.0, 0.2, 1.0]),
            recall=st.sampled_from([None, 0.0, 0.5, 1.0]),
            text=st.sampled_from(["autumn", "on 10 May"]),
            refused=st.booleans(),
            evidence=st.booleans(),
            answerable=st.booleans(),
        ),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from([OPEN, CLOSED]),
)
def test_each_scored_question_has_one_cause_and_cures_stay_within_what_is_lost(cases: list[Case], arm: Arm) -> None:
    cases = [Case(score=0.0), *cases]
    result = explain(cases, arm)
    scored = [case.score for case in cases if case.score is not None]
    assert sum(count.count for count in result.causes) == result.n == len(scored)
    assert sum(count.share.mean for count in result.causes) == pytest.approx(1.0)
    cures = sum(r.gain.mean for r in result.remedies if r.name != "perfect retrieval")
    assert cures <= 1 - np.mean(scored) + 1e-12
    gains = [r.gain.mean for r in result.remedies]
    assert gains == sorted(gains, reverse=True)


def test_the_order_of_rows_and_other_tasks_do_not_matter() -> None:
    questions = {f"q{i}": Question(f"q{i}", "When?", ("10 May",), "facts", "test", EVIDENCE) for i in range(6)}
    rows = [
        Row("facts", id, arm, score, {"recall_at_k": float(i % 2)}, "autumn", (), (), 1, 1, 0.1, False)
        for i, id in enumerate(questions)
        for arm, score in (("raft", float(i > 3)), ("oracle", 1.0))
    ]
    others = [replace(row, task="routing", score=1.0 - (row.score or 0.0)) for row in rows]
    expected = diagnose(task_of(), OPEN, rows, questions)
    assert diagnose(task_of(), OPEN, [*others, *reversed(rows)], questions) == expected
    assert [c.count for c in expected.causes] == [2, 2, 2]


def test_questions_that_go_together_widen_the_intervals() -> None:
    """Four copies of each question tell no more than one of them."""
    cases = [case for case in [Case(recall=0.0), Case(score=1.0), Case()] * 8 for _ in range(4)]
    alone = explain(cases)
    together = explain(cases, clusters={f"q{i:02}": f"d{i // 4}" for i in range(96)})
    for one, other in zip(alone.remedies, together.remedies, strict=True):
        assert (one.name, one.gain.mean) == (other.name, other.gain.mean)
        assert other.gain.high - other.gain.low > 1.5 * (one.gain.high - one.gain.low)


def test_wrong_inputs_say_what_is_wrong() -> None:
    with pytest.raises(InputError, match="arm 'raft' has no score on task 'facts'"):
        explain([Case(score=None)] * 3)
    row = Row("facts", "q9", "raft", 1.0, {}, "", (), (), 1, 1, 0.1, False)
    with pytest.raises(InputError, match="'facts' has a row of question 'q9', which is not among those given"):
        diagnose(task_of(), OPEN, [row], {})


def test_the_gain_of_perfect_retrieval_is_the_true_one() -> None:
    """Search misses 30 %; right are 80 % with the evidence and 10 % without it: 0.3 x (0.8 - 0.1) = 0.21."""
    inside, gains = 0, []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        cases = []
        for _ in range(100):
            missed, reads, guesses = rng.random(3) < (0.3, 0.8, 0.1)
            cases.append(Case(float(guesses if missed else reads), oracle=float(reads), recall=float(not missed)))
        gain = next(r.gain for r in explain(cases, seed=seed % 4).remedies if r.name == "perfect retrieval")
        gains.append(gain.mean)
        inside += gain.low <= 0.21 <= gain.high
    assert np.mean(gains) == pytest.approx(0.21, abs=0.02)
    assert inside >= 51  # 0.95 of 60, less three and a half standard errors
