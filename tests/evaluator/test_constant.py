"""The floor of a task, counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ragtune.assistant import ARMS
from ragtune.evaluator.constant import constant_answer, constant_sentence
from ragtune.evaluator.decide import decide
from ragtune.types import Question, Row, Split


def questions(split: Split, *answers: str | None) -> list[Question]:
    return [Question(f"{split}{i}", "?", (a,) if a else (), "t", split) for i, a in enumerate(answers)]


def test_the_most_frequent_training_answer_is_scored_on_what_was_asked() -> None:
    train = questions("train", "no", "yes", "yes", None)
    assert constant_answer(train, questions("test", "yes", "no", "no", None)) == ("yes", 0.25)
    assert constant_answer(train, [replace(questions("test", "no")[0], answers=("no", "yes"))]) == ("yes", 1.0)


def test_refusing_may_be_the_most_frequent_answer() -> None:
    train = questions("train", None, "Rye", None)
    assert constant_answer(train, questions("test", None, "Rye", "Rye", None)) == (None, 0.5)


def test_without_questions_there_is_no_floor() -> None:
    assert constant_answer([], questions("test", "yes")) == ("", 0.0)
    assert constant_answer(questions("train", "yes"), []) == ("", 0.0)


@pytest.mark.parametrize(
    ("constant", "score", "expected"),
    [
        (
            "yes",
            0.5,
            "Always answering 'yes', as most often in training, would score 0.50, which `prompt` is not shown",
        ),
        (None, 0.5, "Always refusing would score 0.50, which `prompt` is not shown to beat."),
        ("yes", 0.2, ""),
        ("yes", 0.0, ""),
    ],
)
def test_a_warning_where_the_floor_is_not_beaten(constant: str | None, score: float, expected: str) -> None:
    rows = [Row("t", f"q{i}", "prompt", float(i % 5 > 1), {}, "", (), (), 1, 1, 0.0, False) for i in range(60)]
    verdict = decide("t", rows, {"prompt": ARMS["prompt"]})  # 0.6 (about 0.47 to 0.72)
    said = constant_sentence(verdict, constant, score)
    assert said.startswith(expected) and bool(said) == bool(expected)
