"""What a model is told, what it should say, and how its answers are read."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragtune.assistant import ARMS, Assistant
from ragtune.prompting.strategies import (
    Example,
    abstention,
    build_messages,
    closest_passage,
    is_refusal,
    may_abstain,
    read_citations,
    system_text,
    target_text,
    template,
    user_text,
)
from ragtune.testing import ScriptedGenerator
from ragtune.types import AnswerFormat, Hit, Message, Passage, Question, Span, Split, Task

DOCUMENT = "The fee is 40 euros. It is due in May.\nDogs stay on a lead."
FEE = Passage("fees.md#0-38", "fees.md", DOCUMENT[:38], 0, 38, ("Fees", "Yearly"))
DOGS = Passage("fees.md#39-59", "fees.md", DOCUMENT[39:], 39, 59)
EVIDENCE = Span("fees.md", 0, 20, DOCUMENT[:20])


def question(*answers: str, split: Split = "train", evidence: tuple[Span, ...] = (EVIDENCE,)) -> Question:
    return Question("q1", "How much is it?", answers, "facts", split, evidence)


def task(format: AnswerFormat = "short", *questions: Question) -> Task:
    return Task("facts", ("Answer briefly.",), "token_f1", format, questions)


def test_templates_have_no_final_newline_and_the_fields_that_are_filled() -> None:
    assert template("passage").format(number=1, source="s", text="t") == "[1] (s) t"
    assert template("context").format(passages="P", question="Q").endswith("\n\nQ")
    assert template("answer_from_passages").format(instruction="Do it.").startswith("Do it. ")
    assert template("may_abstain").format(abstention=abstention()).endswith(abstention())
    assert not any(
        template(name).endswith("\n")
        for name in ("abstention", "answer_from_passages", "context", "may_abstain", "passage")
    )


def test_our_own_abstention_is_a_refusal() -> None:
    assert is_refusal(abstention())


# What a model is told


def test_user_text_is_the_question_after_its_numbered_passages() -> None:
    assert user_text("How much?", ()) == "How much?"
    assert user_text("How much?", [FEE, DOGS]) == (
        "Use these passages:\n\n"
        "[1] (Fees > Yearly) The fee is 40 euros. It is due in May.\n"
        "[2] (fees.md) Dogs stay on a lead.\n\n"
        "How much?"
    )


def test_passages_take_one_line_each() -> None:
    ragged = replace(DOGS, text="a\n\n| b |\tc ")
    assert "[1] (fees.md) a | b | c\n" in user_text("How much?", [ragged])


@given(st.text(max_size=30), st.text(max_size=30))
def test_braces_and_anything_else_pass_through(asked: str, text: str) -> None:
    told = user_text("{question}" + asked, [replace(DOGS, text="{x}" + text)])
    assert told.endswith("{question}" + asked)
    assert " ".join(("{x}" + text).split()) in told
    assert "{passages} " + asked in system_text(task(), "{passages} " + asked, with_passages=True)


@pytest.mark.parametrize(
    ("format", "with_passages", "abstains", "expected"),
    [
        ("short", False, False, "Do."),
        ("short", True, False, "Do. Answer from the passages. Begin with the number"),
        ("text", True, True, "Do. Answer from the passages. Begin with the number"),
        ("short", False, True, "Do. If the answer is not given, write: The documents do not say."),
        ("label", True, True, "Do."),
        ("json", True, True, "Do."),
    ],
)
def test_system_text(format: AnswerFormat, with_passages: bool, abstains: bool, expected: str) -> None:
    asked = task(format, question(evidence=()) if abstains else question("40"))
    told = system_text(asked, "Do.", with_passages)
    assert told.startswith(expected)
    assert ("The documents do not say." in told) == (abstains and format in ("short", "text"))
    assert ("like [1]." in told) == (with_passages and format in ("short", "text"))


def test_abstaining_is_learnt_from_training_questions_alone() -> None:
    assert may_abstain(task("short", question("40"), question()))
    assert not may_abstain(task("short", question("40"), question(split="test"), question(split="dev")))
    assert not may_abstain(task("short"))


def test_messages_of_a_plain_arm() -> None:
    assert build_messages("How much?", task(), "Do.") == (Message("system", "Do."), Message("user", "How much?"))


def test_examples_are_earlier_turns_in_the_arms_own_words() -> None:
    examples = [Example(question("40 euros"), (DOGS, FEE)), Example(question("May", evidence=()))]
    messages = build_messages("And dogs?", task(), "Do.", [DOGS], examples)
    assert [message.role for message in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert messages[0].content == system_text(task(), "Do.", with_passages=True)
    assert messages[1].content == user_text("How much is it?", [DOGS, FEE])
    assert messages[2].content == "[2] 40 euros"
    assert messages[3].content == "How much is it?"
    assert messages[4].content == "May"
    assert messages[5].content == user_text("And dogs?", [DOGS])


# What it should say


def test_target_cites_every_passage_with_evidence() -> None:
    asked = question("40 euros", "forty", evidence=(EVIDENCE, Span("fees.md", 39, 59, DOCUMENT[39:])))
    assert target_text(asked, task(), [FEE, DOGS]) == "[1][2] 40 euros"
    assert target_text(asked, task("text"), [DOGS]) == "[1] 40 euros"


@pytest.mark.parametrize("format", ["label", "json"])
def test_formats_without_room_for_citations(format: AnswerFormat) -> None:
    assert target_text(question("40 euros"), task(format), [FEE]) == "40 euros"


def test_target_without_gold_passage_or_answer() -> None:
    assert target_text(question("40 euros"), task(), []) == "40 euros"
    assert target_text(question("40 euros"), task(), [DOGS]) == "40 euros"
    assert target_text(question(evidence=()), task(), [FEE]) == "The documents do not say."


def test_half_of_the_evidence_is_enough() -> None:
    half, less = replace(FEE, start=10, end=20), replace(FEE, start=11, end=20)
    assert target_text(question("40"), task(), [less, half]) == "[2] 40"


# How answers are read


@pytest.mark.parametrize(
    ("text", "answer", "cited"),
    [
        ("[1] 40 euros", "40 euros", (FEE,)),
        ("[2][1] 40 euros", "40 euros", (DOGS, FEE)),
        ("40 euros [1], see [1].", "40 euros , see .", (FEE,)),
        ("[3] [0] [99] 40 euros", "40 euros", ()),
        ("40\n euros", "40 euros", ()),
        ("[100] [x] [] 1] 40", "[100] [x] [] 1] 40", ()),
        ("[2]", "", (DOGS,)),
        ("", "", ()),
    ],
)
def test_citations_are_read_and_taken_out(text: str, answer: str, cited: tuple[Passage, ...]) -> None:
    assert read_citations(text, [FEE, DOGS]) == (answer, tuple(p.id for p in cited))


def test_a_json_array_is_no_citation() -> None:
    said = '{"rooms": [1], "open": true}'
    assistant = Assistant(ARMS["retrieve"], task("json"), "Do.", ScriptedGenerator(lambda _: said))
    assert assistant.answer("Which rooms?", [Hit(FEE, 1.0, 1)]).text == said


@given(st.lists(st.integers(1, 12), max_size=6), st.from_regex(r"[a-z]+( [a-z]+)*", fullmatch=True))
def test_what_a_target_cites_is_what_is_read(numbers: list[int], answer: str) -> None:
    passages = [replace(DOGS, id=str(i)) for i in range(1, 11)]
    said = "".join(f"[{n}]" for n in numbers) + " " + answer
    read, cited = read_citations(said, passages)
    assert read == answer
    assert list(cited) == [str(n) for n in dict.fromkeys(numbers) if n <= 10]


@given(st.integers(0, 3), st.booleans())
def test_targets_read_back_as_the_answer_and_the_gold_passages(place: int, answerable: bool) -> None:
    passages = [replace(DOGS, id=str(i), document_id="other.md") for i in range(3)]
    passages.insert(place, FEE)
    asked = question(*(["40 euros"] if answerable else []))
    read, cited = read_citations(target_text(asked, task(), passages), passages)
    assert (read, cited) == (("40 euros", (FEE.id,)) if answerable else (abstention(), ()))
    assert is_refusal(read) != answerable


@pytest.mark.parametrize(
    "text",
    [
        "The documents do not say.",
        "I don’t know.",
        "This is NOT MENTIONED\n in the text.",
        "The passages do not provide that.",
        "It cannot be answered.",
    ],
)
def test_refusals(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize("text", ["", "40 euros", "Not on Sundays.", "The harbour office says no.", "I know: 40."])
def test_answers_are_no_refusals(text: str) -> None:
    assert not is_refusal(text)


@pytest.mark.parametrize("text", ["The rooms do not contain kettles.", "No, the fee does not provide parking."])
def test_an_answer_about_what_is_missing_is_no_refusal(text: str) -> None:
    assert not is_refusal(text)


def test_the_closest_passage_holds_most_of_the_answers_words() -> None:
    texts = ("The fare is £8.00 each way.", "Bicycles travel free on Sundays.", "Dogs stay on deck.")
    passages = [Passage(f"p{i}", "d", text, 0, len(text)) for i, text in enumerate(texts)]
    assert closest_passage("free on Sundays", passages) == "p1"
    assert closest_passage("£8.00", passages) == "p0"
    assert closest_passage("nine o'clock tomorrow", passages) is None
    assert closest_passage("", passages) is None
