"""What the tables and sentences of a report say."""

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_sample import (
    ARMS,
    CAT,
    DATA,
    DECIDED,
    DIAGNOSIS,
    FACTS,
    INGREDIENTS,
    QUESTIONS,
    UNDECIDED,
    row,
    summary,
)

from ragtune.errors import InputError
from ragtune.evaluator.attribute import Cause, CauseCount
from ragtune.evaluator.ingredients import Effect
from ragtune.evaluator.knowledge import Forgetting, KnowledgeCount
from ragtune.evaluator.report import cost, findings, measures, tables, words
from ragtune.evaluator.report.cost import Price
from ragtune.evaluator.report.data import RaceFacts
from ragtune.evaluator.report.measures import Mean
from ragtune.types import Arm, Interval, Row


def test_words_for_every_arm() -> None:
    assert [words.describe(arm) for arm in ARMS] == [
        "base model, instruction only",
        "base model, given retrieved passages",
        "model fine-tuned to read passages, given retrieved passages",
        "base model, given the gold evidence",
    ]
    assert (
        words.describe(Arm("a", True, "retrieved", "base"))
        == "base model, given retrieved passages and worked examples"
    )
    assert words.describe(Arm("a", False, "none", "tune")) == "fine-tuned model, without passages"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.01712, "0.017"), (0.0996, "0.10"), (1234.0, "1200"), (2.5e-7, "0.00000025"), (3, "3.0"), (0.0, "0")],
)
def test_costs_have_two_significant_digits(value: float, expected: str) -> None:
    assert words.two_digits(value) == expected


def test_scores_have_the_decimals_that_their_interval_supports() -> None:
    assert words.interval(Interval(0.734, 0.68, 0.784)) == "0.73 (0.68 to 0.78)"
    assert words.interval(Interval(0.9123, 0.9049, 0.9199)) == "0.912 (0.905 to 0.920)"
    assert words.interval(Interval(-0.001, -0.1, 0.1), signed=True) == "0.00 (−0.10 to +0.10)"
    assert [words.p_value(p) for p in (0.0001, 0.0421, 1.0)] == ["< 0.001", "0.042", "1.00"]
    assert [words.two_digits_up(n) for n in (9, 92, 287, 3356)] == ["9", "92", "290", "3400"]


def test_every_number_of_questions_is_that_of_answers() -> None:
    assert words.size(DATA) == "2 tasks, 4 arms, 8 test questions."
    alone = replace(DATA, verdicts=(DECIDED,))
    assert words.size(alone) == "1 task, 4 arms, 8 test questions. Not asked: letters."
    assert tables.tasks_table(DATA).rows[0] == ("facts", "short", "exact match", "48", "8", "1", "0.083", "–")


def test_tally_counts_what_is_decided() -> None:
    assert words.tally((DECIDED, UNDECIDED)) == "1 of 2 tasks is decided."
    assert words.tally((UNDECIDED,)) == "No task is decided."
    assert words.tally((DECIDED, DECIDED)) == "Every task is decided."


def test_names_of_measures() -> None:
    assert [words.heading(n) for n in ("token_f1", "ndcg_at_k", "citation_recall")] == [
        "Token F1",
        "nDCG@k",
        "Citation recall",
    ]


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5), st.booleans()), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_pareto_front_is_what_nothing_dominates(points: list[tuple[int, int, bool]]) -> None:
    arms = tuple(summary(str(i), s / 10, c, reference=r) for i, (c, s, r) in enumerate(points))
    found = {(s.cost, round(10 * s.score.mean)) for s in cost.pareto_front(replace(DECIDED, arms=arms))}
    racing = {(c, s) for c, s, reference in points if not reference}
    assert found == {
        (c, s) for c, s in racing if not any(c2 <= c and s2 >= s and (c2, s2) != (c, s) for c2, s2 in racing)
    }


