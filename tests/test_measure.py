"""Measuring: few-shot draws, choices on dev, samples, the answer log, and what is asked of whom."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtune import store
from ragtune.assistant import ARMS
from ragtune.config import EvaluateConfig, RetrievalConfig
from ragtune.measure import (
    AnswerLog,
    Bench,
    Choices,
    arm_hits,
    ask_all,
    build_assistant,
    choose_on_dev,
    draw_candidates,
    draw_examples,
    example_passages,
    sample,
)
from ragtune.store import JsonlLog
from ragtune.testing import ScriptedGenerator
from ragtune.types import AnswerFormat, Arm, Hit, Message, Passage, Question, Reply, Split, Task

SPLITS: dict[Split, int] = {"train": 20, "dev": 8, "test": 12}
COLOURS = ("red", "green", "blue", "white")


def task(
    format: AnswerFormat = "short",
    instructions: Sequence[str] = ("Be short.", "Be exact."),
    answers: Callable[[int], tuple[str, ...]] = lambda i: (COLOURS[i % 4],),
) -> Task:
    questions = [
        Question(f"{split}-{i}", f"What is {split} {i}?", answers(i), "colours", split)
        for split, size in SPLITS.items()
        for i in range(size)
    ]
    metric = "accuracy" if format == "label" else "exact_match"
    labels = COLOURS if format == "label" else ()
    return Task("colours", tuple(instructions), metric, format, tuple(questions), labels)


def passage(name: str) -> Passage:
    return Passage(name, "lake.md", f"Text of {name}.", 0, 10)


def hit(name: str, rank: int = 1) -> Hit:
    return Hit(passage(name), 1.0 / rank, rank)


def bench(folder: Path, **config: int) -> Bench:
    log = AnswerLog(JsonlLog(folder / "answers.jsonl"))
    return Bench(log, {}, {}, RetrievalConfig(), EvaluateConfig(**config), lambda label, done, total: None)


# --- few-shot examples -----------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(shots=st.integers(1, 30), seed=st.integers(0, 100))
def test_examples_are_train_questions_drawn_by_seed(shots: int, seed: int) -> None:
    for made in (task(), task("label")):
        drawn = draw_examples(made, shots, seed)
        assert drawn == draw_examples(made, shots, seed)
        assert len(set(drawn)) == len(drawn) == min(shots, 20)
        assert all(question.split == "train" for question in drawn)


def test_another_seed_draws_other_examples() -> None:
    assert len({draw_examples(task(), 4, seed) for seed in range(10)}) == 10


@settings(max_examples=30, deadline=None)
@given(shots=st.integers(1, 20), seed=st.integers(0, 100))
def test_examples_of_a_label_task_are_spread_over_its_labels(shots: int, seed: int) -> None:
    # One label has 17 of 20 training questions; the others come in nevertheless.
    made = task("label", answers=lambda i: (COLOURS[i] if i < 3 else "white",))
    counts = Counter(question.answers[0] for question in draw_examples(made, shots, seed))
    assert len(counts) == min(shots, 4)
    assert all(counts[colour] <= 1 for colour in COLOURS[:3])


@settings(max_examples=30, deadline=None)
@given(shots=st.integers(2, 12), seed=st.integers(0, 100))
def test_one_example_is_unanswerable_where_the_task_has_such_questions(shots: int, seed: int) -> None:
    made = task(answers=lambda i: (COLOURS[i % 4],) if i % 7 else ())
    drawn = draw_examples(made, shots, seed)
    assert sum(not question.answerable for question in drawn) == 1
    assert all(question.answerable for question in draw_examples(task(), shots, seed))


def test_the_unanswerable_example_has_no_fixed_place() -> None:
    made = task(answers=lambda i: (COLOURS[i % 4],) if i % 7 else ())
    places = {[q.answerable for q in draw_examples(made, 4, seed)].index(False) for seed in range(30)}
    assert places == {0, 1, 2, 3}


def test_an_example_shows_gold_else_the_best_hit() -> None:
    assert example_passages([], []) == ()
    assert example_passages([passage("z")], [hit("a"), hit("b", 2)]) == (passage("z"),)
    assert example_passages([], [hit("a"), hit("b", 2)]) == (passage("a"),)
    assert example_passages([passage("z"), passage("y")], []) == (passage("z"),)


# --- choices on dev --------------------------------------------------------------------------------------------------


def answering_only(condition: Callable[[Sequence[Message]], bool]) -> ScriptedGenerator:
    """Right where the condition holds of the prompt, else silent on the matter."""

    def reply(messages: Sequence[Message]) -> str:
        number = int(messages[-1].content.rstrip("?").split()[-1])
        return COLOURS[number % 4] if condition(messages) else "no idea"

    return ScriptedGenerator(reply)


@pytest.mark.parametrize("better", ["Be short.", "Be exact."])
def test_the_better_instruction_is_chosen(tmp_path: Path, better: str) -> None:
    generator = answering_only(lambda messages: messages[0].content.startswith(better))
    choices = choose_on_dev(task(), generator, bench(tmp_path))
    assert choices.instruction == better
    scores = {"Be short.": choices.dev_scores["instruction 1"], "Be exact.": choices.dev_scores["instruction 2"]}
    assert scores.pop(better) == 1.0
    assert list(scores.values()) == [0.0]
    questions = {prompt[-1].content for prompt in generator.prompts}
    assert questions == {question.text for question in task().split("dev")}  # the test split is never seen


def test_the_instruction_with_passages_is_chosen_by_itself(tmp_path: Path) -> None:
    made = task()
    place = bench(tmp_path)
    hits = {question.id: (hit("p"),) for question in made.questions}
    place = replace(place, hits=hits)

    def obeys(messages: Sequence[Message]) -> bool:
        reads = "Use these passages" in messages[-1].content
        return messages[0].content.startswith("Be exact." if reads else "Be short.")

    choices = choose_on_dev(made, answering_only(obeys), place)
    assert (choices.instruction, choices.instruction_with_passages) == ("Be short.", "Be exact.")


def test_the_better_examples_are_chosen(tmp_path: Path) -> None:
    made, config = task(instructions=["Be short."]), EvaluateConfig(example_sets=2, shots=4)
    candidates = draw_candidates(made, config)
    wanted = candidates[3]
    generator = answering_only(lambda messages: [m.content for m in messages[1:-1:2]] == [q.text for q in wanted])
    choices = choose_on_dev(made, generator, bench(tmp_path, example_sets=2, shots=4))
    assert choices.example_ids == tuple(question.id for question in wanted)
    assert choices.dev_scores == {"examples 1": 0.0, "examples 2": 0.0, "examples 3": 0.0, "examples 4": 1.0}


def test_each_draw_competes_whole_and_by_half() -> None:
    assert [len(draw) for draw in draw_candidates(task(), EvaluateConfig(example_sets=2, shots=6))] == [6, 3, 6, 3]
    assert [len(draw) for draw in draw_candidates(task(), EvaluateConfig(example_sets=2, shots=1))] == [1, 1]


def test_without_a_choice_nothing_is_asked(tmp_path: Path) -> None:
    generator = answering_only(lambda _: True)
    choices = choose_on_dev(task(instructions=["Be short."]), generator, bench(tmp_path, example_sets=1, shots=1))
    no_dev = choose_on_dev(task(), generator, bench(tmp_path, dev_questions=0))
    assert generator.prompts == []
    assert choices.dev_scores == no_dev.dev_scores == {}
    assert no_dev.instruction == "Be short."
    assert len(choices.example_ids) == 1


def favouring(favourite: str, pull: float) -> ScriptedGenerator:
    """A generator that knows the colours but whose prompt pulls it to one of them."""

    class Pulled(ScriptedGenerator):
        def choose(self, prompts: Sequence[Sequence[Message]], labels: Sequence[str], n: int) -> list[Reply]:
            replies = []
            for prompt in prompts:
                right = COLOURS[int(prompt[-1].content.rstrip("?").split()[-1]) % 4]
                scores = {x: -1.0 * (x != right) + pull * (x == favourite) for x in labels}
                replies.append(Reply(max(labels, key=scores.__getitem__), 9, 1, 0.0, scores, right))
            return replies

    return Pulled(lambda _: "")


def test_labels_that_a_prompt_favours_are_calibrated_where_that_is_better_on_dev(tmp_path: Path) -> None:
    made = task("label", instructions=["Be short."])
    drawn_to_red = favouring("red", 1.5)
    place = bench(tmp_path / "pulled", example_sets=1, shots=2)
    choices = choose_on_dev(made, drawn_to_red, place)
    assert choices.priors.keys() == {"prompt", "retrieve", "few-shot", "retrieve+few-shot"}
    assert max(choices.priors["prompt"], key=choices.priors["prompt"].__getitem__) == "red"
    assistant = build_assistant(ARMS["prompt"], made, "Be short.", (), drawn_to_red, place)
    plain = ask_all(assistant, made.split("test"), place, "plain")
    calibrated = ask_all(replace(assistant, prior=choices.priors["prompt"]), made.split("test"), place, "calibrated")
    assert {row.text for row in plain} == {"red"}
    assert [row.score for row in calibrated] == [1.0] * len(calibrated)
    assert choose_on_dev(made, favouring("red", 0.0), bench(tmp_path / "fair")).priors == {}


def test_tuned_weights_keep_the_instruction_that_they_were_trained_with() -> None:
    made = task()
    choices = Choices("Be exact.", "Be right.", (), {})
    given_to = {name: choices.instruction_for(arm, made) for name, arm in ARMS.items()}
    assert {name for name, text in given_to.items() if text == "Be exact."} == {"prompt", "few-shot"}
    assert {name for name, text in given_to.items() if text == "Be right."} == {"retrieve", "retrieve+few-shot"}
    assert all(given_to[name] == "Be short." for name in ("tune", "tune+retrieve", "raft", "raft-closed", "oracle"))


# --- samples ---------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(most=st.none() | st.integers(0, 25), seed=st.integers(0, 1000))
def test_a_sample_is_a_seeded_subset_in_file_order(most: int | None, seed: int) -> None:
    questions = task().split("train")
    drawn = sample(questions, most, seed)
    assert drawn == sample(questions, most, seed)
    assert len(drawn) == min(20, 20 if most is None else most)
    places = [questions.index(question) for question in drawn]
    assert places == sorted(set(places))


def test_every_question_can_be_in_a_sample() -> None:
    questions = task().split("train")
    counts = Counter(question for seed in range(400) for question in sample(questions, 5, seed))
    # Each of 20 is in a sample of 5 with probability 1/4: 100 of 400 expected, standard deviation 8.7.
    assert all(abs(counts[question] - 100) < 5 * 8.7 for question in questions)


# --- the answer log --------------------------------------------------------------------------------------------------


def test_the_log_gives_back_what_was_added(tmp_path: Path) -> None:
    reply = Reply("blue", 10, 1, 0.5, {"blue": -0.1, "red": -2.0}, "Blue!")
    log = AnswerLog(JsonlLog(tmp_path / "log.jsonl"))
    log.add({"one": reply, "two": Reply("", 1, 0, 0.0)})
    again = AnswerLog(JsonlLog(tmp_path / "log.jsonl"))
    for each in (log, again):
        assert each["one"] == reply
        assert each["two"] == Reply("", 1, 0, 0.0)
        assert "three" not in each


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_the_log_survives_a_torn_line(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "log.jsonl"
    AnswerLog(JsonlLog(path)).add({name: Reply(name, 1, 1, 0.0) for name in ("one", "two")})
    first, second = path.read_bytes().splitlines()
    path.write_bytes(first + b"\n" + second[:kept])
    log = AnswerLog(JsonlLog(path))
    assert ("one" in log, "two" in log) == (True, False)
    log.add({"two": Reply("again", 1, 1, 0.0)})
    assert AnswerLog(JsonlLog(path))["two"].text == "again"
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["one", "two"]


# --- asking ----------------------------------------------------------------------------------------------------------


def test_rows_come_in_the_order_of_the_questions_and_are_asked_once(tmp_path: Path) -> None:
    made, generator = task(), answering_only(lambda _: True)
    questions = made.split("test")
    reports: list[tuple[str, int, int]] = []
    place = bench(tmp_path)
    place = replace(place, report=lambda *report: reports.append(report))
    assistant = build_assistant(ARMS["prompt"], made, "Be short.", (), generator, place)
    rows = ask_all(assistant, questions[:7], place, "first")
    assert [row.question_id for row in rows] == [question.id for question in questions[:7]]
    assert [row.score for row in rows] == [1.0] * 7
    more = ask_all(assistant, questions, place, "more")
    assert more[:7] == rows
    assert len(generator.prompts) == 12
    assert reports == [("first", 0, 7), ("first", 7, 7), ("more", 7, 12), ("more", 12, 12)]


def test_other_weights_labels_or_lengths_are_other_requests(tmp_path: Path) -> None:
    place = bench(tmp_path)
    questions = task().split("test")[:1]
    made = task("label")
    variants = [
        (made, "a"),
        (made, "b"),  # other weights
        (replace(made, labels=COLOURS[:2]), "a"),
        (replace(made, max_answer_tokens=2), "a"),
    ]
    for each, name in variants:
        generator = ScriptedGenerator(lambda _: "red", name)
        assistant = build_assistant(ARMS["prompt"], each, "Be short.", (), generator, place)
        for _ in range(2):
            (row,) = ask_all(assistant, questions, place, "label")
            assert (row.text, row.free_text) == ("red", "red")
        assert len(generator.prompts) == 1
    assert len(list(store.read_jsonl(tmp_path / "answers.jsonl"))) == len(variants)


def test_an_arm_is_given_the_passages_that_it_stands_for(tmp_path: Path) -> None:
    place = bench(tmp_path)
    found = (hit("wrong"), hit("gold", 2))
    gold = {"test-1": (passage("gold"),), "test-2": ()}
    place = replace(place, hits={"test-1": found, "test-2": found}, gold=gold)
    answerable = Question("test-1", "What?", ("red",), "colours", "test")
    unanswerable = Question("test-2", "What?", (), "colours", "test")

    def names(arm: Arm, question: Question) -> list[str]:
        return [each.passage.id for each in arm_hits(arm, question, place)]

    assert names(ARMS["prompt"], answerable) == names(ARMS["tune"], answerable) == []
    assert names(ARMS["retrieve"], answerable) == names(ARMS["raft"], answerable) == ["wrong", "gold"]
    assert names(ARMS["oracle"], answerable) == ["gold"]
    assert names(ARMS["oracle"], unanswerable) == ["wrong", "gold"]  # gold passages would give away that one exists


def test_few_shot_examples_carry_passages_only_where_the_arm_does(tmp_path: Path) -> None:
    place = bench(tmp_path)
    made = task()
    examples = draw_examples(made, 2, 0)
    hits = {question.id: (hit("p"),) for question in made.questions}
    place = replace(place, hits=hits)
    shown = {
        name: [
            example.passages for example in build_assistant(arm, made, "Be short.", examples, _mute(), place).examples
        ]
        for name, arm in ARMS.items()
    }
    assert shown.pop("few-shot") == [(), ()]
    assert shown.pop("retrieve+few-shot") == [(passage("p"),), (passage("p"),)]
    assert all(worked == [] for worked in shown.values())


def _mute() -> ScriptedGenerator:
    return ScriptedGenerator(lambda _: "")
