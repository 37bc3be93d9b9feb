"""Two runs against each other: worked numbers, what is compared and what is not, error rates by simulation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ragtune.errors import InputError
from ragtune.evaluator.regression import Results, RunComparison, TaskChange, compare_runs, sentence
from ragtune.types import Question, Row, Span

Scores = Mapping[str, Mapping[str, Sequence[float | None]]]


def results(scores: Scores, choices: Mapping[str, str] | None = None, metric: str = "token_f1") -> Results:
    """A run by task and arm; question i of every task has the id `qi`. By default the first arm is the verdict's."""
    rows = [
        Row(task, f"q{i}", arm, score, {}, "", (), (), 10, 1, 0.1, False)
        for task, arms in scores.items()
        for arm, values in arms.items()
        for i, score in enumerate(values)
    ]
    keys = {(row.task, row.question_id) for row in rows}
    return Results(
        choices={task: next(iter(arms)) for task, arms in scores.items()} | dict(choices or {}),
        metrics=dict.fromkeys(scores, metric),
        questions={(task, i): Question(i, f"{task} {i}?", ("yes",), task, "test") for task, i in keys},
        rows=rows,
    )


def one(*values: float | None, arm: str = "prompt", task: str = "facts") -> Results:
    return results({task: {arm: values}})


def only(comparison: RunComparison) -> TaskChange:
    (change,) = comparison.tasks
    return change


def edited(run: Results, task: str, id: str, **changes: object) -> Results:
    question = replace(run.questions[task, id], **changes)  # type: ignore[arg-type]
    return replace(run, questions={**run.questions, (task, id): question})


# --- the numbers -----------------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    """Ten questions, eight lost: of 2^8 patterns of signs two are as extreme, so p = 2 / 256."""
    comparison = compare_runs(one(*[1.0] * 10), one(*[0.0] * 8, 1.0, 1.0))
    line = only(comparison).verdict
    assert (line.score_before, line.score_after, line.difference.mean) == pytest.approx((1.0, 0.2, -0.8))
    assert -1 <= line.difference.low < -0.8 < line.difference.high < 0
    assert line.p_value == pytest.approx(2 / 256)
    assert (line.wins, line.ties, line.losses, line.n) == (0, 2, 8, 10)
    assert (line.status, comparison.regressions) == ("worse", ("facts",))


def test_the_same_run_twice_differs_in_nothing() -> None:
    run = results({"facts": {"prompt": [0.2, 0.7] * 10, "tune": [0.9] * 20}})
    comparison = compare_runs(run, run)
    lines = [only(comparison).verdict, *only(comparison).arms]
    assert [(line.before, line.after) for line in lines] == [("prompt",) * 2, ("prompt",) * 2, ("tune",) * 2]
    for line in lines:
        assert (line.difference.mean, line.p_value, line.status) == (0.0, 1.0, "no difference shown")
        assert (line.wins, line.ties, line.losses) == (0, 20, 0)
    assert comparison.regressions == ()


def test_p_values_against_scipy() -> None:
    rng = np.random.default_rng(4)
    old = rng.beta(3, 1, 40)
    new = np.clip(old + rng.normal(-0.06, 0.15, 40), 0, 1)
    line = only(compare_runs(one(*old), one(*new))).verdict
    theirs = stats.permutation_test(
        (new, old), lambda a, b: (a - b).mean(), permutation_type="samples", n_resamples=50_000, rng=5
    )
    assert line.p_value == pytest.approx(theirs.pvalue, abs=0.01)
    assert line.difference.mean == pytest.approx(np.mean(new - old))


def test_the_arm_that_a_user_gets_is_compared_with_the_one_that_he_got() -> None:
    before = results({"facts": {"prompt": [0.0] * 12, "tune": [1.0] * 12}}, {"facts": "tune"})
    after = results({"facts": {"prompt": [0.0] * 12, "tune": [1.0] * 12}}, {"facts": "prompt"})
    comparison = compare_runs(before, after)
    change = only(comparison)
    assert (change.verdict.before, change.verdict.after, change.verdict.losses) == ("tune", "prompt", 12)
    assert {line.after: line.status for line in change.arms} == dict.fromkeys(("prompt", "tune"), "no difference shown")
    assert comparison.regressions == ("facts",)