def test_measures_count_refusals_and_leave_out_what_is_missing() -> None:
    prompt, retrieve, raft, _ = measures.measures(DATA, DECIDED)
    assert (raft.wrong_refusals, raft.right_refusals) == ((0, 7), (1, 1))
    assert raft.means == {"token_f1": Mean(pytest.approx((1 + 0.25 + 0 + 1 + 0.75 + 0.5 + 1) / 7), 7)}
    assert retrieve.format_failures is None
    assert (prompt.means, prompt.wrong_refusals) == ({}, (0, 0))
    shown = {line[0]: line[1:] for line in measures.measures_table(DATA, DECIDED).rows}
    assert shown["raft"] == ("0.64 (7)", "0 of 7", "1 of 1")
    assert shown["prompt"] == ("–", "–", "–")


def test_format_failures_of_labels_and_json() -> None:
    labels = {
        "q1": replace(CAT, answers=("claim",), evidence=()),
        "q2": replace(CAT, id="q2", answers=("praise",), evidence=()),
    }
    rows = (
        row("raft", "q1", 1.0, "claim", free_text=" Claim "),
        row("raft", "q2", 0.0, "fare", free_text="It is praise."),
        row("retrieve", "q1", 0.0, "praise", free_text="fare"),
    )
    data = replace(
        DATA,
        tasks=(replace(FACTS, format="label", labels=("claim", "praise", "fare")), DATA.tasks[1]),
        questions=QUESTIONS | labels,
        rows=rows,
        findings={},
    )
    found = {m.arm: m.format_failures for m in measures.measures(data, DECIDED)}
    assert (found["raft"], found["retrieve"], found["prompt"]) == ((1, 2), (0, 1), (0, 0))
    unknown = replace(data, tasks=(replace(FACTS, format="label"), DATA.tasks[1]))
    assert {m.format_failures for m in measures.measures(unknown, DECIDED)} == {None}
    valid = (row("raft", f"q{i}", 1.0, scores={"valid_json": v}) for i, v in enumerate((1.0, 0.0, None), 1))
    data = replace(DATA, tasks=(replace(FACTS, format="json"), DATA.tasks[1]), rows=tuple(valid), findings={})
    assert {m.arm: m.format_failures for m in measures.measures(data, DECIDED)}["raft"] == (1, 2)


# what things cost


def test_training_pays_off_where_the_totals_cross() -> None:
    chosen, *others = cost.compared_prices(DATA, DECIDED)
    assert chosen == Price("raft", 25.0, pytest.approx(0.0054))
    assert [p.arm for p in others] == ["prompt", "retrieve"]
    prompt, retrieve = cost.break_evens(DATA, DECIDED)
    assert (prompt.cheaper, prompt.questions) == ("before", 6757)  # 25 / (0.0091 - 0.0054) = 6756.8
    assert (retrieve.cheaper, retrieve.questions) == ("before", 906)  # 25 / (0.033 - 0.0054) = 905.8
    assert cost.break_even_table(DATA, DECIDED).rows == (
        ("raft", "25", "0.0054", "–"),
        ("prompt", "0", "0.0091", "below 6,800"),
        ("retrieve", "0", "0.033", "below 910"),
    )
    assert cost.break_even_sentence(DATA, DECIDED) == (
        "Cheaper in total than `raft`: `prompt` below 6,800 and `retrieve` below 910 questions (about)."
    )


def test_a_cheaper_chosen_arm_is_overtaken() -> None:
    verdict = replace(DECIDED, arm="retrieve")
    found = {b.price.arm: (b.cheaper, b.questions) for b in cost.break_evens(DATA, verdict)}
    assert found == {"prompt": ("always", None), "raft": ("after", 906)}
    assert [line[-1] for line in cost.break_even_table(DATA, verdict).rows] == ["–", "all", "from 910"]
    assert cost.break_even_sentence(DATA, verdict).endswith(
        "`retrieve`: `prompt` for any number of questions; `raft` from 910 questions (about)."
    )
    dear = replace(DECIDED, arm="prompt", arms=(summary("prompt", 0.1, 0.001), summary("raft", 0.7, 0.03)))
    assert cost.break_even_sentence(DATA, dear) == "Cheaper in total than `prompt`: `raft` for none."
    alone = replace(DECIDED, arms=(summary("raft", 0.7, 0.03),))
    assert cost.break_even_sentence(DATA, alone) == words.NOTHING_TO_COMPARE


