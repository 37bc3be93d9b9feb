"""The comparison in worked numbers, and the frozen probe of a small project."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import ragtune
from ragtune import store
from ragtune.config import ExportConfig, load_config
from ragtune.generator.examples import TrainingRow
from ragtune.generator.logprobs import Likelihood
from ragtune.parity import Answers, Change, Parity, Probe, compare, frozen_probe, parity_from_json, probe_rows
from ragtune.prompting.strategies import build_messages
from ragtune.session import Session
from ragtune.testing import ScriptedGenerator
from ragtune.types import Message, Question, Reply, Task, Weights

TASK = Task("facts", ("Answer.",), "exact_match", "short", ())
SAYS_NOTHING = ScriptedGenerator(lambda messages: "")


def probes(count: int) -> list[Probe]:
    prompt = (Message("system", "Answer."), Message("user", "Who?"))
    return [Probe(Question(f"q{i}", "Who?", ("me",), "facts", "dev"), TASK, prompt, ()) for i in range(count)]


def answers(
    texts: list[str],
    scores: list[float | None],
    logprobs: list[tuple[float, ...]],
    margins: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
) -> Answers:
    likely = tuple(Likelihood(row, (margin,) * len(row)) for row, margin in zip(logprobs, margins, strict=True))
    return Answers(tuple(Reply(text, 7, 1, 0.0) for text in texts), likely, tuple(scores))


LOGPROBS = [(-0.5, -1.0), (-0.25,), (-2.0,), (-0.75, 0.0, -3.0)]
REFERENCE = answers(["me", "you", "us", "them"], [1, 0, 0.5, 1], LOGPROBS, (0.0, 0.0, 0.0, 1.5))


def test_worked_numbers() -> None:
    """Token differences are 0.5, 0, 0.25, 1, 0, 0.25 and 0: a mean over tokens of 2 / 7, not over answers."""
    logprobs = [(-1.0, -1.0), (-0.5,), (-1.0,), (-0.75, -0.25, -3.0)]
    form = answers(["me", "You", "us", "they"], [1, 0, 1, 0], logprobs, (0.0, 0.5, 0.0, 2.0))
    found = compare(probes(4), REFERENCE, form)
    assert (found.questions, found.agreement, found.score, found.score_difference) == (4, 0.5, 0.5, -0.125)
    assert found.logp_difference == pytest.approx(2 / 7)
    assert found.changes == (Change("q1", "you", "You", 0.5), Change("q3", "them", "they", 0.5))


def test_an_answer_that_differs_by_a_tie_agrees() -> None:
    """q0 differs by no more than bf16 can tell; q3 no more than the reference itself, which was cut short there."""
    form = answers(["I", "You", "us", "they"], [0, 0, 0, 0], LOGPROBS, (0.25, 0.26, 9.0, 1.75))
    found = compare(probes(4), REFERENCE, form)
    assert (found.identical, found.agreement) == (0.25, 0.75)
    assert [change.question_id for change in found.changes] == ["q1"]


def test_a_form_beside_itself_differs_in_nothing() -> None:
    found = compare(probes(4), REFERENCE, REFERENCE)
    assert found == Parity(4, 1.0, 1.0, 0.0, 0.625, 0.0, ())
    assert found.failures(ExportConfig(min_agreement=1.0, max_logp_difference=0.0)) == []


def test_a_cut_answer_hides_no_change_before_its_end() -> None:
    """The reference was cut after `one two`, so the end of turn is unlikely in both; the second token is not."""
    asked = probes(1)
    reference = Answers((Reply("one two", 7, 2, 0.0),), (Likelihood((-1.0, -1.0, -9.0), (0.0, 0.0, 8.0)),), (0.0,))
    form = Answers((Reply("one three", 7, 2, 0.0),), (Likelihood((-1.0, -3.0, -9.0), (0.0, 2.0, 8.1)),), (0.0,))
    assert compare(asked, reference, form).changes == (Change("q0", "one two", "one three", 2.0),)


def test_questions_without_a_score_are_left_out_of_the_mean() -> None:
    form = answers(["me"] * 4, [0.5, None, 1, 0.5], LOGPROBS)
    assert compare(probes(4), REFERENCE, form).score_difference == pytest.approx((-0.5 + 0.5 - 0.5) / 3)


@pytest.mark.parametrize(
    ("agreement", "difference", "expected"),
    [
        (0.85, 0.05, []),
        (0.8499, 0.05, ["0.850 of the answers agree, at least 0.85 must"]),
        (1.0, 0.051, ["log-probabilities differ by 0.051 nats a token, at most 0.05 is allowed"]),
        (1.0, math.nan, ["log-probabilities differ by nan nats a token, at most 0.05 is allowed"]),
    ],
)
def test_bounds(agreement: float, difference: float, expected: list[str]) -> None:
    assert Parity(64, 0.5, agreement, difference, 0.5, 0.0, ()).failures(ExportConfig()) == expected


def test_a_change_is_shown_short() -> None:
    shown = str(Change("q1", "a" * 60, "b" * 61, 1.0))
    assert shown == f"q1: {'a' * 60!r} became {'b' * 59 + '…'!r}"


def test_a_comparison_comes_back_from_json() -> None:
    found = compare(probes(4), REFERENCE, answers(["x"] * 4, [0, 0, 0, 0], LOGPROBS, (1.0,) * 4))
    assert len(found.changes) == 3
    assert parity_from_json(asdict(found)) == found


def test_the_written_probe_holds_what_another_server_needs() -> None:
    assert probe_rows(probes(4), REFERENCE)[3] == {
        "id": "q3",
        "task": "facts",
        "messages": [{"role": "system", "content": "Answer."}, {"role": "user", "content": "Who?"}],
        "max_answer_tokens": 32,
        "answers": ["me"],
        "prompt_tokens": 7,
        "reference": "them",
        "logprobs": [-0.75, 0.0, -3.0],
    }


# The frozen set


def opened(weights: Weights, rows: list[TrainingRow], tasks: list[str], **export: Any) -> Session:
    """The project at hand with an adapter folder that holds these rows."""
    config = load_config(Path())
    ragtune.index(config)
    config = config.model_copy(update={"export": ExportConfig(**export)})
    session = Session(config)
    with store.atomic_folder(session.adapter(weights), {"kind": "adapter", "tasks": tasks}) as building:
        store.write_jsonl(building / "rows.jsonl", (row.to_json() for row in rows))
    return session


def test_dev_questions_of_the_adapters_tasks_with_their_passages(project: Path) -> None:
    session = opened("raft", [], ["facts", "routing"], probe_questions=8)
    found = frozen_probe(session, "raft", SAYS_NOTHING)
    assert [(p.task.name, p.question.split) for p in found] == [("facts", "dev")] * 4 + [("routing", "dev")] * 4
    task = session.task("facts")
    for probe in found[:4]:
        assert len(probe.hits) == 3
        passages = [hit.passage for hit in probe.hits]
        assert probe.prompt == build_messages(probe.question.text, task, task.instructions[0], passages)
    assert found == frozen_probe(session, "raft", SAYS_NOTHING)


def test_closed_book_needs_no_index(project: Path) -> None:
    session = opened("tune", [], ["facts"], probe_questions=100)
    found = frozen_probe(Session(session.project), "tune", SAYS_NOTHING)
    assert [p.question.id for p in found] == [q.id for q in session.task("facts").split("dev")]
    assert all(p.hits == () and "passages" not in p.prompt[-1].content for p in found)


def test_another_seed_draws_other_questions(project: Path) -> None:
    ids = []
    for seed in (1, 2):
        session = opened("tune", [], ["facts", "record"], probe_questions=4, seed=seed)
        ids.append([p.question.id for p in frozen_probe(session, "tune", SAYS_NOTHING)])
    assert ids[0] != ids[1]
    assert len(ids[0]) == len(ids[1]) == 4


def test_rows_stand_in_where_there_are_no_dev_questions(project: Path) -> None:
    """Rows of the project's questions are scored as they are; others (plain instruction data) by their target."""
    path = project / "tasks" / "facts.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"dev"', '"train"'), encoding="utf-8")
    prompt = (Message("system", "Answer."), Message("user", "How many boats can one member keep?"))
    passage = Session(load_config(Path())).tasks[0].questions[0]
    rows = [
        TrainingRow("facts", passage.id, "raft", prompt, "[1] two"),
        TrainingRow("instructions", "chat-1", "plain", (Message("user", "Say hello"),), "hello"),
    ]
    session = opened("raft", rows, ["facts", "instructions"])
    known, other = sorted(frozen_probe(session, "raft", SAYS_NOTHING), key=lambda probe: probe.task.name)
    assert (known.question.id, known.question.answers, known.task.name) == (passage.id, ("two",), "facts")
    assert known.prompt == prompt
    assert (other.question.text, other.question.answers, other.task.name) == ("Say hello", ("hello",), "instructions")
    assert other.task.metric == "rouge_l"
