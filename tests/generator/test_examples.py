"""Training rows: what RAFT promises, held against the ways in which others broke it."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ragtune.config import TuneConfig
from ragtune.generator.examples import TrainingRow, plain_rows, raft_rows, row_from_json
from ragtune.types import Hit, Message, Passage, Question, Span

N = 2000
K = 4
ABSTENTION = "The documents do not say."


def passage(id: str, text: str = "Nothing of use.") -> Passage:
    return Passage(id, "doc", text, 0, len(text))


def question(i: int, *answers: str) -> Question:
    return Question(f"q{i}", f"What is fact {i}?", answers, "facts", "train", (Span("doc", 0, 1, "F"),))


def render(asked: Question, passages: Sequence[Passage]) -> tuple[tuple[Message, ...], str]:
    content = "\n".join([*(p.id for p in passages), asked.text])
    return (Message("user", content),), asked.answers[0] if asked.answerable else ABSTENTION


def found(*passages: Passage) -> tuple[Hit, ...]:
    return tuple(Hit(p, 1 / rank, rank) for rank, p in enumerate(passages, 1))


QUESTIONS = [question(i, f"answer-{i}.") for i in range(N)]
GOLD = {q.id: (passage(f"gold-{q.id}", f"Fact is {q.answers[0]}"),) for q in QUESTIONS}
OTHERS = tuple(passage(f"other-{i}") for i in range(3 * K))
HITS = {q.id: found(*OTHERS[: i % 5], *GOLD[q.id], *OTHERS[i % 5 :]) for i, q in enumerate(QUESTIONS)}


def rows_of(k: int = K, **settings: object) -> list[TrainingRow]:
    return raft_rows(QUESTIONS, HITS, GOLD, render, TuneConfig.model_validate(settings), k)


ROWS = rows_of()


# The share without gold


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 1.0])
def test_the_share_without_gold_is_the_stated_one_and_not_its_complement(share: float) -> None:
    without = sum(not row.gold for row in rows_of(share_without_gold=share))
    low, high = stats.binom.interval(1 - 1e-6, N, share)
    assert low <= without <= high


def test_by_default_some_rows_go_without_gold() -> None:
    low, high = stats.binom.interval(1 - 1e-6, N, TuneConfig().share_without_gold)
    assert 0 < low <= sum(not row.gold for row in ROWS) <= high < N / 2


def test_the_share_is_of_rows_that_have_gold() -> None:
    """Questions without evidence never had gold to lose: they use up none of the share, and stay as they are."""
    unanswerable = [Question(f"n{i}", "Who?", (), "facts", "train") for i in range(N)]
    mixed = [q for pair in zip(QUESTIONS, unanswerable, strict=True) for q in pair]
    hits = HITS | {q.id: found(*OTHERS) for q in unanswerable}
    rows = raft_rows(mixed, hits, GOLD, render, TuneConfig(), K)
    low, high = stats.binom.interval(1 - 1e-6, N, 0.2)
    assert low <= sum(not row.gold for row in rows if row.question_id[0] == "q") <= high
    assert all((row.kind, row.gold, row.target) == ("abstain", (), ABSTENTION) for row in rows[1::2])
    assert all(1 <= len(row.passage_ids) <= K for row in rows[1::2])


def test_rows_without_gold_abstain_or_recall_as_configured() -> None:
    for how, kind in (("abstain", "abstain"), ("recall", "raft-without-gold")):
        rows = rows_of(without_gold=how)
        assert {row.kind for row in rows if row.gold} == {"raft"}
        assert {row.kind for row in rows if not row.gold} == {kind}
        for asked, row in zip(QUESTIONS, rows, strict=True):
            told = row.gold or how == "recall"
            assert row.target == (asked.answers[0] if told else ABSTENTION)


def test_a_question_without_evidence_that_has_an_answer_is_plain_reading() -> None:
    asked = Question("a", "Two and two?", ("4",), "sums", "train")
    (row,) = raft_rows([asked], {"a": found(*OTHERS)}, {"a": ()}, render, TuneConfig(share_without_gold=1.0), K)
    assert (row.kind, row.target, row.gold) == ("raft", "4", ())


# Where gold stands, and how many passages


def test_gold_stands_anywhere_with_equal_chance() -> None:
    for size in range(2, K + 1):
        places = Counter(row.gold[0] for row in ROWS if row.gold and len(row.passage_ids) == size)
        counts = [places[i] for i in range(size)]
        assert sum(counts) > 300
        assert stats.chisquare(counts).pvalue > 0.001


def test_gold_is_where_the_row_says() -> None:
    for asked, row in zip(QUESTIONS, ROWS, strict=True):
        golden = GOLD[asked.id][0].id
        assert [i for i, id in enumerate(row.passage_ids) if id == golden] == list(row.gold)
        assert row.messages[0].content.split("\n") == [*row.passage_ids, asked.text]


@pytest.mark.parametrize("k", [1, 2, K, 9])
def test_the_number_of_passages_is_anything_from_1_to_k(k: int) -> None:
    sizes = Counter(len(row.passage_ids) for row in rows_of(k))
    assert sorted(sizes) == list(range(1, k + 1))
    low, high = stats.binom.interval(1 - 1e-6, N, 1 / k)
    assert all(low <= count <= high for count in sizes.values())


# Randomness


def test_the_seed_decides_the_rows_and_nothing_else_does() -> None:
    random.seed(1)
    state = random.getstate()
    assert rows_of() == ROWS
    assert random.getstate() == state
    other = rows_of(seed=18)
    assert sum(a.passage_ids != b.passage_ids for a, b in zip(ROWS, other, strict=True)) > N / 2
    assert sum(bool(a.gold) != bool(b.gold) for a, b in zip(ROWS, other, strict=True)) > N / 10


# Distractors


@settings(max_examples=200, deadline=None)
@given(
    hits=st.permutations(range(8)),
    gold=st.sets(st.integers(0, 8), max_size=6),
    k=st.integers(1, 6),
    share=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_distractors_are_the_hardest_hits_and_never_gold(
    hits: list[int], gold: set[int], k: int, share: float, seed: int
) -> None:
    """Whatever was found and however much of it is gold; passage 8 is never found."""
    everything = [passage(str(i)) for i in range(9)]
    ranked = found(*(everything[i] for i in hits))
    asked = question(0, "yes")
    golden = [everything[i] for i in sorted(gold)]
    config = TuneConfig(share_without_gold=share, seed=seed)
    (row,) = raft_rows([asked], {"q0": ranked}, {"q0": golden}, render, config, k)
    kept = {row.passage_ids[i] for i in row.gold}
    distractors = [hit for hit in ranked if hit.passage.id in set(row.passage_ids) - kept]
    hardest = [hit for hit in ranked if hit.passage not in golden][: len(distractors)]
    assert distractors == hardest
    assert row.distractor_ranks == tuple(hit.rank for hit in hardest)
    assert kept in (set(), {p.id for p in golden[:k]})
    assert len(set(row.passage_ids)) == len(row.passage_ids) <= k


def test_all_gold_is_kept_as_far_as_it_fits() -> None:
    golden = [passage(f"gold-{i}") for i in range(6)]
    config = TuneConfig(share_without_gold=0.0)
    for seed in range(20):
        (row,) = raft_rows(
            [question(0, "yes")],
            {"q0": found(*OTHERS, *golden)},
            {"q0": golden},
            render,
            config.model_copy(update={"seed": seed}),
            K,
        )
        assert set(row.passage_ids) == {p.id for p in golden[:K]}
        assert row.gold == (0, 1, 2, 3)
        assert row.distractor_ranks == ()


TELLING = ("The fee is 40 EUROS.", "It is 40\n  euros a year.", "Pay 40 or 4x10.", "(40)")
SILENT = ("Built in 1940.", "It is 400 a year.", "Forty of them.")


def test_an_abstention_row_never_holds_a_passage_that_states_the_answer() -> None:
    asked = question(0, "40 euros", "40")
    hits = found(*(passage(text, text) for text in (*TELLING, *SILENT)))
    gold = {"q0": (passage("gold", "The yearly fee is 40 euros."),)}
    for seed in range(20):
        config = TuneConfig(share_without_gold=1.0, seed=seed)
        (row,) = raft_rows([asked], {"q0": hits}, gold, render, config, 7)
        assert row.kind == "abstain"
        assert set(row.passage_ids) <= set(SILENT)
    config = TuneConfig(share_without_gold=0.0, seed=3)
    (row,) = raft_rows([asked], {"q0": hits}, gold, render, config, 20)
    assert set(TELLING) < set(row.passage_ids)  # beside gold they are fair


@pytest.mark.parametrize("answer", ["a cat", "é", "c++", "2:1", "a.b"])
def test_answers_of_any_spelling_are_found(answer: str) -> None:
    hits = found(passage("tells", f"They said {answer.upper()}, twice."), passage("axb"))
    config = TuneConfig(share_without_gold=1.0)
    (row,) = raft_rows([question(0, answer)], {"q0": hits}, {"q0": (passage("gold"),)}, render, config, 2)
    assert row.passage_ids == ("axb",)


# Plain rows, and the file


def test_plain_rows_have_no_passages() -> None:
    rows = plain_rows([question(0, "yes"), question(1)], render)
    assert [(row.kind, row.target, row.passage_ids, row.gold) for row in rows] == [
        ("plain", "yes", (), ()),
        ("abstain", ABSTENTION, (), ()),
    ]
    assert [row.messages[0].content for row in rows] == ["What is fact 0?", "What is fact 1?"]


ROW = st.builds(
    TrainingRow,
    st.text(),
    st.text(),
    st.sampled_from(["plain", "raft", "raft-without-gold", "abstain"]),
    st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), st.text()), max_size=4).map(tuple),
    st.text(),
    st.lists(st.text(), max_size=4).map(tuple),
    st.lists(st.integers(0, 9), max_size=4).map(tuple),
    st.lists(st.integers(1, 99), max_size=4).map(tuple),
)


@settings(max_examples=100, deadline=None)
@given(ROW)
def test_a_row_survives_its_file(row: TrainingRow) -> None:
    assert row_from_json(json.loads(json.dumps(row.to_json()))) == row