@given(*4 * [st.integers(0, 50)], st.integers(1, 10_000))
@settings(max_examples=200)
def test_break_even_says_which_total_is_less(t1: int, q1: int, t2: int, q2: int, n: int) -> None:
    chosen, other = Price("a", t1, q1 / 100), Price("b", t2, q2 / 100)
    found = cost.break_even(chosen, other)
    gap = (t2 - t1) * 100 + n * (q2 - q1)  # exact: hundredfold
    expected = {
        "always": gap < 0,
        "never": gap >= 0,
        "before": gap < 0 if found.questions is None or n < found.questions else gap >= 0,
        "after": gap <= 0 if found.questions is None or n >= found.questions else gap > 0,
    }[found.cheaper]
    assert expected
    assert (found.questions is None) == (found.cheaper in ("always", "never"))


def test_break_even_needs_the_prices_of_the_verdict() -> None:
    with pytest.raises(InputError, match=r"'raft' costs 0\.0304 a question, less than 0\.04, its share"):
        cost.break_evens(replace(DATA, training_cost=dict(DATA.training_cost) | {"raft": 40.0}), DECIDED)
    assert cost.compared_prices(replace(DATA, training_cost={}), DECIDED) == ()


def test_speed_is_median_and_percentile_over_the_answers() -> None:
    rows = tuple(
        row("raft", f"q{i}", 1.0, seconds=float(i), prompt_tokens=100 * i, output_tokens=i) for i in range(1, 6)
    )
    (found,) = cost.speeds(replace(DATA, rows=rows, findings={}), DECIDED)
    assert (found.arm, found.n) == ("raft", 5)
    # linear between order statistics: 1 + 0.95 * 4 = 4.8
    assert found.seconds == pytest.approx((3.0, 4.8)) and found.prompt_tokens == pytest.approx((300, 480))
    shown = cost.speed_table(replace(DATA, rows=rows, findings={}), DECIDED).rows
    assert shown == (("raft", "5", "3.0", "4.8", "300", "480", "3", "5"),)


# findings in words


def test_ingredients_in_words() -> None:
    assert findings.ingredients_sentence(INGREDIENTS) == (
        "All three together raise the score of the bare prompt by +0.60 (+0.45 to +0.75). The shares: retrieval +0.38 "
        "(+0.25 to +0.50) and tuning +0.20 (+0.10 to +0.30). What prompting adds may be nothing. Retrieval and tuning "
        "do more together than apart: +0.16 (+0.04 to +0.30)."
    )
    nothing = Interval(-0.03, -0.1, 0.04)
    poor = replace(
        INGREDIENTS,
        gain=nothing,
        shares=tuple(Effect(e.name, nothing) for e in INGREDIENTS.shares),
        effects=(Effect("retrieval x tuning", Interval(-0.2, -0.3, -0.1)),),
    )
    assert findings.ingredients_sentence(poor) == (
        "All three together change the score of the bare prompt by −0.03 (−0.10 to +0.04), which may be nothing. What "
        "prompting, retrieval and tuning add may be nothing. Retrieval and tuning partly replace each other: −0.20 "
        "(−0.30 to −0.10)."
    )
    worse = findings.ingredients_sentence(replace(INGREDIENTS, gain=Interval(-0.2, -0.3, -0.1)))
    assert worse.startswith("All three together lower the score of the bare prompt by −0.20")


