"""Each check against the fault that it is there for, as others have shipped it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError

from ragtune.config import TuneConfig
from ragtune.errors import ModelError, TrainingError
from ragtune.generator.examples import Recipe, TrainingRow, raft_rows
from ragtune.generator.findings import Known, LintFinding, Reading
from ragtune.generator.lint import compare_builds, lint
from ragtune.types import Hit, Message, Passage, Question, Span

END = 2
SYSTEM = Message("system", "Answer briefly.")


def row(i: int, text: str = "", target: str = "yes", gold: tuple[int, ...] = (), size: int = 0) -> TrainingRow:
    messages = (SYSTEM, Message("user", text or f"Is {i} odd?"))
    ids = tuple(f"p{place}" for place in range(size))
    ranks = tuple(range(1, size - len(gold) + 1))
    return TrainingRow(
        "facts",
        f"q{i}",
        "raft" if size else "plain",
        messages,
        target,
        ids,
        gold,
        ranks,
        tuple(1 / (60 + rank) for rank in ranks),
        tuple(ids[place] for place in gold),
    )


def words(row: TrainingRow) -> tuple[list[int], int]:
    """A token a word, and an end of turn after each message."""
    prompt = [token for message in row.messages for token in (*[9] * len(message.content.split()), END)]
    return [*prompt, *[9] * len(row.target.split()), END], len(prompt)


def reading(encode: Callable[[TrainingRow], tuple[list[int], int]] = words, most: int = 1000) -> Reading:
    return Reading(encode, lambda row: words(row)[0], END, most)


def found(rows: Sequence[TrainingRow], **known: Any) -> list[LintFinding]:
    return lint(rows, reading(), Known(**known))


def names(findings: Sequence[LintFinding]) -> list[tuple[str, str, str]]:
    return [(f.level, f.check, f.question_id) for f in findings]


def asked(id: str, text: str, *answers: str, split: Any = "test", document: str = "") -> dict[str, Question]:
    evidence = (Span(document, 0, 1, "x"),) if document else ()
    return {id: Question(id, text, answers or ("yes",), "facts", split, evidence)}


def test_good_rows_pass() -> None:
    assert found([row(i) for i in range(50)], held_out=asked("q50", "Is 50 odd?")) == []
    assert found([]) == []


# Tokens


def real_reading(folder: Path, encode: Callable[[Any, TrainingRow], tuple[list[int], int]] | None = None) -> Reading:
    """How training reads rows with a real tokenizer; `encode` may spoil it."""
    from ragtune.generator.generate import load_tokenizer
    from ragtune.generator.train import encode_row

    tokenizer = load_tokenizer(folder)
    read = encode or encode_row

    def template(row: TrainingRow) -> list[int]:
        chat = [{"role": m.role, "content": m.content} for m in (*row.messages, Message("assistant", row.target))]
        ids: list[int] = tokenizer.apply_chat_template(chat, return_dict=False)
        return ids

    return Reading(lambda row: read(tokenizer, row), template, tokenizer.eos_token_id, 1000)


def test_the_end_of_turn_masked_out_with_the_padding(tiny: Path) -> None:
    """axolotl #3754: the pad token is the end of turn, and every pad token was taken out of the labels.

    The prompt's own ends of turn must not hide it.
    """
    from ragtune.generator.train import encode_row

    def masking(tokenizer: Any, row: TrainingRow) -> tuple[list[int], int]:
        ids, prompt = encode_row(tokenizer, row)
        return [*ids[:prompt], *(t for t in ids[prompt:] if t != tokenizer.pad_token_id)], prompt

    rows = [row(1), row(2)]
    spoilt = real_reading(tiny, masking)
    assert spoilt.end_of_turn in spoilt.encode(rows[0])[0]
    assert names(lint(rows, spoilt)) == [("error", "end-of-turn", "q1"), ("error", "end-of-turn", "q2")]
    assert lint(rows, real_reading(tiny)) == []


def test_another_end_of_turn_than_the_templates_own(tiny: Path) -> None:
    """Gemma's template ends a turn with a token that is not the tokenizer's end of text."""
    from ragtune.generator.train import encode_row

    def ending_otherwise(tokenizer: Any, row: TrainingRow) -> tuple[list[int], int]:
        ids, prompt = encode_row(tokenizer, row)
        return [*ids[:-1], tokenizer.unk_token_id], prompt

    spoilt = replace(real_reading(tiny, ending_otherwise), end_of_turn=0)
    (finding,) = lint([row(1), row(2)], spoilt)
    assert (finding.level, finding.check) == ("warning", "template")
    assert finding.message.startswith("in 2 of 2 rows")


def test_a_template_that_changes_the_prompt_or_refuses_it() -> None:
    def refusing(row: TrainingRow) -> tuple[list[int], int]:
        if row.question_id == "q1":
            raise TrainingError("row q1: the chat template changes the prompt when an answer follows")
        if row.question_id == "q2":
            raise TemplateError("System role not supported")
        return words(row)

    findings = lint([row(1), row(2), row(3)], reading(refusing))
    assert names(findings) == [("error", "template", "q1"), ("error", "template", "q2")]
    assert "System role not supported" in findings[1].message


def test_a_tokenizer_without_a_chat_template(tiny: Path, tmp_path: Path) -> None:
    from ragtune.generator.generate import load_tokenizer

    tokenizer = load_tokenizer(tiny)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no chat template; use an instruction-tuned model"):
        real_reading(tmp_path)


def test_too_long() -> None:
    tokens = len(words(row(0))[0])
    assert lint([row(0)], reading(most=tokens)) == []
    (finding,) = lint([row(0)], reading(most=tokens - 1))
    assert (finding.level, finding.check) == ("error", "length")
    assert f"{tokens} tokens, more than the {tokens - 1} that max_tokens and the base model allow" in finding.message


# Texts


@pytest.mark.parametrize("target", ["", " \n"])
def test_an_empty_target(target: str) -> None:
    assert names(found([row(0, target=target)])) == [("error", "empty-target", "q0")]


@pytest.mark.parametrize("messages", [(), (SYSTEM,), (SYSTEM, Message("user", " \n"))])
def test_a_row_that_lost_its_prompt(messages: tuple[Message, ...]) -> None:
    assert names(found([replace(row(0), messages=messages)])) == [("error", "empty-prompt", "q0")]


def test_the_same_row_twice() -> None:
    """A warning: what is repeated weighs double, and nothing breaks. Same question, other answer: no duplicate."""
    rows = [row(0), row(1), row(2, "Is 0 odd?"), row(3, "Is 1 odd?", target="no")]
    (finding,) = found(rows)
    assert (finding.level, finding.check, finding.question_id) == ("warning", "duplicate", "q2")
    assert finding.message == "same prompt and target as q0"


def test_the_row_at_fault_is_shown() -> None:
    rows = [row(0), row(1, "Use this:\n\n" + "word " * 100 + "\n\nIs 1 odd?", target=" \n")]
    (finding,) = found(rows)
    assert finding.number == 2
    assert finding.excerpt.startswith('"…') and finding.excerpt.endswith('word word Is 1 odd?" -> ""')
    assert len(finding.excerpt) < 120
    assert found([replace(row(0), task="", target="yes", messages=())])[0].excerpt == '"" -> "yes"'


def test_errors_come_first() -> None:
    rows = [row(0), row(1, "Is 0 odd?"), row(2, target="")]
    assert [f.level for f in found(rows)] == ["error", "warning"]


# Overlap of train and test


@pytest.mark.parametrize(
    "text", ["Is 1 odd?", "  is 1\n ODD? ", "Use these passages:\n\n[1] (a.md) Odd.\n[2] (b.md) Even.\n\nIs 1 odd?"]
)
def test_a_test_question_among_the_rows(text: str) -> None:
    findings = found([row(0), row(1, text)], held_out=asked("t7", "Is 1 odd?"))
    assert names(findings) == [("error", "leak", "q1")]
    assert findings[0].message == "this question is in the test split as well (facts/t7)"


def test_a_test_question_of_several_paragraphs() -> None:
    held_out = asked("t7", "I lost my bag.\n\nWhat now?")
    context = "Use these passages:\n\n[1] (a.md) Odd.\n\n"
    assert [f.check for f in found([row(1, "I lost my bag.\n\nWhat now?")], held_out=held_out)] == ["leak"]
    assert [f.check for f in found([row(1, context + "I lost my bag. What now?")], held_out=held_out)] == ["leak"]
    assert found([row(1, "I lost my dog.\n\nWhat now?")], held_out=held_out) == []


def test_a_test_question_in_other_words_under_its_id() -> None:
    held_out = asked("q1", "Tell me whether 1 is odd.")
    assert names(found([row(1)], held_out=held_out)) == [("error", "leak", "q1")]
    assert found([replace(row(1), task="instructions")], held_out=held_out) == []


def test_a_document_that_test_questions_draw_on() -> None:
    """Split by question alone, the training rows hold the evidence of the test."""
    passages = {"p0": Passage("p0", "a.md", "Odd.", 0, 4), "p1": Passage("p1", "b.md", "Even.", 0, 5)}
    text = "[1] Odd.\n[2] Even.\n\nIs it?"
    rows = [row(0, text, gold=(0,), size=2), row(1, text + "?", gold=(1,), size=2)]
    (finding,) = found(rows, passages=passages, private={"facts": frozenset({"b.md"})})
    assert (finding.level, finding.check, finding.question_id) == ("warning", "leak", "q1")
    assert finding.message.startswith("in 1 of 2 rows the evidence is from a document")
    assert found(rows, passages=passages, private={"other": frozenset({"b.md"})}) == []


# Where gold stands


def test_gold_always_first() -> None:
    """RAG-FiT, gorilla/raft: the gold passage at place 0 of every row."""
    first = [row(i, gold=(0,), size=4) for i in range(100)]
    (finding,) = (f for f in found(first) if f.check == "gold-position")
    assert finding.level == "error"
    assert "4 places: [100, 0, 0, 0]" in finding.message


def test_both_gold_passages_always_first() -> None:
    first = [row(i, gold=(0, 1), size=4) for i in range(100)]
    (finding,) = (f for f in found(first) if f.check == "gold-position")
    assert "4 places: [100, 100, 0, 0]" in finding.message


def test_gold_first_in_rows_of_one_size_alone() -> None:
    rng = random.Random(0)
    sizes = [(2 + i % 3, i) for i in range(300)]
    fair = [row(i, gold=(rng.randrange(size),), size=size) for size, i in sizes]
    shares = {"facts": 0.001}
    assert found(fair, shares=shares) == []
    skewed = [replace(r, gold=(0,), gold_ids=("p0",)) if len(r.passage_ids) == 3 else r for r in fair]
    assert ["over 3 places" in f.message for f in found(skewed, shares=shares)] == [True]


@pytest.mark.parametrize(("size", "gold"), [(3, 1), (4, 2), (6, 5)])
def test_fair_rows_are_rarely_called_unfair(size: int, gold: int) -> None:
    """Gold shuffled over all places, 2,000 files of 60 rows: about one in 1,000 is refused, for any number of gold."""
    rng = random.Random(size)
    refused = 0
    for _ in range(2000):
        rows = [row(i, f"{i}", gold=tuple(rng.sample(range(size), gold)), size=size) for i in range(60)]
        refused += _position_is_refused(rows)
    assert refused <= 9  # 1 - 2e-4 of Poisson(2)


def _position_is_refused(rows: Sequence[TrainingRow]) -> bool:
    from ragtune.generator.lint_context import _check_gold_positions

    return bool(list(_check_gold_positions(list(enumerate(rows)))))


def test_too_few_rows_to_judge_positions_and_rows_with_all_gold_or_one_passage() -> None:
    few = [row(i, gold=(0,), size=4) for i in range(19)]
    single = [row(i + 100, gold=(0,), size=1) for i in range(100)]
    both = [row(i + 300, gold=(0, 1), size=2) for i in range(100)]
    assert not [f for f in found([*few, *single, *both]) if f.check == "gold-position"]


# The share without gold


def render(question: Question, passages: Sequence[Passage]) -> tuple[tuple[Message, ...], str]:
    content = "\n".join([*(p.text for p in passages), "", question.text])
    return (Message("user", content),), question.answers[0] if question.answerable else "The documents do not say."


TRAIN = {
    f"q{i}": Question(f"q{i}", f"What is fact {i}?", (f"answer-{i}.",), "facts", "train", (Span("doc", 0, 1, "F"),))
    for i in range(200)
}
GOLD = {id: (Passage(f"gold-{id}", "doc", f"The fact is {q.answers[0]}", 0, 9),) for id, q in TRAIN.items()}
OTHERS = [Passage(f"other-{i}", "doc", f"Nothing of use, {i} times.", 0, 9) for i in range(40)]
PASSAGES = {p.id: p for p in (*OTHERS, *(p for golden in GOLD.values() for p in golden))}
HITS = {
    id: tuple(
        Hit(p, 1 / (60 + rank), rank) for rank, p in enumerate(random.Random(id).sample([*OTHERS, *GOLD[id]], 9), 1)
    )
    for id in TRAIN
}
RANKS = {id: {hit.passage.id: hit.rank for hit in hits} for id, hits in HITS.items()}


def built(hits: Mapping[str, Sequence[Hit]] = HITS, **settings: object) -> tuple[TrainingRow, ...]:
    recipe = Recipe(render, lambda row, passages: "", TuneConfig.model_validate(settings), 4)
    return raft_rows(list(TRAIN.values()), hits, GOLD, recipe).rows


def against(rows: Sequence[TrainingRow], share: float | None = 0.2) -> list[LintFinding]:
    shares = {} if share is None else {"facts": share}
    return found(rows, train=TRAIN, passages=PASSAGES, shares=shares, ranks=RANKS)


def test_what_the_builder_builds_passes() -> None:
    assert against(built()) == []
    assert against(built(share_closed_book=0.3, without_gold="recall")) == []
    assert [f.check for f in against(built(share_without_gold=0.0), 0.0)] == ["gold-share"]  # the warning below


def test_an_inverted_share_without_gold() -> None:
    """RAG-FiT: documented as the chance of gold, used as the chance of none."""
    (finding,) = against(built(share_without_gold=0.8))
    assert (finding.level, finding.check) == ("error", "gold-share")
    assert finding.message.endswith("of 200 rows of facts go without gold; share_without_gold states 0.2")


def test_a_default_that_never_drops_gold() -> None:
    """gorilla/raft --p 1.0: not one row says what to do when search fails."""
    never = built(share_without_gold=0.0)
    assert [(f.level, f.check) for f in against(never)] == [("error", "gold-share")]
    for share in (0.0, None):  # as stated, or nothing is stated: it may be meant so
        (finding,) = against(never, share)
        assert (finding.level, finding.check) == ("warning", "gold-share")
        assert finding.message.startswith("none of 200 rows goes without gold")


def test_a_share_that_is_merely_off() -> None:
    (finding,) = against(built(share_without_gold=0.4))
    assert (finding.level, finding.check) == ("warning", "gold-share")


# Hard negatives


def test_sorted_contexts_against_unsorted_embeddings() -> None:
    """ALoFTRAG: contexts were sorted, their embeddings were not, so ranks and scores belonged to other passages.

    Every number in the rows looks right; only asking the serving index again shows it.
    """
    by_text = dict(zip(sorted(OTHERS, key=lambda p: p.text), OTHERS, strict=True))
    mixed_up = {
        id: tuple(Hit(by_text.get(hit.passage, hit.passage), hit.score, hit.rank) for hit in hits)
        for id, hits in HITS.items()
    }
    rows = built(mixed_up)
    (finding,) = against(rows)
    assert (finding.level, finding.check) == ("error", "hard-negatives")
    assert "not at the rank that the serving index gives them" in finding.message
    assert found(rows, train=TRAIN, passages=PASSAGES, shares={"facts": 0.2}) == []


def test_an_index_that_changed_a_little() -> None:
    ranks = {id: {p: rank + 1 for p, rank in found.items()} for id, found in RANKS.items()}
    (finding,) = found(built(), train=TRAIN, passages=PASSAGES, shares={"facts": 0.2}, ranks=ranks)
    assert (finding.level, finding.check) == ("warning", "hard-negatives")


def test_random_distractors_with_their_honest_ranks() -> None:
    """RAG-FiT, gorilla/raft: drawn at random from the corpus."""
    shuffled = {id: tuple(random.Random(id).sample(hits, len(hits))) for id, hits in HITS.items()}
    (finding,) = against(built(shuffled))
    assert (finding.level, finding.check) == ("error", "hard-negatives")
    assert "not the passages that the index ranked highest" in finding.message


def test_distractors_removed_by_hand_are_a_warning() -> None:
    """Somebody took the two hardest passages out of a few rows; the others are as they were built."""
    rows = list(built(share_without_gold=0.0))
    edited = [i for i, r in enumerate(rows) if len(r.distractor_ranks) == 3][:5]
    for i in edited:
        r = rows[i]
        ranked = sorted(zip(r.distractor_ranks, r.distractor_scores, strict=True))
        standing = [id for place, id in enumerate(r.passage_ids) if place not in r.gold]
        easiest = standing[r.distractor_ranks.index(ranked[-1][0])]
        ids = tuple(id for id in r.passage_ids if id in (easiest, *r.gold_ids))
        gold = tuple(place for place, id in enumerate(ids) if id in r.gold_ids)
        rows[i] = replace(
            r, passage_ids=ids, gold=gold, distractor_ranks=ranked[-1][:1], distractor_scores=ranked[-1][1:]
        )
    (finding,) = (f for f in against(rows, 0.0) if f.check == "hard-negatives")
    assert finding.level == "warning"
    assert finding.message.startswith("in 5 of ")
    assert finding.number == edited[0] + 1


def test_ranks_and_scores_from_different_orders() -> None:
    rows = [replace(r, distractor_scores=tuple(reversed(r.distractor_scores))) for r in built()]
    (finding,) = against(rows)
    assert (finding.level, finding.check) == ("error", "hard-negatives")
    assert "scores of distractors do not fall with their ranks" in finding.message


def test_distractors_without_ranks() -> None:
    rows = [replace(r, distractor_ranks=(), distractor_scores=()) for r in built()]
    (finding,) = against(rows)
    assert (finding.level, finding.check) == ("warning", "hard-negatives")
    assert "cannot be told from arbitrary ones" in finding.message


# Passages in the prompt


def test_questions_without_their_context() -> None:
    """gorilla RAFT #534: another field was written, so the file held the questions without the passages."""
    rows = [replace(r, messages=(Message("user", TRAIN[r.question_id].text),)) for r in built()]
    findings = against(rows)
    assert {(f.level, f.check) for f in findings} == {("error", "gold-cut"), ("error", "context")}
    assert len(findings) == len(rows)


