"""An opened project: its documents, index, models, adapters and decision, each loaded when first needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ragtune.assistant import ARMS, OPEN_TASK, Assistant, Decision, choice_key, get_arm, other_arms, prompting_name
from ragtune.config import DEFAULT_METRICS, ProjectConfig, TaskConfig
from ragtune.corpus.questions import load_task, locate_evidence
from ragtune.errors import ConfigError, QuestionError, StoreError
from ragtune.prompting.calibrate import LabelScores
from ragtune.prompting.strategies import Example
from ragtune.router import Router
from ragtune.types import Arm, Embedder, Generator, Passage, Question, Task, Weights

if TYPE_CHECKING:
    from ragtune.retriever.retrieve import Index, Retriever

TUNED: tuple[Weights, ...] = ("tune", "raft")


@dataclass
class Session:
    """A project at work. `say` is told of work that takes seconds."""

    project: ProjectConfig
    say: Callable[[str], None] = lambda _: None
    _models: dict[str, tuple[Path, str]] = field(default_factory=dict, repr=False)
    _generators: dict[str, Generator] = field(default_factory=dict, repr=False)

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """The project's tasks as their files state them; evidence not yet located.

        Raises: QuestionError naming file and line; ConfigError for a missing file.
        """
        tasks = tuple(_load_task(self.project, name, task) for name, task in self.project.tasks.items())
        _check_ids(tasks)
        return tasks

    @cached_property
    def located_tasks(self) -> tuple[Task, ...]:
        """The tasks with evidence resolved to offsets in the indexed documents."""
        texts = {document.id: document.text for document in self.index.documents.values()}
        return tuple(replace(task, questions=locate_evidence(task.questions, texts)) for task in self.tasks)

    @cached_property
    def embedder(self) -> Embedder:
        """The embedder that `[index]` names."""
        from ragtune.generator import models
        from ragtune.retriever.embed import SentenceEmbedder

        folder = models.resolve(self.project.index.embedder, self.say)
        return SentenceEmbedder.from_folder(folder, self.project.index.embedder, models.fingerprint(folder))

    @cached_property
    def index(self) -> Index:
        """The project's index, its hashes checked."""
        from ragtune.retriever.retrieve import open_index

        folder = self.project.place("indexes")
        if not folder.exists():
            raise StoreError(f"there is no index at {folder}; make one with: ragtune index")
        return open_index(folder)

    @cached_property
    def retriever(self) -> Retriever:
        """The index with its embedder."""
        from ragtune.retriever.retrieve import Retriever

        return Retriever(self.index, self.embedder, self.project.retrieval)

    @property
    def base(self) -> tuple[Path, str]:
        """Folder and fingerprint of the base model."""
        return self.model(self.project.generator.model)

    def model(self, name: str) -> tuple[Path, str]:
        """Folder and fingerprint of a local model, looked for once."""
        from ragtune.generator import models

        if name not in self._models:
            folder = models.resolve(name, self.say)
            self._models[name] = folder, models.fingerprint(folder)
        return self._models[name]

    @cached_property
    def arms(self) -> Mapping[str, Arm]:
        """All arms by name: those of the project's own model, then those of `[generators]`."""
        return ARMS | other_arms(self.project.generators)

    @cached_property
    def decision(self) -> Decision | None:
        """The verdicts of the project's finished run; None before there is one."""
        folder = self.project.place("runs")
        return Decision.load(folder) if folder.exists() else None

    def adapter(self, weights: Weights) -> Path:
        """Where an adapter lies, whether or not it was tuned yet."""
        return self.project.place("adapters") / weights

    def has_weights(self, weights: Weights) -> bool:
        """True for the base, and for adapters that were tuned."""
        return weights == "base" or self.adapter(weights).is_dir()

    def generator(self, weights: Weights) -> Generator:
        """The base model, or it with an adapter. Models loaded before stay while they fit beside the new one.

        Raises: StoreError when the adapter was not tuned yet; MismatchError when it belongs to another base.
        """
        if not self.has_weights(weights):
            raise StoreError(
                f"there is no adapter at {self.adapter(weights)}; make it with: ragtune tune --arm {weights}"
            )
        adapter = None if weights == "base" else self.adapter(weights)
        return self._local(weights, self.project.generator.model, adapter)

    def generator_for(self, arm: Arm) -> Generator:
        """The generator that an arm answers with: the project's own model, or the one of `[generators]` that it names.

        Raises: like `generator`; ModelError for a model that cannot be found; ConfigError without an endpoint's key.
        """
        if arm.generator is None:
            return self.generator(arm.weights)
        config = self.project.generators[arm.generator]
        if config.base_url:
            return self._endpoint(arm.generator)
        return self._local(f"generators.{arm.generator}", config.model)

    def fingerprint_of(self, name: str) -> str:
        """The hash of what answers in `[generators.NAME]`: a model's weights, or an endpoint's address and settings.

        Raises: ModelError for a model that cannot be found; ConfigError without an endpoint's key.
        """
        config = self.project.generators[name]
        return self._endpoint(name).fingerprint if config.base_url else self.model(config.model)[1]

    def _local(self, key: str, model: str, adapter: Path | None = None) -> Generator:
        if key not in self._generators:
            from ragtune.generator import machine
            from ragtune.generator.generate import LocalGenerator

            folder, fingerprint = self.model(model)
            if not machine.fits_again(folder):
                self._generators.clear()
            self._generators[key] = LocalGenerator.from_folder(folder, model, fingerprint, adapter)
        return self._generators[key]

    def _endpoint(self, name: str) -> Generator:
        from ragtune.generator.endpoint import EndpointGenerator

        return EndpointGenerator.from_config(name, self.project.generators[name], self.project.prices.currency)

    def task(self, name: str) -> Task:
        """A task by its name.

        Raises: ConfigError listing the tasks.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        raise ConfigError(f"unknown task {name!r}; tasks are: {', '.join(self.project.tasks) or 'none'}")

    def choose(self, question: str, arm: str | None, task: str | None) -> tuple[Assistant, str]:
        """The assistant for a question, and why this one: what was asked for, else routed by the decision."""
        chosen, reason = self._choose_task(question, task)
        if arm is None and self.decision and chosen.name in self.decision.arms:
            arm = self.decision.arms[chosen.name]
            reason = f"{reason}; its verdict is {arm}"
        picked = get_arm(arm or "retrieve", self.arms)
        return self._assistant(picked, chosen), f"task {chosen.name}: {reason}"

    def _choose_task(self, question: str, task: str | None) -> tuple[Task, str]:
        if task is not None:
            return self.task(task), "as asked"
        if self.decision is None:
            return OPEN_TASK, "no decision yet"
        # The run may be older than the settings: today's default counts, and a task that is gone is not taken.
        default = self.project.default_task
        router = replace(Router.load(self.project.place("runs")), default=default)
        name, reason = router.route(question, self.embedder)
        if name and name not in self.project.tasks:
            name, reason = default, f"the run's router picked {name}, which is no task of this project any more"
        return (self.task(name) if name else OPEN_TASK), reason

    def _assistant(self, arm: Arm, task: Task) -> Assistant:
        key = choice_key(task.name, arm.generator)
        instruction = task.instructions[0]
        prior: LabelScores = {}
        if self.decision and key in self.decision.instructions and arm.weights == "base":
            chosen = self.decision.instructions[key]
            instruction = chosen["without_passages" if arm.passages == "none" else "with_passages"]
            prior = self.decision.priors[key].get(prompting_name(arm), {})
        room = self.project.retrieval.context_tokens
        return Assistant(arm, task, instruction, self.generator_for(arm), self._examples(arm, task), room, prior)

    def _examples(self, arm: Arm, task: Task) -> tuple[Example, ...]:
        if not arm.few_shot:
            return ()
        from ragtune.measure import draw_examples, example_passages

        chosen = self.decision.examples.get(choice_key(task.name, arm.generator), ()) if self.decision else ()
        by_id = {q.id: q for q in task.questions}
        config = self.project.evaluate
        questions = [by_id[i] for i in chosen if i in by_id] or draw_examples(task, config.shots, config.seed)
        if arm.passages == "none":
            return tuple(Example(q) for q in questions)
        hits = self.retriever.search([q.text for q in questions])
        located = {q.id: q for t in self.located_tasks if t.name == task.name for q in t.questions}
        gold = gold_passages((located[q.id] for q in questions), self.index.passages)
        return tuple(Example(q, example_passages(gold[q.id], found)) for q, found in zip(questions, hits, strict=True))


def _check_ids(tasks: Iterable[Task]) -> None:
    """Passages and answers are kept by question id, so two tasks that share one would be given each other's."""
    owners: dict[str, str] = {}
    for task in tasks:
        for question in task.questions:
            owner = owners.setdefault(question.id, task.name)
            if owner != task.name:
                raise QuestionError(
                    f"id {question.id!r} stands in task {owner!r} and in task {task.name!r}; make it unique, "
                    f"e.g. '{task.name}-{question.id}'"
                )


def _load_task(project: ProjectConfig, name: str, task: TaskConfig) -> Task:
    return load_task(
        name,
        project.root / task.questions,
        (task.instruction,) if isinstance(task.instruction, str) else task.instruction,
        task.metric or DEFAULT_METRICS[task.format],
        task.format,
        task.labels,
        task.max_answer_tokens,
    )


def gold_passages(questions: Iterable[Question], passages: Iterable[Passage]) -> dict[str, tuple[Passage, ...]]:
    """For each question id the passages that hold its evidence, in the order of the evidence."""
    by_document: dict[str, list[Passage]] = {}
    for passage in passages:
        by_document.setdefault(passage.document_id, []).append(passage)
    return {
        q.id: tuple(dict.fromkeys(p for s in q.evidence for p in by_document.get(s.document_id, ()) if s.overlaps(p)))
        for q in questions
    }