def test_a_worse_arm_that_nobody_is_given_is_no_regression() -> None:
    before = results({"facts": {"tune": [1.0] * 12, "prompt": [1.0] * 12}})
    after = results({"facts": {"tune": [1.0] * 12, "prompt": [0.0] * 12}})
    comparison = compare_runs(before, after)
    assert {line.after: line.status for line in only(comparison).arms} == {
        "tune": "no difference shown",
        "prompt": "worse",
    }
    assert comparison.regressions == ()


def test_each_family_is_corrected_on_its_own() -> None:
    """Six losses of 12 have p = 2 / 64: enough alone, not as the smallest of two. More arms change nothing there."""
    lost = [0.0] * 6 + [1.0] * 6
    alone = compare_runs(one(*[1.0] * 12), one(*lost))
    assert only(alone).verdict.p_value == pytest.approx(2 / 64)
    assert alone.regressions == ("facts",)

    before = {"facts": {"prompt": [1.0] * 12}, "routing": {"prompt": [1.0] * 12}}
    after = {"facts": {"prompt": lost}, "routing": {"prompt": [1.0] * 12}}
    two = compare_runs(results(before), results(after))
    assert [change.verdict.p_value for change in two.tasks] == [pytest.approx(4 / 64), 1.0]
    assert two.regressions == ()

    more = {f"arm{i}": [1.0] * 12 for i in range(5)}
    many = compare_runs(results({"facts": before["facts"] | more}), results({"facts": after["facts"] | more}))
    assert only(many).verdict == only(alone).verdict
    assert only(many).arms[0].p_value == pytest.approx(6 * 2 / 64)
    assert (many.regressions, many.families) == (("facts",), {"verdicts": 1, "arms": 6})


# --- which questions count -------------------------------------------------------------------------------------------


def test_edited_questions_are_counted_and_not_compared() -> None:
    before, after = one(*[1.0] * 13), one(*[1.0] * 10, 0.0, 0.0, 0.0)
    after = edited(after, "facts", "q10", text="facts q10, please?")
    after = edited(after, "facts", "q11", answers=("no",))
    after = edited(after, "facts", "q12", answers=())
    change = only(compare_runs(before, after))
    assert (change.common, change.edited, change.unmatched) == (10, 3, 0)
    assert (change.verdict.n, change.verdict.losses) == (10, 0)


def test_questions_of_one_run_only_are_counted_and_not_compared() -> None:
    before, after = one(*[1.0] * 15), one(*[1.0] * 12)
    after = replace(after, rows=[row for row in after.rows if row.question_id != "q0"])
    change = only(compare_runs(before, after))
    assert (change.common, change.edited, change.unmatched, change.verdict.n) == (11, 0, 4, 11)


def test_a_question_without_a_score_in_both_runs_is_left_out_of_its_pair() -> None:
    before = results({"facts": {"prompt": [None, *[1.0] * 12], "tune": [1.0] * 13}})
    after = results({"facts": {"prompt": [0.0, None, *[1.0] * 11], "tune": [1.0] * 13}})
    change = only(compare_runs(before, after))
    assert (change.common, change.verdict.n, change.verdict.losses) == (13, 11, 0)
    assert [line.n for line in change.arms] == [11, 13]
    assert "2 without a score in both" in sentence(change)


def test_equal_ids_in_two_tasks_are_two_questions() -> None:
    """As when two imported files both count from 1."""
    before = results({"facts": {"prompt": [1.0] * 12}, "routing": {"prompt": [0.0] * 12}})
    after = edited(before, "routing", "q3", text="another?")
    facts, routing = compare_runs(before, after).tasks
    assert (facts.common, facts.edited, facts.verdict.score_after) == (12, 0, 1.0)
    assert (routing.common, routing.edited, routing.verdict.score_after) == (11, 1, 0.0)