def test_the_table_of_ingredients_has_shares_gain_and_effects() -> None:
    rows = dict(findings.ingredients_table(INGREDIENTS).rows)
    assert list(rows)[3:] == [
        "all together",
        "effect of prompting",
        "effect of retrieval",
        "effect of tuning",
        "prompting × retrieval",
        "retrieval × tuning",
    ]
    assert rows["share of retrieval"] == "+0.38 (+0.25 to +0.50)" and rows["all together"] == "+0.60 (+0.45 to +0.75)"


def test_causes_and_remedies_in_words() -> None:
    assert findings.diagnosis_sentence(DIAGNOSIS) == (
        "Of 7 answers of `raft` 5 are right; the most frequent failure is a retrieval miss (1)."
    )
    assert findings.remedy_sentences(DIAGNOSIS) == [
        "Perfect retrieval would add +0.18 (+0.08 to +0.28).",
        "Perfect refusals would add +0.14 (0.00 to +0.43), which may be nothing.",
    ]
    assert findings.remedy_sentences(replace(DIAGNOSIS, remedies=())) == [words.NO_REMEDY]
    perfect = replace(DIAGNOSIS, causes=(CauseCount("right", 7, Interval(1, 0.6, 1), ()),), remedies=())
    assert findings.diagnosis_sentence(perfect) == "Of 7 answers of `raft` 7 are right."
    assert findings.remedy_sentences(perfect) == []
    unjustified = replace(DIAGNOSIS, causes=DIAGNOSIS.causes[2:])
    assert findings.diagnosis_sentence(unjustified).endswith(
        "0 are right; the most frequent failure is an unjustified answer (1)."
    )


def test_every_cause_has_its_meaning() -> None:
    assert tuple(words.CAUSES) == get_args(Cause)


def test_examples_of_failure_are_the_answers_of_the_chosen_arm() -> None:
    found = findings.failure_examples(DATA, DIAGNOSIS)
    assert [(c.cause, [(r.arm, r.question_id) for r in rows]) for c, rows in found] == [
        ("retrieval miss", [("raft", "q2")]),
        ("unjustified answer", [("raft", "q3")]),
    ]


@pytest.mark.parametrize(
    ("count", "conclusion"),
    [
        (KnowledgeCount(9, 1, 0), "Tuning has little left to teach here."),
        (KnowledgeCount(8, 1, 1), "Tuning has something to teach: much of it is half known"),
        (KnowledgeCount(8, 0, 2), "Tuning has something to teach, but most of it is new to the model"),
        (KnowledgeCount(0, 0, 16), "Tuning has something to teach, but most of it is new to the model"),
    ],
)
def test_the_knowledge_probe_says_whether_tuning_has_anything_to_teach(count: KnowledgeCount, conclusion: str) -> None:
    assert conclusion in findings.knowledge_sentence(count)


def test_knowledge_of_all_tasks_in_one_table() -> None:
    table = findings.knowledge_table(DATA)
    assert table is not None and table.rows == (("facts", "3", "5", "8", "16"),)
    assert findings.knowledge_table(replace(DATA, findings={})) is None


def test_citations_are_counted_against_the_evidence() -> None:
    def cited(question: str, score: float, precision: float | None, recall: float) -> Row:
        return row("raft", question, score, scores={"citation_precision": precision, "citation_recall": recall})

    rows = (
        cited("q1", 1.0, 1.0, 1.0),
        cited("q2", 0.5, 0.0, 0.0),
        cited("q3", 0.4, 0.0, 0.0),
        cited("q4", 1.0, None, 0.0),
    )
    data = replace(DATA, rows=(*rows, row("prompt", "q1", 1.0)), findings={})
    assert [m.wrong_citations for m in measures.measures(data, DECIDED)] == [(0, 0), (0, 0), (1, 2), (0, 0)]
    assert findings.grounding_sentence(data, DECIDED) == (
        "Of what `raft` cites, 0.33 holds evidence (3 answers), and 0.25 of the evidence is cited (4). 1 of the 2 "
        "right answers that cite names no passage with evidence."
    )
    (table,) = measures.grounding_tables(data)
    assert table.rows == (("raft", "0.33 (3)", "0.25 (4)", "1 of 2"),)
    assert "Citation precision" not in measures.measures_table(data, DECIDED).columns
    silent = replace(data, rows=(cited("q1", 1.0, None, 0.0),))
    assert (
        findings.grounding_sentence(silent, DECIDED)
        == "`raft` cites nothing in its 1 answer to questions with evidence."
    )
    assert findings.grounding_sentence(replace(data, rows=()), DECIDED) is None
    assert measures.grounding_tables(replace(data, rows=())) == []