def test_context_without_its_question() -> None:
    rows = [replace(r, messages=(Message("user", r.messages[0].content.rpartition("\n\n")[0]),)) for r in built()]
    findings = against(rows)
    assert {(f.level, f.check) for f in findings} == {("error", "context")}
    assert len(findings) == len(rows)


def test_gold_cut_by_a_limit() -> None:
    """Prompts cut to a length lose the end of a passage, sooner or later that of the gold one."""
    rows = built(share_without_gold=0.0)

    def cut(row: TrainingRow) -> TrainingRow:
        text = row.messages[0].content
        gold = PASSAGES[row.gold_ids[0]].text
        return replace(row, messages=(Message("user", text.replace(gold, gold[: len(gold) // 2])),))

    findings = [f for f in against([cut(r) for r in rows], 0.0) if f.level == "error"]
    assert {f.check for f in findings} == {"gold-cut"}
    assert len(findings) == len(rows)
    assert findings[0].message == "gold passage gold-q0 is cut or missing in the prompt"


def test_passages_of_another_index() -> None:
    some = {id: p for id, p in PASSAGES.items() if id not in ("other-1", "other-2")}
    (finding,) = found(built(), train=TRAIN, passages=some, shares={"facts": 0.2})
    assert (finding.level, finding.check) == ("warning", "context")
    assert "not in the index that will serve" in finding.message


def test_a_citation_of_the_wrong_passage() -> None:
    """The passages were shuffled after the target was written."""
    rows = [row(0, gold=(1,), size=3, target="[2] yes"), row(1, gold=(1,), size=3, target="[1] yes")]
    rows += [row(2, gold=(0, 2), size=3, target="[1][3] yes"), row(3, gold=(0, 2), size=3, target="[1] yes")]
    rows += [row(4, gold=(0,), size=1, target="[sic] yes"), row(5, size=2, target="[7] is a number")]
    assert names(found(rows)) == [("error", "citation", "q1"), ("error", "citation", "q3")]
    assert found(rows)[0].message == "the target cites [1], gold is [2]"


def test_a_distractor_that_states_the_answer() -> None:
    """Fair beside gold, and counted; a lie where the row abstains."""
    ids = ("gold-q5", "other-3", "other-4")
    content = "\n".join([*(PASSAGES[id].text for id in ids), "", "What is fact 5?"])
    train = asked("q5", "What is fact 5?", "3 times", split="train")
    beside = replace(row(5, content, gold=(0,), size=3), passage_ids=ids, gold_ids=ids[:1])
    (finding,) = found([beside], train=train, passages=PASSAGES)
    assert (finding.level, finding.check) == ("warning", "answer-in-distractor")
    assert finding.message == "in 1 of 1 rows a distractor states an accepted answer"
    lie = replace(row(5, content, size=2), kind="abstain", passage_ids=ids[1:], gold_ids=ids[:1])
    (error,) = found([lie], train=train, passages=PASSAGES)
    assert (error.level, error.check) == ("error", "answer-in-distractor")
    assert error.message == "the target abstains, but passage other-3 states an accepted answer"
    silent = asked("q5", "What is fact 5?", "7 times", split="train")
    assert found([beside], train=silent, passages=PASSAGES) == found([lie], train=silent, passages=PASSAGES) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold": (3,)}, "gold is [3], expected different places from 0 to 2"),
        ({"gold": (1, 1)}, "gold is [1, 1], expected"),
        ({"gold_ids": ("p0",)}, "gold names the place of a passage that is not among gold_ids"),
        ({"distractor_ranks": (1,)}, "2 distractors, but 1 ranks and 2 scores"),
    ],
)
def test_a_record_that_contradicts_itself(change: dict[str, Any], message: str) -> None:
    findings = found([replace(row(0, gold=(1,), size=3), **change)])
    assert names(findings) == [("error", "record", "q0")]
    assert findings[0].message.startswith(message)


# Seeds


def test_randomness_without_a_seed() -> None:
    """RAG-FiT draws from the shared `random`: each build is another file."""
    unseeded = [built(seed=random.SystemRandom().randrange(1, 2**31)) for _ in range(2)]
    (finding,) = compare_builds(*unseeded)
    assert (finding.level, finding.check) == ("error", "seed")
    first = next(i for i, (a, b) in enumerate(zip(*unseeded, strict=True), 1) if a != b)
    assert finding.number == first
    assert compare_builds(built(), built()) == []
    (shorter,) = compare_builds(built(), built()[:-1])
    assert (shorter.number, shorter.question_id) == (200, "q199")
    assert "200 and 199 rows" in shorter.message


# Whatever comes


ANY_ROW = st.builds(
    TrainingRow,
    st.sampled_from(["facts", "instructions"]),
    st.sampled_from(["q1", "q2", ""]),
    st.sampled_from(["plain", "raft", "raft-without-gold", "abstain", "instruction"]),
    st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), st.text()), max_size=3).map(tuple),
    st.text(),
    st.lists(st.sampled_from(["gold-q1", "other-1", "x"]), max_size=3).map(tuple),
    st.lists(st.integers(-1, 3), max_size=2).map(tuple),
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
    st.lists(st.floats(0, 1), max_size=3).map(tuple),
    st.lists(st.sampled_from(["gold-q1", "other-1", "x"]), max_size=2).map(tuple),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(ANY_ROW, max_size=6))
def test_no_row_breaks_lint(rows: list[TrainingRow]) -> None:
    findings = against(rows)
    assert all(1 <= f.number <= len(rows) and rows[f.number - 1].question_id == f.question_id for f in findings)