def test_with_fewer_than_ten_nothing_is_claimed_or_counted() -> None:
    before = results({"facts": {"prompt": [1.0] * 12}, "poems": {"prompt": [1.0] * 9}})
    after = results({"facts": {"prompt": [0.0] * 6 + [1.0] * 6}, "poems": {"prompt": [0.0] * 9}})
    comparison = compare_runs(before, after)
    facts, poems = comparison.tasks
    assert (poems.verdict.status, poems.verdict.p_value) == ("too few common questions", None)
    assert (poems.verdict.losses, poems.verdict.difference.mean) == (9, -1.0)
    assert facts.verdict.p_value == pytest.approx(2 / 64)  # the family holds one test, not two
    assert comparison.regressions == ("facts",)
    assert comparison.families == {"verdicts": 1, "arms": 1}


def about(run: Results, documents: int) -> Results:
    """Every question of the run gets its evidence in one of so many documents, in turn."""
    spans = [Span(f"{i}.md", 0, 1, "a") for i in range(documents)]
    questions = {
        key: replace(question, evidence=(spans[int(question.id[1:]) % documents],))
        for key, question in run.questions.items()
    }
    return replace(run, questions=questions, by_document=frozenset(run.choices))


def test_questions_about_one_document_count_together() -> None:
    """Of 12 documents six lose on all their three questions: p = 2 / 2^6, however many questions that is."""
    before, after = one(*[1.0] * 36), one(*[float(i % 12 >= 6) for i in range(36)])
    alone = only(compare_runs(before, after)).verdict
    line = only(compare_runs(about(before, 12), about(after, 12))).verdict
    assert (line.n, line.clusters, line.losses) == (36, 12, 18)
    assert line.p_value == pytest.approx(2 / 64)
    assert alone.clusters == 36
    assert alone.p_value is not None and alone.p_value < 0.001
    assert line.difference.high - line.difference.low > 1.5 * (alone.difference.high - alone.difference.low)


def test_with_fewer_than_ten_documents_nothing_is_claimed() -> None:
    change = only(compare_runs(about(one(*[1.0] * 36), 9), about(one(*[0.0] * 36), 9)))
    assert (change.verdict.status, change.verdict.p_value) == ("too few common questions", None)
    assert "only 36 questions from 9 sources scored in both runs" in sentence(change)


def test_arms_of_one_run_only_are_named() -> None:
    before = results({"facts": {"prompt": [1.0] * 12, "raft": [1.0] * 12, "tune": [None] * 12}})
    after = results({"facts": {"prompt": [1.0] * 12, "few-shot": [1.0] * 12, "tune": [1.0] * 12}})
    change = only(compare_runs(before, after))
    assert [line.after for line in change.arms] == ["prompt"]
    assert change.left_out == ("raft", "tune", "few-shot")


def test_a_task_that_cannot_be_compared_is_skipped_with_its_reason() -> None:
    before = results({name: {"prompt": [1.0] * 12} for name in ("facts", "routing", "poems", "record", "sender")})
    after = results({name: {"prompt": [1.0] * 12} for name in ("facts", "routing", "letters", "record", "sender")})
    after = replace(after, metrics={**after.metrics, "routing": "accuracy"})
    after = replace(after, rows=[replace(row, score=None) if row.task == "sender" else row for row in after.rows])
    for i in range(12):
        after = edited(after, "record", f"q{i}", text="edited?")
    comparison = compare_runs(before, after)
    assert [change.task for change in comparison.tasks] == ["facts"]
    assert comparison.skipped == {
        "routing": "metric token_f1 in the baseline, accuracy in the new run",
        "poems": "only in the baseline",
        "letters": "only in the new run",
        "record": "0 common questions, 12 edited, 0 in one run only",
        "sender": "12 common questions, none scored by both verdicts' arms, 0 edited, 0 in one run only",
    }


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (one(*[1.0] * 12, task="poems"), "'facts': only in the baseline; task 'poems': only in the new run"),
        (results({"facts": {"prompt": [1.0] * 12}}, metric="accuracy"), "'facts': metric token_f1 in the baseline"),
        (edited(one(1.0), "facts", "q0", text="edited?"), "'facts': 0 common questions, 1 edited, 11 in one run only"),
    ],
)
def test_nothing_to_compare_is_an_error(after: Results, reason: str) -> None:
    with pytest.raises(InputError, match="the runs have nothing to compare") as raised:
        compare_runs(one(*[1.0] * 12), after)
    assert reason in str(raised.value)