def test_racing_in_words() -> None:
    saved = findings.race_sentence(RaceFacts(700, 1400, 0.005))
    assert saved.startswith("700 of 1,400 answers were asked for (50 % saved)") and saved.endswith("at most 0.5 %.")
    assert findings.race_sentence(RaceFacts(1400, 1400, 0.01)) == "All arms answered all questions: 1,400 answers."
    assert findings.race_sentence(RaceFacts(700, 1400, 0)).endswith("the budget ended before the questions did.")


def test_forgetting_in_words() -> None:
    first, second = map(findings.forgetting_sentence, DATA.forgetting)
    assert first == "`tune` forgot general knowledge: −0.15 (−0.25 to −0.05)."
    assert second == "`raft` shows no clear forgetting: −0.02 (−0.10 to +0.06)."
    better = Forgetting("tune", 60, 0.4, 0.5, Interval(0.1, 0.02, 0.2))
    assert findings.forgetting_sentence(better) == "`tune` gained general knowledge: +0.10 (+0.02 to +0.20)."


def test_dropped_and_unscored_arms_say_so() -> None:
    texts = [
        words.questions_scored(s)
        for s in (
            summary("a", 0.5, 1),
            summary("a", 0.5, 1, unscored=2),
            summary("a", 0.5, 1, n=24, dropped_after=24),
            summary("a", 0.5, 1, n=23, unscored=1, dropped_after=24),
        )
    ]
    assert texts == ["48", "48 (2 unscored)", "dropped after 24", "dropped after 24 (1 unscored)"]


def test_probabilities_are_named_where_the_verdict_is_open() -> None:
    assert words.reason(DECIDED) == DECIDED.reason
    assert words.reason(UNDECIDED).endswith("would tell. Probability of being the best: `raft` 90 %, `retrieve` 10 %.")
    assert words.reason(replace(UNDECIDED, arms=(summary("raft", 0.7, 1),))) == UNDECIDED.reason
    assert [words.probability(p) for p in (0.0, 0.0099, 0.5, 0.991, 1.0)] == [
        "< 1 %",
        "< 1 %",
        "50 %",
        "> 99 %",
        "> 99 %",
    ]


def test_arms_with_another_generator_are_described_by_it() -> None:
    arm = Arm("big:retrieve", False, "retrieved", "base", generator="big")
    assert words.describe(arm) == "model big, given retrieved passages"


def test_large_and_small_numbers() -> None:
    assert [words.many(n) for n in (9, 287, 3356, 1_234_567)] == ["9", "290", "3,400", "1,300,000"]
    assert [words.money(v) for v in (0.0, 0.0171, 12.34, 67_270.0)] == ["0", "0.017", "12", "67,000"]
    assert [words.power(10.0**e) for e in (-5, -1, 0, 3, 6, 8)] == [
        "0.00001",
        "0.1",
        "1",
        "1,000",
        "1 million",
        "100 million",
    ]
    assert [words.signed(v) for v in (0.2, -0.25, 0.0, -0.001, 0.30000000000000004)] == [
        "+0.2",
        "−0.25",
        "0",
        "0",
        "+0.3",
    ]
