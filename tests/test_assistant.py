"""An arm at work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ragtune import store
from ragtune.assistant import ARMS, OPEN_TASK, Assistant, Decision, get_arm
from ragtune.errors import ConfigError, StoreError
from ragtune.prompting.strategies import Example
from ragtune.testing import ScriptedGenerator
from ragtune.types import AnswerFormat, Arm, Hit, Message, Passage, Question, Task


def hits(*texts: str) -> tuple[Hit, ...]:
    passages = [Passage(f"p{i}", "lake.md", text, 0, len(text), ("Lake",)) for i, text in enumerate(texts, 1)]
    return tuple(Hit(passage, 1 / rank, rank) for rank, passage in enumerate(passages, 1))


def task(format: AnswerFormat = "short", questions: Sequence[Question] = (), **more: object) -> Task:
    made = Task("lake", ("Be short.",), "exact_match", format, tuple(questions))
    return replace(made, **more)  # type: ignore[arg-type]


def assistant(says: str, arm: str = "retrieve", made: Task | None = None, context_tokens: int = 1200) -> Assistant:
    generator = ScriptedGenerator(lambda _: says)
    return Assistant(ARMS[arm], made or task(), "Be short.", generator, context_tokens=context_tokens)


def prompts(made: Assistant) -> list[tuple[Message, ...]]:
    assert isinstance(made.generator, ScriptedGenerator)
    return made.generator.prompts


# --- the arms --------------------------------------------------------------------------------------------------------


def test_the_nine_arms_of_the_design() -> None:
    table = {arm.name: (arm.few_shot, arm.passages, arm.weights, arm.reference) for arm in ARMS.values()}
    assert table == {
        "prompt": (False, "none", "base", False),
        "few-shot": (True, "none", "base", False),
        "retrieve": (False, "retrieved", "base", False),
        "retrieve+few-shot": (True, "retrieved", "base", False),
        "tune": (False, "none", "tune", False),
        "tune+retrieve": (False, "retrieved", "tune", False),
        "raft": (False, "retrieved", "raft", False),
        "oracle": (False, "gold", "raft", True),
        "raft-closed": (False, "none", "raft", True),
    }
    assert all(get_arm(name) is arm for name, arm in ARMS.items())
    with pytest.raises(ConfigError, match="unknown arm 'rag'; expected one of: prompt, few-shot, retrieve,"):
        get_arm("rag")


# --- answering -------------------------------------------------------------------------------------------------------


def test_citations_name_passages_of_the_prompt() -> None:
    found = hits("Ice is thick.", "Boats are white.", "Fog is grey.")
    answer = assistant("[2] white [3][9]").answer("Which colour?", found)
    assert (answer.text, answer.citations, answer.refused) == ("white", ("p2", "p3"), False)
    assert (answer.question, answer.arm, answer.task, answer.hits) == ("Which colour?", "retrieve", "lake", found)
    assert answer.reply.text == "[2] white [3][9]"


def test_an_arm_without_passages_has_nothing_to_cite() -> None:
    made = assistant("[1] white", arm="prompt")
    answer = made.answer("Which colour?", hits("Boats are white."))
    assert (answer.text, answer.hits, answer.citations) == ("[1] white", (), ())
    assert prompts(made) == [(Message("system", "Be short."), Message("user", "Which colour?"))]


@pytest.mark.parametrize("says", ["The documents do not say.", "[1] The documents do not say.", "I don’t know that"])
def test_a_refusal_cites_nothing(says: str) -> None:
    answer = assistant(says).answer("Which colour?", hits("Ice is thick."))
    assert answer.refused
    assert answer.citations == ()


def test_passages_are_numbered_in_the_prompt_in_their_order() -> None:
    made = assistant("[1] thick")
    made.answer("How is the ice?", hits("Ice is thick.", "Boats are white."))
    (prompt,) = prompts(made)
    assert "like [1]" in prompt[0].content
    assert prompt[1].content.endswith("[1] (Lake) Ice is thick.\n[2] (Lake) Boats are white.\n\nHow is the ice?")


def test_the_budget_drops_the_worst_passage() -> None:
    found = hits("one two three", "four five", "six seven eight")
    made = assistant("[2] four", context_tokens=5)
    answer = made.answer("Which?", found)
    assert answer.hits == found[:2]
    assert answer.citations == ("p2",)
    assert "six" not in prompts(made)[0][-1].content
    # What fits nowhere is left out, and what stands behind it moves up: [2] is now the third passage.
    answer = assistant("[2] six", context_tokens=6).answer("Which?", hits("one two three", "a b c d e", "six seven"))
    assert answer.citations == ("p3",)


def test_a_label_task_answers_with_a_label_as_it_stands() -> None:
    made = assistant("No", arm="retrieve", made=task("label", labels=("[1] Yes", "No")))
    answer = made.answer("May I?", hits("You may."))
    assert (answer.text, answer.citations, answer.refused) == ("No", (), False)
    assert set(answer.reply.label_scores) == {"[1] Yes", "No"}
    assert assistant("Never", made=made.task).answer("May I?", ()).text == "[1] Yes"  # never anything but a label
    shown: list[str] = []
    assert made.stream("May I?", (), shown.append).text == "No"
    assert shown == ["No"]


@pytest.mark.parametrize("says", ['{"list": [1], "why": "The documents do not say."}', "not in any document"])
def test_json_is_left_untouched(says: str) -> None:
    answer = assistant(says, made=task("json")).answer("Write it down.", hits("Ice is thick."))
    assert (answer.text, answer.citations, answer.refused) == (says, (), False)


def test_streaming_gives_the_same_answer_piece_by_piece() -> None:
    found = hits("Boats are white.")
    made = assistant("[1] white as snow")
    pieces: list[str] = []
    streamed = made.stream("Which colour?", found, pieces.append)
    whole = made.answer("Which colour?", found)
    assert pieces == ["[1]", " white", " as", " snow"]
    assert replace(streamed, reply=whole.reply) == whole
    assert streamed.reply.text == whole.reply.text
    assert (streamed.reply.prompt_tokens, streamed.reply.output_tokens) == (whole.reply.prompt_tokens, 4)
    assert streamed.reply.seconds >= 0


def test_an_answer_is_as_long_as_the_task_allows() -> None:
    answer = assistant("one two three four", made=task(max_answer_tokens=3)).answer("Count.", ())
    assert (answer.text, answer.reply.output_tokens) == ("one two three", 3)


def test_examples_are_earlier_turns() -> None:
    (found,) = hits("Ice is thick.")
    example = Example(Question("q", "How is the ice?", ("thick",), "lake", "train"), (found.passage,))
    generator = ScriptedGenerator(lambda _: "white")
    made = Assistant(ARMS["retrieve+few-shot"], task(), "Be short.", generator, (example,))
    made.answer("Which colour?", hits("Boats are white."))
    (prompt,) = prompts(made)
    assert [message.role for message in prompt] == ["system", "user", "assistant", "user"]
    assert prompt[2].content == "thick"
    assert "Ice is thick." in prompt[1].content and "Ice is thick." not in prompt[3].content


def test_the_open_task_may_answer_in_a_sentence() -> None:
    made = Assistant(ARMS["retrieve"], OPEN_TASK, OPEN_TASK.instructions[0], ScriptedGenerator(lambda _: "[1] It is."))
    answer = made.answer("Is it?", hits("It is."))
    assert (answer.text, answer.citations, answer.task) == ("It is.", ("p1",), "open")


def test_a_decision_comes_from_a_whole_run_only(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with store.atomic_folder(run, {"kind": "run"}) as building:
        value = {"arms": {"lake": "raft"}, "examples": {"lake": ["q1"]}, "reasons": {}, "instructions": {}}
        value["priors"] = {}
        store.write_json(building / "decision.json", value)
    assert Decision.load(run) == Decision({"lake": "raft"}, {}, {}, {"lake": ("q1",)}, {})
    (run / "decision.json").write_text((run / "decision.json").read_text().replace("raft", "tune"))
    with pytest.raises(StoreError, match=r"decision\.json is damaged"):
        Decision.load(run)


def test_an_arm_of_ones_own_is_an_arm() -> None:
    made = Assistant(Arm("mine", False, "none", "base"), task(), "Be short.", ScriptedGenerator(lambda _: "white"))
    assert made.answer("Which colour?", ()).arm == "mine"
