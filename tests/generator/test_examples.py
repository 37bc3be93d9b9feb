"""Training rows: what RAFT promises, held against the ways in which others broke it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ragtune.config import TuneConfig
from ragtune.generator.examples import (
    Built,
    Recipe,
    TrainingRow,
    instruction_rows,
    join,
    plain_rows,
    raft_rows,
    row_from_json,
)
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


def anything_fits(row: TrainingRow, passages: Sequence[Passage]) -> str:
    return ""


def recipe_of(k: int, **settings: object) -> Recipe:
    return Recipe(render, anything_fits, TuneConfig.model_validate(settings), k)


def one_row(asked: Question, hits: Sequence[Hit], gold: Sequence[Passage], recipe: Recipe) -> TrainingRow:
    (row,) = raft_rows([asked], {asked.id: hits}, {asked.id: gold}, recipe).rows
    return row


QUESTIONS = [question(i, f"answer-{i}.") for i in range(N)]
GOLD = {q.id: (passage(f"gold-{q.id}", f"Fact is {q.answers[0]}"),) for q in QUESTIONS}
OTHERS = tuple(passage(f"other-{i}") for i in range(3 * K))
HITS = {q.id: found(*OTHERS[: i % 5], *GOLD[q.id], *OTHERS[i % 5 :]) for i, q in enumerate(QUESTIONS)}


def rows_of(k: int = K, **settings: object) -> tuple[TrainingRow, ...]:
    return raft_rows(QUESTIONS, HITS, GOLD, recipe_of(k, **settings)).rows


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
    rows = raft_rows(mixed, hits, GOLD, recipe_of(K)).rows
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
    row = one_row(asked, found(*OTHERS), (), recipe_of(K, share_without_gold=1.0))
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


HASHED = """
from tests.generator.test_examples import rows_of
from ragtune.store import sha256_of_json
print(sha256_of_json([row.to_json() for row in rows_of(share_closed_book=0.3)]))
"""


def test_two_processes_build_the_same_rows() -> None:
    """The order of a set of texts changes from process to process; nothing may hang on it."""
    root = str(Path(__file__).parents[2])
    built = [
        subprocess.run(
            [sys.executable, "-c", HASHED],
            cwd=root,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": root},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert len(built[0]) > 60
    assert built[0] == built[1]


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
    row = one_row(asked, ranked, golden, recipe_of(k, share_without_gold=share, seed=seed))
    kept = {row.passage_ids[i] for i in row.gold}
    distractors = [hit for hit in ranked if hit.passage.id in set(row.passage_ids) - kept]
    hardest = [hit for hit in ranked if hit.passage not in golden][: len(distractors)]
    assert distractors == hardest
    standing = [id for id in row.passage_ids if id not in kept]
    recorded = zip(standing, row.distractor_ranks, row.distractor_scores, strict=True)
    assert set(recorded) == {(hit.passage.id, hit.rank, hit.score) for hit in hardest}
    assert row.gold_ids == tuple(p.id for p in golden)
    assert kept in (set(), {p.id for p in golden[:k]})
    assert len(set(row.passage_ids)) == len(row.passage_ids) <= k


def test_all_gold_is_kept_as_far_as_it_fits() -> None:
    golden = [passage(f"gold-{i}") for i in range(6)]
    for seed in range(20):
        recipe = recipe_of(K, share_without_gold=0.0, seed=seed)
        row = one_row(question(0, "yes"), found(*OTHERS, *golden), golden, recipe)
        assert set(row.passage_ids) == {p.id for p in golden[:K]}
        assert row.gold == (0, 1, 2, 3)
        assert row.distractor_ranks == ()


TELLING = ("The fee is 40 EUROS.", "It is 40\n  euros a year.", "Pay 40 or 4x10.", "(40)")
SILENT = ("Built in 1940.", "It is 400 a year.", "Forty of them.")


def test_an_abstention_row_never_holds_a_passage_that_states_the_answer() -> None:
    asked = question(0, "40 euros", "40")
    hits = found(*(passage(text, text) for text in (*TELLING, *SILENT)))
    gold = (passage("gold", "The yearly fee is 40 euros."),)
    for seed in range(20):
        row = one_row(asked, hits, gold, recipe_of(7, share_without_gold=1.0, seed=seed))
        assert row.kind == "abstain"
        assert set(row.passage_ids) <= set(SILENT)
    row = one_row(asked, hits, gold, recipe_of(20, share_without_gold=0.0, seed=3))
    assert set(TELLING) < set(row.passage_ids)  # beside gold they are fair


@pytest.mark.parametrize("answer", ["a cat", "é", "c++", "2:1", "a.b"])
def test_answers_of_any_spelling_are_found(answer: str) -> None:
    hits = found(passage("tells", f"They said {answer.upper()}, twice."), passage("axb"))
    row = one_row(question(0, answer), hits, (passage("gold"),), recipe_of(2, share_without_gold=1.0))
    assert row.passage_ids == ("axb",)


def test_gold_stays_where_every_other_passage_states_the_answer() -> None:
    """Without gold and with nothing beside it, the row would teach to abstain from a question with an answer."""
    hits = found(*(passage(text, text) for text in TELLING))
    for how in ("abstain", "recall"):
        recipe = recipe_of(3, share_without_gold=1.0, without_gold=how)
        row = one_row(question(0, "40 euros", "40"), hits, (passage("gold"),), recipe)
        assert row.kind == "raft"
        assert [row.passage_ids[i] for i in row.gold] == ["gold"]


# The budget


def fits_words(most: int) -> Callable[[TrainingRow, Sequence[Passage]], str]:
    def too_long(row: TrainingRow, passages: Sequence[Passage]) -> str:
        count = sum(len(p.text.split()) for p in passages)
        return f"{count} words, more than {most}" if count > most else ""

    return too_long


def tight(most: int, k: int = K, **settings: object) -> Recipe:
    return Recipe(render, fits_words(most), TuneConfig.model_validate(settings), k)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=8, max_size=8), st.integers(1, 30), st.integers(0, 99), st.integers(1, 8))
def test_the_worst_ranked_go_first_and_gold_never(lengths: list[int], most: int, seed: int, k: int) -> None:
    everything = [passage(str(i), "word " * length) for i, length in enumerate(lengths)]
    hits, gold = found(*everything), everything[3:5]
    free = one_row(question(0, "yes"), hits, gold, recipe_of(k, share_without_gold=0.0, seed=seed))
    built = raft_rows(
        [question(0, "yes")], {"q0": hits}, {"q0": gold}, tight(most, k, share_without_gold=0.0, seed=seed)
    )
    kept = [free.passage_ids[i] for i in free.gold]
    room = most - sum(lengths[int(i)] for i in kept)
    if room < 0:
        assert built.rows == ()
        assert [(q.question_id, q.reason) for q in built.left_out] == [("q0", f"{most - room} words, more than {most}")]
        return
    (row,) = built.rows
    wanted = []
    for i in sorted(set(free.passage_ids) - set(kept), key=int):  # a passage's id is its place in the ranking
        room -= lengths[int(i)]
        if room < 0:
            break
        wanted.append(i)
    assert [i for i in free.passage_ids if i in {*kept, *wanted}] == list(row.passage_ids)
    assert [row.passage_ids[i] for i in row.gold] == kept
    assert sorted(row.distractor_ranks) == sorted(int(i) + 1 for i in wanted)
    assert built.shortened == (len(row.passage_ids) < len(free.passage_ids))


def test_what_does_not_fit_is_counted_and_named() -> None:
    rows = raft_rows(QUESTIONS, HITS, GOLD, tight(6))
    assert 0 < rows.shortened < len(rows.rows) == N
    assert rows.left_out == ()
    none = raft_rows(QUESTIONS, HITS, GOLD, tight(2, share_without_gold=0.0))
    assert none.rows == ()
    assert [q.question_id for q in none.left_out] == [q.id for q in QUESTIONS]


def test_an_abstention_never_loses_all_its_passages() -> None:
    """Of an answerable question: closed book it would teach that what the model knows is not to be said."""
    asked, hits, gold = question(0, "yes"), {"q0": found(*OTHERS)}, {"q0": (passage("gold", "yes"),)}
    built = raft_rows([asked], hits, gold, tight(2, share_without_gold=1.0))
    assert built.rows == ()
    assert "nothing to abstain from" in built.left_out[0].reason
    (recalled,) = raft_rows([asked], hits, gold, tight(2, share_without_gold=1.0, without_gold="recall")).rows
    assert (recalled.kind, recalled.target, recalled.passage_ids) == ("plain", "yes", ())


# Closed-book and instruction rows


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_of_closed_book_rows_is_exact_and_leaves_the_others_as_they_are(share: float) -> None:
    rows = rows_of(share_closed_book=share, share_without_gold=0.0)
    closed = [row for row in rows if row.kind == "plain"]
    assert len(closed) == share * N
    assert all((row.passage_ids, row.gold_ids, len(row.messages)) == ((), (), 1) for row in closed)
    assert [row.question_id for row in rows] == [q.id for q in QUESTIONS]


@pytest.mark.parametrize(("share", "others", "taken"), [(0.1, 90, 10), (0.5, 40, 40), (0.0, 90, 0), (0.9, 20, 50)])
def test_the_share_of_instructions_is_that_of_all_rows(share: float, others: int, taken: int) -> None:
    """Fifty rows are there: where the share asks for more, all are taken."""
    rows = [TrainingRow("instructions", str(i), "instruction", (), "yes") for i in range(50)]
    built = instruction_rows(rows, others, recipe_of(K, share_instructions=share))
    assert len(built.rows) == taken
    assert [int(row.question_id) for row in built.rows] == sorted(int(row.question_id) for row in built.rows)
    assert instruction_rows(rows, others, recipe_of(K, share_instructions=share)) == built


def test_instructions_that_are_too_long_are_left_out_and_replaced() -> None:
    def too_long(row: TrainingRow, passages: Sequence[Passage]) -> str:
        return "too long" if int(row.question_id) % 2 else ""

    rows = [TrainingRow("instructions", str(i), "instruction", (), "yes") for i in range(20)]
    recipe = Recipe(render, too_long, TuneConfig(share_instructions=0.5), K)
    built = instruction_rows(rows, 10, recipe)
    assert [row.question_id for row in built.rows] == [str(i) for i in range(0, 20, 2)]
    assert len(built.left_out) == 10


def test_builds_are_joined_in_order() -> None:
    one, other = rows_of()[:1], rows_of()[1:3]
    assert join([Built(one, shortened=1), Built(other, shortened=2)]) == Built((*one, *other), shortened=3)


# Plain rows, and the file


def test_plain_rows_have_no_passages() -> None:
    rows = plain_rows([question(0, "yes"), question(1)], recipe_of(K)).rows
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
    st.lists(st.floats(0, 1), max_size=4).map(tuple),
    st.lists(st.text(), max_size=4).map(tuple),
)


@settings(max_examples=100, deadline=None)
@given(ROW)
def test_a_row_survives_its_file(row: TrainingRow) -> None:
    assert row_from_json(json.loads(json.dumps(row.to_json()))) == row


def test_a_row_written_before_scores_were_recorded_is_read() -> None:
    value = ROWS[0].to_json()
    del value["distractor_scores"], value["gold_ids"]
    assert row_from_json(value).distractor_scores == row_from_json(value).gold_ids == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "guess"}, "kind = 'guess': Input should be 'plain', 'raft'"),
        ({"target": 7}, "target = 7: Input should be a valid string"),
        ({"messages": [{"role": "bot", "content": "hi"}]}, r"messages\.0\.role = 'bot': Input should be 'system'"),
        ({"gold": ["first"]}, r"gold\.0 = 'first': Input should be a valid integer"),
        ({"golds": []}, "unknown key 'golds'; expected task, question_id, kind"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        row_from_json(ROWS[0].to_json() | change)
    with pytest.raises(ValueError, match="key target is missing"):
        row_from_json({key: value for key, value in ROWS[0].to_json().items() if key != "target"})
