"""What early stopping stops by: dev questions of the tasks, answered by the model in training as its arm will."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import ragtune
from ragtune import store
from ragtune.assistant import ARMS, Assistant
from ragtune.config import load_config
from ragtune.dev_score import dev_score
from ragtune.errors import ConfigError, InputError
from ragtune.evaluator.score import score_answer
from ragtune.generator.generate import LocalGenerator, load_weights
from ragtune.session import Session
from ragtune.types import Hit, Weights


def by_hand(session: Session, weights: Weights) -> float:
    """The mean over tasks of the mean score, question by question, of the base model in the arm's place."""
    generator = LocalGenerator.from_folder(session.base[0], "tiny", session.base[1])
    means = []
    for task in session.located_tasks:
        assistant = Assistant(ARMS[weights], task, task.instructions[0], generator)
        scores = []
        for question in task.split("dev"):
            hits: tuple[Hit, ...] = tuple(session.retriever.search([question.text])[0]) if weights == "raft" else ()
            scores.append(score_answer(question, task, assistant.answer(question.text, hits)).score or 0.0)
        means.append(sum(scores) / len(scores))
    return sum(means) / len(means)


@pytest.fixture
def session(made_project: Path) -> Session:
    return Session(load_config(made_project))


@pytest.mark.parametrize("weights", ["tune", "raft"])
def test_it_is_the_mean_over_tasks(session: Session, weights: Weights) -> None:
    model = load_weights(session.base[0], torch.float32)
    score = dev_score(session, weights)
    assert score(model) == pytest.approx(by_hand(session, weights))
    assert score(model) == score(model)


def test_passages_are_retrieved_once(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    score = dev_score(session, "raft", ["facts"])
    monkeypatch.setattr(type(session.retriever), "search", None)
    assert 0 <= score(load_weights(session.base[0], torch.float32)) <= 1


def test_only_some_tasks_and_questions(made_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    answer = LocalGenerator.choose

    def choose(self: Any, prompts: Any, labels: Any, room: int) -> Any:
        asked.append(len(prompts))
        return answer(self, prompts, labels, room)

    monkeypatch.setattr(LocalGenerator, "choose", choose)
    session = Session(load_config(made_project, {"tune.dev_questions": 4}))
    dev_score(session, "tune", ["routing"])(load_weights(session.base[0], torch.float32))
    assert asked == [4]


def test_unknown_tasks_and_tasks_without_dev_questions(project: Path) -> None:
    ragtune.index(load_config(project))
    with pytest.raises(ConfigError, match="unknown task 'fact'"):
        dev_score(Session(load_config(project)), "tune", ["fact"])
    file = project / "tasks" / "routing.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows if row["split"] != "dev"))
    with pytest.raises(InputError, match="there are none in: routing; add some, or leave eval_steps out"):
        dev_score(Session(load_config(project)), "tune")


def test_tuning_stops_by_dev_questions_and_keeps_the_best_weights(made_project: Path) -> None:
    settings = {"tune.eval_steps": 1, "tune.patience": 2, "tune.epochs": 4.0, "tune.dev_questions": 3}
    tuned = ragtune.tune(load_config(made_project, settings), "tune")
    manifest = store.open_folder(tuned.folder, "adapter")
    scores = {step: score for step, score in manifest["dev_scores"]}
    assert list(scores) == list(range(1, manifest["steps"] + 1))
    best = max(scores, key=lambda step: (scores[step], -step))
    assert manifest["steps"] == min(best + 2, 20)
    ledger = list(store.read_jsonl(tuned.folder / "ledger.jsonl"))
    assert {row["step"]: row["dev_score"] for row in ledger} == scores
    assert [row["loss"] for row in ledger] == manifest["losses"]
    assert (ledger[-1]["tokens"], ledger[-1]["seconds"]) == (manifest["trained_tokens"], manifest["seconds"])
    session = Session(load_config(made_project, settings))
    generator = session.generator("tune")
    assert isinstance(generator, LocalGenerator)
    assert dev_score(session, "tune")(generator.model) == pytest.approx(scores[best])


def test_a_report_shows_how_adapters_were_trained(made_project: Path) -> None:
    found = json.loads((made_project / "reports" / "fenmere" / "report.json").read_text())["training"]
    assert [facts["adapter"] for facts in found] == ["raft", "tune"]
    for facts in found:
        manifest = store.read_manifest(made_project / "adapters" / "fenmere" / facts["adapter"], "adapter")
        assert facts["losses"] == manifest["losses"] and facts["learning_rate"] > 0