# --- properties and error rates --------------------------------------------------------------------------------------

GRADES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=10, max_size=14)


@settings(max_examples=25, deadline=None)
@given(GRADES, GRADES, st.randoms())
def test_swapping_the_runs_swaps_the_signs(old: list[float], new: list[float], random: object) -> None:
    before, after = one(*old), one(*new)
    forth = only(compare_runs(before, after)).verdict
    rows = list(after.rows)
    random.shuffle(rows)  # type: ignore[attr-defined]
    back = only(compare_runs(replace(after, rows=rows), before)).verdict
    n = min(len(old), len(new))
    assert forth.n == back.n == n
    assert (forth.wins, forth.ties, forth.losses) == (back.losses, back.ties, back.wins)
    assert forth.difference.mean == pytest.approx(-back.difference.mean)
    assert forth.difference.mean == pytest.approx(math.fsum(b - a for a, b in zip(old, new, strict=False)) / n)
    assert forth.p_value == pytest.approx(back.p_value)
    opposite = {"better": "worse", "worse": "better"}
    assert back.status == opposite.get(forth.status, forth.status)


def simulated_regressions(loss: float, runs: int, n: int = 60, tasks: int = 3) -> float:
    """How often some task is called worse, when the true share of right answers falls by `loss` in the first task."""
    rng = np.random.default_rng(8)
    found = 0
    for _ in range(runs):
        hard = rng.normal(size=(tasks, n))

        def run(fall: float, hard: np.ndarray = hard) -> Results:
            ease = stats.norm.cdf((hard + rng.normal(size=hard.shape)) / math.sqrt(2))
            share = np.full(tasks, 0.7) - fall * (np.arange(tasks) == 0)
            return results({f"t{i}": {"prompt": (ease[i] < share[i]).astype(float)} for i in range(tasks)})

        found += bool(compare_runs(run(0.0), run(loss)).regressions)
    return found / runs


def test_an_unchanged_system_rarely_fails_and_a_large_loss_is_caught() -> None:
    """Two-sided at 5 % over all tasks, so at most 2.5 % of unchanged systems fail; 150 draws: ± 1.3 %."""
    assert simulated_regressions(loss=0.0, runs=150) <= 0.025 + 3 * 0.013
    assert simulated_regressions(loss=0.4, runs=20) >= 0.9


# --- words -----------------------------------------------------------------------------------------------------------


def test_a_sentence_says_what_changed_and_what_was_left_out() -> None:
    before = results({"facts": {"tune": [1.0] * 12, "prompt": [0.0] * 12}})
    after = results({"facts": {"prompt": [0.0] * 12, "raft": [0.0] * 12}})
    after = edited(after, "facts", "q0", text="edited?")
    assert sentence(only(compare_runs(before, after))) == (
        "facts: worse; tune scored 1.00 in the baseline and prompt scores 0.00 now: −1.00 (−1.00 to −0.43) on 11 "
        "questions. Questions left out: 1 edited, 0 in one run only, 0 without a score in both. "
        "Arms not compared with themselves: tune, raft."
    )
    same = one(*[0.5] * 12)
    assert sentence(only(compare_runs(same, same))) == (
        "facts: no difference shown; prompt scored 0.50 in the baseline and scores 0.50 now: "
        "0.00 (−0.26 to +0.26) on 12 questions."
    )
    few = one(1.0, 0.0)
    assert sentence(only(compare_runs(few, few))) == (
        "facts: too few common questions; only 2 questions scored in both runs; "
        "it takes at least 10 to show a difference."
    )
