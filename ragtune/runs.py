"""The work of `evaluate`: what a run depends on, measuring and deciding, the run folder and reading it back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ragtune import store
from ragtune.assistant import ARMS, Decision, Router, get_arm
from ragtune.config import ProjectConfig
from ragtune.errors import ConfigError
from ragtune.evaluator.decide import Prices, decide
from ragtune.evaluator.report.data import ReportData, TaskFacts
from ragtune.measure import AnswerLog, Bench, Choices, Report, ask_all, build_assistant, choose_on_dev, sample
from ragtune.records import passage_from_json, question_from_json, row_from_json, verdict_from_json
from ragtune.session import TUNED, Session, gold_passages
from ragtune.types import Arm, Passage, Question, Row, Task, Verdict


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run. `reused`: it was there already, made from exactly these inputs."""

    folder: Path
    verdicts: tuple[Verdict, ...]
    rows: tuple[Row, ...]
    reused: bool


def arms_to_measure(session: Session) -> tuple[Arm, ...]:
    """The arms that the config names, or all whose weights exist. With no RAFT adapter the oracle reads with the base.

    Raises: ConfigError for an unknown arm, or one whose adapter is missing.
    """
    names = session.project.evaluate.arms
    arms = []
    for arm in (get_arm(name) for name in names or ARMS):
        if arm.name == "oracle" and not session.has_weights(arm.weights):
            arm = replace(arm, weights="base")
        if session.has_weights(arm.weights):
            arms.append(arm)
        elif names:
            raise ConfigError(f"arm {arm.name} needs an adapter; make it with: ragtune tune --arm {arm.weights}")
    return tuple(arms)


def run_inputs(session: Session, tasks: Sequence[Task], arms: Sequence[Arm]) -> dict[str, Any]:
    """All that a run's results depend on; a run with the same inputs is not made again."""
    project = session.project
    # Opened, not just read: a damaged adapter is to be found before the first question, not after hours.
    used = [w for w in TUNED if any(arm.weights == w for arm in arms)]
    adapters = {w: store.open_folder(session.adapter(w), "adapter") for w in used}
    return {
        "base": session.base[1],
        "adapters": {w: manifest["files"] for w, manifest in adapters.items()},
        "index": session.index.fingerprint,
        "tasks": {task.name: store.sha256_of_json(asdict(task)) for task in tasks},
        "arms": [asdict(arm) for arm in arms],
        "config": {
            name: getattr(project, name).model_dump(mode="json") for name in ("retrieval", "evaluate", "prices")
        },
    }


def open_bench(session: Session, tasks: Sequence[Task], report: Report) -> Bench:
    """The answer log, and what the index finds for every question that a run may ask or show as an example."""
    project = session.project
    config = project.evaluate
    questions = [
        q
        for t in tasks
        for q in (*t.split("train"), *sample(t.split("dev"), config.dev_questions, config.seed), *_test(t, project))
    ]
    session.say(f"retrieving passages for {len(questions)} questions")
    found = session.retriever.search([q.text for q in questions])
    answers = project.place("runs").with_name(f"{project.name}.answers.jsonl")
    return Bench(
        log=AnswerLog(store.JsonlLog(answers)),
        hits={q.id: hits for q, hits in zip(questions, found, strict=True)},
        gold=gold_passages(questions, session.index.passages),
        retrieval=project.retrieval,
        config=config,
        report=report,
    )


def _test(task: Task, project: ProjectConfig) -> tuple[Question, ...]:
    return sample(task.split("test"), project.evaluate.questions_per_task, project.evaluate.seed)


