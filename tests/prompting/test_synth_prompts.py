"""Prompts that ask for questions, and reading what comes back."""

from __future__ import annotations

import pytest

from ragtune.prompting import synth
from ragtune.types import Passage

STATEMENT = ("Pupils pay ", "12 pounds", " a year,\nsays the bursar.")


def test_the_model_sees_a_gap_and_never_the_answer() -> None:
    messages = synth.question_messages("Rules > Fees", STATEMENT, "amount")
    assert [m.role for m in messages] == ["system", *["user", "assistant"] * 6, "user"]
    asked = messages[-1].content
    assert asked == (
        "Rules > Fees: Pupils pay ____ a year, says the bursar.\n"
        'Write a question that asks for ____ and begins with "How many".'
    )
    shown = [m.content for m in messages if m.role == "user"]
    assert all(text.count(synth.GAP) == 2 and "[" not in text for text in shown)


def test_worked_examples_obey_what_is_asked() -> None:
    messages = synth.question_messages("c", STATEMENT, "amount")
    pairs = synth.pair_messages("c", "t", 1)
    for user, reply in zip(messages[1:-1:2], messages[2::2], strict=True):
        assert f'begins with "{" ".join(reply.content.split()[:2])}"' in user.content
        assert synth.read_question(reply.content) == reply.content
    for number, (user, reply) in enumerate(zip(pairs[1:-1:2], pairs[2::2], strict=True)):
        ((question, answer),) = synth.read_pairs(reply.content)
        assert question == messages[2 + 2 * number].content
        assert answer in user.content
        assert answer not in question


def test_several_pairs_are_asked_for_without_examples() -> None:
    system, user = synth.pair_messages("Rules", "Pupils\npay.", 3)
    assert system.content.startswith("Write 3 different questions about the text")
    assert user.content == "Text (Rules): Pupils pay."


@pytest.mark.parametrize(
    ("kind", "answer", "before", "begin"),
    [
        ("date", "3 May", "", "When"),
        ("time", "07:15", "", "At what time"),
        ("name", "Alder", "Ask Mrs ", "Who"),
        ("name", "Mrs Alder", "", "Who"),
        ("name", "Veyport", "in ", "What"),
        ("thing", "the pier", "at ", "What"),
        ("amount", "£5", "", "How much"),
        ("amount", "20%", "", "What percentage"),
        ("amount", "20 per cent", "", "What percentage"),
        ("amount", "48 hours", "", "How long"),
        ("amount", "3.9 m", "", "What"),
        ("amount", "12 boats", "", "How many"),
        ("amount", "3 men", "", "How many"),
    ],
)
def test_how_a_question_begins(kind: str, answer: str, before: str, begin: str) -> None:
    assert synth.question_begin(kind, answer, before) == begin


@pytest.mark.parametrize(
    ("reply", "question"),
    [
        ("How many boats may I keep?", "How many boats may I keep?"),
        ("Question: How many  boats?\nAnswer: two", "How many boats?"),
        ("**Question 1:** “Who swims?”", "Who swims?"),
        ("Sure! Here it is:\n\n1. Who swims? Who rows?", "Who swims?"),
        ("Ferry: which one is it?", "Ferry: which one is it?"),
        ("どこで泳げますか？", "どこで泳げますか？"),
        ("Who swims", None),
        ("", None),
    ],
)
def test_reading_a_question(reply: str, question: str | None) -> None:
    assert synth.read_question(reply) == question


@pytest.mark.parametrize(
    ("reply", "pairs"),
    [
        ("Question: Who swims?\nAnswer: Mrs Alder", [("Who swims?", "Mrs Alder")]),
        (
            "**Question 1:** Who?\n**Answer:** a\n\n### Question 2: Where?\n\nAnswer 2: b.",
            [("Who?", "a"), ("Where?", "b.")],
        ),
        ("Question: Who swims?", []),
        ("Answer: a\nQuestion: Who?", []),
        ("", []),
    ],
)
def test_reading_pairs(reply: str, pairs: list[tuple[str, str]]) -> None:
    assert synth.read_pairs(reply) == pairs


def test_judge_and_reader_see_passage_and_question() -> None:
    passage = Passage("p", "a.md", "Pupils pay half.", 0, 16, ("Fees",))
    for build in (synth.judge_messages, synth.answer_messages):
        system, user = build("Who pays half?", passage)
        assert system.role == "system"
        assert "(Fees) Pupils pay half." in user.content
        assert user.content.endswith("Who pays half?")
