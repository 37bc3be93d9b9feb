"""Each check against the fault that it is there for, as others have shipped it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ragtune.generator.examples import TrainingRow
from ragtune.generator.lint import Encode, LintFinding, lint
from ragtune.types import Message

END = 2
SYSTEM = Message("system", "Answer briefly.")


def row(i: int, text: str = "", target: str = "yes", gold: tuple[int, ...] = (), size: int = 0) -> TrainingRow:
    messages = (SYSTEM, Message("user", text or f"Is {i} odd?"))
    return TrainingRow("facts", f"q{i}", "raft" if size else "plain", messages, target, ("p",) * size, gold)


def words(row: TrainingRow) -> tuple[list[int], int]:
    """A token a word, and an end of turn after each message."""
    prompt = [token for message in row.messages for token in (*[9] * len(message.content.split()), END)]
    return [*prompt, *[9] * len(row.target.split()), END], len(prompt)


def found(
    rows: Sequence[TrainingRow], encode: Encode = words, most: int = 100, held_out: Sequence[str] = ()
) -> list[LintFinding]:
    return lint(rows, encode, END, most, held_out)


def test_good_rows_pass() -> None:
    assert found([row(i) for i in range(50)], held_out=["Is 50 odd?"]) == []
    assert found([]) == []


def test_the_end_of_turn_masked_out_with_the_padding(tiny: Path) -> None:
    """axolotl #3754: the pad token is the end of turn, and every pad token was taken out of the labels.

    The prompt's own ends of turn must not hide it.
    """
    from ragtune.generator.generate import load_tokenizer
    from ragtune.generator.train import encode_row

    tokenizer = load_tokenizer(tiny)

    def masking(row: TrainingRow) -> tuple[list[int], int]:
        ids, prompt = encode_row(tokenizer, row)
        return [*ids[:prompt], *(t for t in ids[prompt:] if t != tokenizer.pad_token_id)], prompt

    rows = [row(1), row(2)]
    assert tokenizer.eos_token_id in masking(rows[0])[0]
    masked = lint(rows, masking, tokenizer.eos_token_id, 100, ())
    assert [(f.level, f.check, f.question_id) for f in masked] == [
        ("error", "end-of-turn", "q1"),
        ("error", "end-of-turn", "q2"),
    ]
    assert lint(rows, lambda row: encode_row(tokenizer, row), tokenizer.eos_token_id, 100, ()) == []


def test_gold_always_first() -> None:
    """RAG-FiT, gorilla/raft: the gold passage at place 0 of every row."""
    first = [row(i, gold=(0,), size=4) for i in range(100)]
    (finding,) = found(first)
    assert (finding.level, finding.check) == ("error", "gold-position")
    assert "4 places: [100, 0, 0, 0]" in finding.message


def test_gold_first_in_rows_of_one_size_alone() -> None:
    rng = random.Random(0)
    sizes = [(2 + i % 3, i) for i in range(300)]
    fair = [row(i, gold=(rng.randrange(size),), size=size) for size, i in sizes]
    assert found(fair) == []
    skewed = [replace(r, gold=(0,)) if len(r.passage_ids) == 3 else r for r in fair]
    assert ["over 3 places" in f.message for f in found(skewed)] == [True]


def test_too_few_rows_to_judge_positions_and_rows_with_all_gold_or_one_passage() -> None:
    few = [row(i, gold=(0,), size=4) for i in range(19)]
    single = [row(i + 100, gold=(0,), size=1) for i in range(100)]
    both = [row(i + 300, gold=(0, 1), size=2) for i in range(100)]
    assert found([*few, *single, *both]) == []


@pytest.mark.parametrize(
    "text", ["Is 1 odd?", "  is 1\n ODD? ", "Use these passages:\n\n[1] (a.md) Odd.\n[2] (b.md) Even.\n\nIs 1 odd?"]
)
def test_a_test_question_among_the_rows(text: str) -> None:
    findings = found([row(0), row(1, text)], held_out=["Is 1 odd?"])
    assert [(f.level, f.check, f.question_id) for f in findings] == [("error", "leak", "q1")]


def test_a_test_question_of_several_paragraphs() -> None:
    held_out = ["I lost my bag.\n\nWhat now?"]
    context = "Use these passages:\n\n[1] (a.md) Odd.\n\n"
    assert [f.check for f in found([row(1, held_out[0])], held_out=held_out)] == ["leak"]
    assert [f.check for f in found([row(1, context + held_out[0])], held_out=held_out)] == ["leak"]
    assert found([row(1, "I lost my dog.\n\nWhat now?")], held_out=held_out) == []


def test_the_same_row_twice() -> None:
    """A warning: what is repeated weighs double, and nothing breaks. Same question, other answer: no duplicate."""
    rows = [row(0), row(1), row(2, "Is 0 odd?"), row(3, "Is 1 odd?", target="no")]
    (finding,) = found(rows)
    assert (finding.level, finding.check, finding.question_id) == ("warning", "duplicate", "q2")
    assert finding.message == "same prompt and target as q0"


def test_too_long() -> None:
    tokens = len(words(row(0))[0])
    assert found([row(0)], most=tokens) == []
    (finding,) = found([row(0)], most=tokens - 1)
    assert (finding.level, finding.check) == ("error", "length")
    assert f"{tokens} tokens, more than max_tokens = {tokens - 1}" in finding.message


@pytest.mark.parametrize("target", ["", " \n"])
def test_an_empty_target(target: str) -> None:
    findings = found([row(0, target=target)])
    assert [(f.level, f.check, f.question_id) for f in findings] == [("error", "empty-target", "q0")]


def test_a_row_that_lost_its_prompt() -> None:
    findings = found([row(0, text=" ", gold=(0,), size=2)])
    assert [(f.level, f.check) for f in findings] == [("error", "empty-prompt")]


def test_errors_come_first() -> None:
    rows = [row(0), row(1, "Is 0 odd?"), row(2, target="")]
    assert [f.level for f in found(rows)] == ["error", "warning"]