def measure_all(
    session: Session, tasks: Sequence[Task], arms: Sequence[Arm], bench: Bench
) -> tuple[dict[str, Choices], list[Row]]:
    """Dev choices, then all rows; arms that share weights go together so that one model is in memory at a time."""
    base = session.generator("base", keep_others=False)
    choices = {task.name: choose_on_dev(task, base, bench) for task in tasks}
    rows = []
    for weights in ("base", *TUNED):
        for arm in (a for a in arms if a.weights == weights):
            generator = session.generator(arm.weights, keep_others=False)
            for task in (t for t in tasks if _applies(session, arm, t)):
                instruction = choices[task.name].instruction_for(arm, task)
                by_id = {q.id: q for q in task.questions}
                examples = [by_id[i] for i in choices[task.name].example_ids]  # in the order that dev chose
                assistant = build_assistant(arm, task, instruction, examples, generator, bench)
                rows += ask_all(assistant, _test(task, session.project), bench, f"{arm.name} on {task.name}")
    return choices, rows


def _applies(session: Session, arm: Arm, task: Task) -> bool:
    """The oracle needs a task with evidence; a tuned arm one that its adapter was trained on."""
    if arm.passages == "gold" and not any(q.evidence for q in task.questions):
        return False
    return arm.weights == "base" or task.name in store.read_manifest(session.adapter(arm.weights), "adapter")["tasks"]


def decide_all(session: Session, tasks: Sequence[Task], arms: Sequence[Arm], rows: Sequence[Row]) -> list[Verdict]:
    """One verdict for each task that has test questions."""
    project = session.project
    prices = Prices(
        project.prices.prompt,
        project.prices.output,
        currency=project.prices.currency,
        training={arm.name: _training_price(session, arm) for arm in arms},
    )
    config = project.evaluate
    by_name = {arm.name: arm for arm in arms}
    return [
        decide(task.name, rows, by_name, config.margin, prices, config.seed) for task in tasks if task.split("test")
    ]


def _training_price(session: Session, arm: Arm) -> float:
    """What one question bears of its adapter's training."""
    if arm.weights == "base":
        return 0.0
    tokens = store.read_manifest(session.adapter(arm.weights), "adapter")["trained_tokens"]
    prices = session.project.prices
    return float(tokens / 1000 * prices.training / prices.questions)


def write_run(
    target: Path,
    session: Session,
    tasks: Sequence[Task],
    results: tuple[Sequence[Verdict], Sequence[Row], Mapping[str, Choices]],
    manifest: dict[str, Any],
) -> None:
    """Write the run folder: rows, what they refer to, verdicts, the decision and the router, manifest last."""
    verdicts, rows, choices = results
    asked = {row.question_id for row in rows}
    with store.atomic_folder(target, manifest) as building:
        store.write_jsonl(building / "rows.jsonl", (asdict(row) for row in rows))
        questions = (q for t in tasks for q in t.questions if q.id in asked)
        store.write_jsonl(building / "questions.jsonl", (asdict(q) for q in questions))
        store.write_jsonl(building / "passages.jsonl", (asdict(p) for p in _passages_of(rows, session)))
        store.write_json(building / "verdicts.json", [asdict(v) for v in verdicts])
        store.write_json(building / "decision.json", asdict(_decision(verdicts, choices)))
        # All tasks, measured or not: a router that knows one task only would take every question for one of it.
        Router.from_tasks(session.tasks, session.embedder, session.project.default_task).save(building)


def _decision(verdicts: Sequence[Verdict], choices: Mapping[str, Choices]) -> Decision:
    return Decision(
        arms={v.task: v.arm for v in verdicts},
        reasons={v.task: v.reason for v in verdicts},
        instructions={
            name: {"without_passages": c.instruction, "with_passages": c.instruction_with_passages}
            for name, c in choices.items()
        },
        examples={name: c.example_ids for name, c in choices.items()},
    )


def _passages_of(rows: Iterable[Row], session: Session) -> list[Passage]:
    by_id = session.index.by_id
    return [by_id[i] for i in sorted({i for row in rows for i in row.passage_ids})]


def describe(session: Session, arms: Sequence[Arm], choices: Mapping[str, Choices], seconds: float) -> dict[str, Any]:
    """How a run was measured, for its manifest and report."""
    by_name = {task.name: task for task in session.located_tasks}
    return {
        "arms": [asdict(arm) for arm in arms],
        "choices": {name: asdict(choice) for name, choice in choices.items()},
        "tasks": [asdict(_task_facts(by_name[name], session.project, choice)) for name, choice in choices.items()],
        "settings": _settings(session.project),
        "provenance": _provenance(session, arms, seconds),
    }


