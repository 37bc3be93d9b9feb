"""What scripts/bench_raft.py works with: a set of questions with its index, adapters trained on it, and answers.

A `Study` is opened in a working folder and goes on there: the imported set, the index, each adapter (by the hash of the
settings it was trained with) and every answer (by the hash of what was asked) are made once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from alone import alone

import ragtune
from ragtune import pipeline, store
from ragtune.assistant import ARMS, Assistant
from ragtune.cli.output import watching
from ragtune.corpus.importers.convert import ImportOptions
from ragtune.generator.generate import LocalGenerator
from ragtune.measure import AnswerLog, Bench, ask_all, sample
from ragtune.session import Session, gold_passages
from ragtune.types import Hit, Question, Row, Split, Task, Weights

CORPUS = Path(__file__).resolve().parents[1] / "corpora" / "harbourline"
SAMPLE = ("harbourline", "facts")
WHOLE_CONTEXT = 7_000
"""Tokens of passages that a prompt may hold, so that none of ten is left out."""

Given = Mapping[str, Sequence[Hit]]
"""The passages that each question is asked with, by its id."""


@dataclass(frozen=True)
class Study:
    """A task of one set. `config_file` holds the project, `settings` lie over it; `folder` is where the index lies.

    `trained` holds the adapters that were asked for so far, by the folder of their trial.
    """

    name: str
    task: Task
    session: Session
    folder: Path
    config_file: Path
    settings: Mapping[str, Any]
    log: AnswerLog
    trained: dict[Path, Path] = field(default_factory=dict)

    def questions(self, split: Split, most: int) -> tuple[Question, ...]:
        """At most `most` answerable questions of a split whose gold passages are in the index, drawn by seed."""
        asked = [q for q in self.task.split(split) if q.answerable]
        gold = gold_passages(asked, self.session.index.passages)
        return sample([q for q in asked if gold[q.id]], most, self.session.project.evaluate.seed)


def open_study(work: Path, data: Path | None, name: str, settings: Mapping[str, Any]) -> Study:
    """The set `name` in the folder `data`, imported whole; without `data` the facts of the sample corpus.

    Raises: RagtuneError, among others for a set that cannot be imported or a wrong setting.
    """
    place = work / name
    if data is None:
        config_file, task = CORPUS, SAMPLE[1]
    else:
        config_file, task = place / "project", name
        if not config_file.exists():
            place.mkdir(parents=True, exist_ok=True)
            pipeline.import_data(data / name, config_file, ImportOptions(name))
    settings = {"retrieval.context_tokens": WHOLE_CONTEXT, **settings}
    project = ragtune.load_config(config_file, settings)
    folder = place / f"index-{_short_hash(project.index.model_dump(mode='json'))}"
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder), watching() as watch:
        pipeline.index(project, watch=watch)
        session = Session(project)
        located = next(t for t in session.located_tasks if t.name == task)
        _ = session.retriever  # read while this is the working folder
    log = AnswerLog(store.JsonlLog(place / "answers.jsonl"))
    return Study(name, located, session, folder, config_file, settings, log)


def train(study: Study, arm: Weights, changes: Mapping[str, Any]) -> Path:
    """An adapter of the study's task, tuned with further settings; what was made before is taken, or finished.

    It is trained in a process of its own, so that its time and memory are those of training.
    """
    settings = {**study.settings, **changes}
    project = ragtune.load_config(study.config_file, settings)
    parts = project.model_dump(mode="json", include={"retrieval", "generator", "tune", "tasks"})
    trial = study.folder / "trials" / f"{arm}-{_short_hash(parts)}"
    if trial not in study.trained:
        trial.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (trial / "indexes").symlink_to(study.folder / "indexes")
        study.trained[trial] = alone(tune, trial, study.config_file, settings, arm, study.task.name)
    return study.trained[trial]


def tune(trial: Path, config_file: Path, settings: dict[str, Any], arm: Weights, task: str) -> Path:
    """The adapter that `ragtune tune` makes in the working folder `trial`."""
    project = ragtune.load_config(config_file, settings)
    with contextlib.chdir(trial), watching() as watch:
        return pipeline.tune(project, arm, [task], resume=True, watch=watch).folder.resolve()


def reader(study: Study, adapter: Path | None) -> LocalGenerator:
    """The base model, with an adapter or without."""
    model, (folder, fingerprint) = study.session.project.generator.model, study.session.base
    return LocalGenerator.from_folder(folder, model, fingerprint, adapter)


def ask(
    study: Study, generator: LocalGenerator, questions: Sequence[Question], given: Given, instruction: str
) -> list[Row]:
    """One scored row a question, asked with the given passages; what was asked before is read from the log."""
    project = study.session.project
    assistant = Assistant(ARMS["retrieve"], study.task, instruction, generator, (), project.retrieval.context_tokens)
    hits = {id: tuple(found) for id, found in given.items()}
    bench = Bench(study.log, hits, {}, project.retrieval, project.evaluate, lambda *_: None)
    return ask_all(assistant, questions, bench, study.name)


def retrieved(study: Study, questions: Sequence[Question], k: int) -> dict[str, tuple[Hit, ...]]:
    """The k best passages for each question: what serving would give."""
    found = study.session.retriever.search([q.text for q in questions], k)
    return {q.id: tuple(hits) for q, hits in zip(questions, found, strict=True)}


def gold_among(study: Study, questions: Sequence[Question], k: int) -> dict[str, tuple[Hit, ...]]:
    """The gold passage of each question among the k - 1 passages that are ranked highest without being gold.

    The gold passage stands at a place drawn for this question and k, so no place is favoured.
    """
    gold = gold_passages(questions, study.session.index.passages)
    found = retrieved(study, questions, k + max(len(passages) for passages in gold.values()))
    given = {}
    for question in questions:
        golden = {passage.id for passage in gold[question.id]}
        passages = [hit.passage for hit in found[question.id] if hit.passage.id not in golden][: k - 1]
        place = random.Random(f"{question.id}/{k}").randint(0, len(passages))
        passages.insert(place, gold[question.id][0])
        given[question.id] = tuple(Hit(passage, 1.0, rank) for rank, passage in enumerate(passages, 1))
    return given


def recall(study: Study, questions: Sequence[Question], given: Given) -> float:
    """The share of questions with a gold passage among those given."""
    gold = gold_passages(questions, study.session.index.passages)
    return fmean(
        any(hit.passage.id in {passage.id for passage in gold[q.id]} for hit in given[q.id]) for q in questions
    )


def best_instruction(study: Study, generator: LocalGenerator, k: int, most: int) -> str:
    """The task's instruction with which the untuned model scores most on `most` dev questions with k passages."""
    dev = study.questions("dev", most)
    if not dev or len(study.task.instructions) == 1:
        return study.task.instructions[0]
    given = retrieved(study, dev, k)

    def score(instruction: str) -> float:
        return fmean(row.score or 0.0 for row in ask(study, generator, dev, given, instruction))

    return max(study.task.instructions, key=score)


def facts_of(adapter: Path) -> dict[str, Any]:
    """What an adapter's manifest says about its training: `rows`, `minutes`, `tokens_per_second`, `peak_memory`."""
    manifest = store.read_manifest(adapter, "adapter")
    return {
        "rows": manifest["rows"],
        "minutes": manifest["seconds"] / 60,
        "tokens_per_second": manifest["trained_tokens"] / manifest["seconds"],
        "peak_memory": manifest["peak_memory"],
    }


def _short_hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]