def _task_facts(task: Task, project: ProjectConfig, choices: Choices) -> TaskFacts:
    asked = _test(task, project)
    by_document = any(q.evidence for q in task.questions) and not project.tasks[task.name].shared_documents
    return TaskFacts(
        name=task.name,
        format=task.format,
        metric=task.metric,
        instruction=choices.instruction,
        n_test=len(asked),
        n_unanswerable=sum(not q.answerable for q in asked),
        few_shot_ids=choices.example_ids,
        split_note="split by source document" if by_document else "split by question",
    )


def _settings(project: ProjectConfig) -> dict[str, str]:
    """What the numbers depend on, for the report."""
    config, prices = project.evaluate, project.prices
    return {
        "margin": f"{config.margin:g}",
        "passages in a prompt": f"at most {project.retrieval.k}",
        "few-shot examples": f"{config.shots}, the best of {config.example_sets} draws on dev",
        "dev questions for choosing prompts": f"at most {config.dev_questions} a task",
        "price per 1,000 prompt tokens": f"{prices.prompt:g} {prices.currency}",
        "price per 1,000 output tokens": f"{prices.output:g} {prices.currency}",
        "price per 1,000 trained tokens": f"{prices.training:g} {prices.currency}, over {prices.questions:,} questions",
        "seed": str(config.seed),
    }


def _provenance(session: Session, arms: Sequence[Arm], seconds: float) -> dict[str, str]:
    project, made = session.project, session.index.manifest
    facts = {
        "base model": f"{project.generator.model} ({session.base[1][:12]})",
        "numbers": str(getattr(session.generator("base"), "dtype", "as the generator has them")),
        "index": f"{made['documents']} documents, {made['passages']} passages ({session.index.fingerprint[:12]})",
        "embedder": f"{made['embedder']['name']} ({made['embedder']['fingerprint'][:12]})",
    }
    for weights in sorted({arm.weights for arm in arms} - {"base"}):
        tuned = store.read_manifest(session.adapter(weights), "adapter")
        facts[f"adapter {weights}"] = (
            f"{tuned['method']}, {tuned['rows']:,} rows, {tuned['trained_tokens']:,} tokens in {tuned['seconds']:.0f} s"
        )
    facts["evaluation"] = f"{seconds:.0f} s, less what was answered before"
    facts["packages"] = ", ".join(f"{name} {version}" for name, version in store.package_versions().items())
    return facts


def load_run(folder: Path, reused: bool = True) -> Run:
    """Read a finished run back.

    Raises: StoreError when it is missing or damaged.
    """
    store.open_folder(folder, "run")
    verdicts = tuple(verdict_from_json(v) for v in store.read_json(folder / "verdicts.json"))
    rows = tuple(row_from_json(row) for row in store.read_jsonl(folder / "rows.jsonl"))
    return Run(folder, verdicts, rows, reused)


def report_data(folder: Path, project: ProjectConfig) -> ReportData:
    """What a report shows of a finished run."""
    run, manifest = load_run(folder), store.read_manifest(folder, "run")
    return ReportData(
        project=project.name,
        verdicts=run.verdicts,
        tasks=tuple(
            TaskFacts(**{**facts, "few_shot_ids": tuple(facts["few_shot_ids"])}) for facts in manifest["tasks"]
        ),
        arms=tuple(Arm(**arm) for arm in manifest["arms"]),
        rows=run.rows,
        questions={v["id"]: question_from_json(v) for v in store.read_jsonl(folder / "questions.jsonl")},
        passages={v["id"]: passage_from_json(v) for v in store.read_jsonl(folder / "passages.jsonl")},
        settings=manifest["settings"],
        provenance={**manifest["provenance"], "measured": manifest["created"]},
        currency=project.prices.currency,
    )
