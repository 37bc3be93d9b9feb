"""A run's folder: what is written of an evaluation, how it was measured, and reading it back for the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ragtune import store
from ragtune.assistant import Decision
from ragtune.config import ProjectConfig
from ragtune.evaluator.attribute import diagnose
from ragtune.evaluator.ingredients import ingredients
from ragtune.evaluator.knowledge import Forgetting, KnowledgeCount
from ragtune.evaluator.report.data import Findings, RaceFacts, ReportData, TaskFacts, TrainingFacts
from ragtune.measure import Choices
from ragtune.records import passage_from_json, question_from_json, row_from_json, verdict_from_json
from ragtune.rounds import Contest, clusters_of, generations, questions_to_ask
from ragtune.router import Router
from ragtune.session import Session
from ragtune.types import Arm, Interval, Passage, Question, Row, Task, Verdict, Weights

_BY_DOCUMENT = "split by source document"


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run. `reused`: it was there already, made from exactly these inputs."""

    folder: Path
    verdicts: tuple[Verdict, ...]
    rows: tuple[Row, ...]
    reused: bool


def training_price(session: Session, arm: Arm) -> float:
    """What one question bears of its adapter's training."""
    if arm.weights == "base":
        return 0.0
    tokens = store.read_manifest(session.adapter(arm.weights), "adapter")["trained_tokens"]
    prices = session.project.prices
    return float(tokens / 1000 * prices.training / prices.questions)


def others(arms: Sequence[Arm]) -> dict[str, Arm]:
    """One arm of each of the `[generators]` that arms name."""
    return {arm.generator: arm for arm in arms if arm.generator is not None}


def token_prices(project: ProjectConfig, generator: str) -> tuple[float, float]:
    """What 1,000 prompt and 1,000 output tokens cost at one of the `[generators]`."""
    config = project.generators[generator]
    return config.prompt_price, config.output_price


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
        router = Router.from_tasks(
            session.tasks, session.embedder, session.project.default_task, session.project.evaluate.seed
        )
        router.save(building)


def _decision(verdicts: Sequence[Verdict], choices: Mapping[str, Choices]) -> Decision:
    return Decision(
        arms={v.task: v.arm for v in verdicts},
        reasons={v.task: v.reason for v in verdicts},
        instructions={
            name: {"without_passages": c.instruction, "with_passages": c.instruction_with_passages}
            for name, c in choices.items()
        },
        examples={name: c.example_ids for name, c in choices.items()},
        priors={name: c.priors for name, c in choices.items()},
    )


def _passages_of(rows: Iterable[Row], session: Session) -> list[Passage]:
    by_id = session.index.by_id
    return [by_id[i] for i in sorted({i for row in rows for i in row.passage_ids})]


def describe(
    session: Session,
    arms: Sequence[Arm],
    choices: Mapping[str, Choices],
    contests: Sequence[Contest],
    seconds: float,
) -> dict[str, Any]:
    """How a run was measured, for its manifest and report."""
    asked, in_full = generations(contests)
    by_name = {task.name: task for task in session.located_tasks}
    prices = session.project.prices
    return {
        "arms": [asdict(arm) for arm in arms],
        "choices": {name: asdict(choice) for name, choice in choices.items()},
        "tasks": [asdict(_task_facts(by_name[c.task], session.project, choices[c.task])) for c in contests],
        "training_cost": {arm.name: training_price(session, arm) * prices.questions for arm in arms},
        "training": [asdict(_training_facts(session, weights)) for weights in _tuned(arms)],
        "questions_paid_off": prices.questions,
        "freshness": _freshness(session, arms),
        "race": {"asked": asked, "in_full": in_full, "error": session.project.evaluate.racing_error},
        "settings": _settings(session.project) | _calibrated(choices) | _settings_of_others(session.project, arms),
        "provenance": _provenance(session, arms, seconds),
    }


def _tuned(arms: Sequence[Arm]) -> list[Weights]:
    """The weights of adapters that take part."""
    return sorted({arm.weights for arm in arms} - {"base"})


def _training_facts(session: Session, weights: Weights) -> TrainingFacts:
    from ragtune.generator.methods import METHODS

    tuned = store.read_manifest(session.adapter(weights), "adapter")
    return TrainingFacts(
        adapter=weights,
        method=tuned["method"],
        learning_rate=tuned["config"]["learning_rate"] or METHODS[tuned["method"]].learning_rate,
        trainable_parameters=tuned["trainable_parameters"],
        all_parameters=tuned["all_parameters"],
        tokens=tuned["trained_tokens"],
        seconds=tuned["seconds"],
        peak_memory=tuned["peak_memory"],
        losses=tuple(tuned["losses"]),
        dev_scores=tuple((step, score) for step, score in tuned.get("dev_scores", ())),
    )


def _training_facts_from_json(value: Mapping[str, Any]) -> TrainingFacts:
    scores = tuple((step, score) for step, score in value["dev_scores"])
    return TrainingFacts(**{**value, "losses": tuple(value["losses"]), "dev_scores": scores})


def _freshness(session: Session, arms: Sequence[Arm]) -> dict[str, str]:
    """How many of the indexed documents are not those that each adapter was tuned on."""
    indexed = session.index.manifest["inputs"]["documents"]
    found = {}
    for weights in _tuned(arms):
        known = store.read_manifest(session.adapter(weights), "adapter")["documents"]
        changed = sum(known.get(id) != sha for id, sha in indexed.items())
        gone = len(known.keys() - indexed.keys())
        found[f"documents changed since `{weights}` was tuned"] = f"{changed} of {len(indexed)}" + (
            f", and {gone} gone" if gone else ""
        )
    return found


def _task_facts(task: Task, project: ProjectConfig, choices: Choices) -> TaskFacts:
    asked = questions_to_ask(task, project.evaluate)
    by_document = any(q.evidence for q in task.questions) and not project.tasks[task.name].shared_documents
    return TaskFacts(
        name=task.name,
        format=task.format,
        metric=task.metric,
        instruction=choices.instruction,
        n_test=len(asked),
        n_unanswerable=sum(not q.answerable for q in asked),
        few_shot_ids=choices.example_ids,
        split_note=_BY_DOCUMENT if by_document else "split by question",
        labels=task.labels,
    )


def _settings(project: ProjectConfig) -> dict[str, str]:
    """What the numbers depend on, for the report."""
    config, prices = project.evaluate, project.prices
    return {
        "margin": f"{config.margin:g}",
        "passages in a prompt": f"at most {project.retrieval.k}",
        "few-shot examples": f"{config.shots} or half as many, the best of {config.example_sets} draws on dev",
        "dev questions for choosing prompts": f"at most {config.dev_questions} a task",
        "price per 1,000 prompt tokens": f"{prices.prompt:g} {prices.currency}",
        "price per 1,000 output tokens": f"{prices.output:g} {prices.currency}",
        "price per 1,000 trained tokens": f"{prices.training:g} {prices.currency}, over {prices.questions:,} questions",
        "seed": str(config.seed),
    }


def _calibrated(choices: Mapping[str, Choices]) -> dict[str, str]:
    """Which arms pick labels with a prior, where any does."""
    taken = [f"{', '.join(choice.priors)} on {task}" for task, choice in choices.items() if choice.priors]
    return {"labels calibrated": "; ".join(taken)} if taken else {}


def _settings_of_others(project: ProjectConfig, arms: Sequence[Arm]) -> dict[str, str]:
    prices = {name: token_prices(project, name) for name in others(arms)}
    return {
        f"prices of {name}": f"{prompt:g} and {output:g} {project.prices.currency} per 1,000 prompt and output tokens"
        for name, (prompt, output) in prices.items()
    }


def _provenance(session: Session, arms: Sequence[Arm], seconds: float) -> dict[str, str]:
    from ragtune.generator.machine import peak_memory

    project, made = session.project, session.index.manifest
    facts = {
        "base model": f"{project.generator.model} ({session.base[1][:12]})",
        "numbers": str(getattr(session.generator("base"), "dtype", "as the generator has them")),
        "index": f"{made['documents']} documents, {made['passages']} passages in {made['seconds']:.1f} s "
        f"({session.index.fingerprint[:12]})",
        "embedder": f"{made['embedder']['name']} ({made['embedder']['fingerprint'][:12]})",
    }
    for name in others(arms):
        config = project.generators[name]
        place = f" at {config.base_url}" if config.base_url else ""
        facts[f"generator {name}"] = f"{config.model}{place} ({session.fingerprint_of(name)[:12]})"
    for weights in _tuned(arms):
        tuned = store.read_manifest(session.adapter(weights), "adapter")
        facts[f"adapter {weights}"] = (
            f"{tuned['method']}, {tuned['rows']:,} rows, {tuned['trained_tokens']:,} tokens in "
            f"{tuned['seconds']:.0f} s{_memory(tuned['peak_memory'])}"
        )
    facts["evaluation"] = f"{seconds:.0f} s, less what was answered before{_memory(peak_memory())}"
    facts["packages"] = ", ".join(f"{name} {version}" for name, version in store.package_versions().items())
    return facts


def _memory(peak: int) -> str:
    return f", at most {peak / 2**30:.1f} GiB of memory" if peak else ""


def load_run(folder: Path, reused: bool = True) -> Run:
    """Read a finished run back.

    Raises: StoreError when it is missing or damaged.
    """
    store.open_folder(folder, "run")
    verdicts = tuple(verdict_from_json(v) for v in store.read_json(folder / "verdicts.json"))
    rows = tuple(row_from_json(row) for row in store.read_jsonl(folder / "rows.jsonl"))
    return Run(folder, verdicts, rows, reused)


def report_data(folder: Path, project: ProjectConfig) -> ReportData:
    """What a report shows of a finished run; what explains its scores is worked out from its rows."""
    run, manifest = load_run(folder), store.read_manifest(folder, "run")
    tasks = {value["name"]: _task_facts_from_json(value) for value in manifest["tasks"]}
    arms = {value["name"]: Arm(**value) for value in manifest["arms"]}
    questions = {v["id"]: question_from_json(v) for v in store.read_jsonl(folder / "questions.jsonl")}
    return ReportData(
        project=project.name,
        verdicts=run.verdicts,
        tasks=tuple(tasks.values()),
        arms=tuple(arms.values()),
        rows=run.rows,
        questions=questions,
        passages={v["id"]: passage_from_json(v) for v in store.read_jsonl(folder / "passages.jsonl")},
        settings=manifest["settings"],
        provenance={**manifest["provenance"], "measured": manifest["created"]},
        currency=project.prices.currency,
        findings={v.task: _findings(v, run.rows, tasks[v.task], questions, arms, manifest) for v in run.verdicts},
        race=RaceFacts(**manifest["race"]),
        forgetting=tuple(Forgetting(**{**f, "change": Interval(**f["change"])}) for f in manifest["forgetting"]),
        router=Router.load(folder).facts,
        freshness=manifest["freshness"],
        training_cost=manifest["training_cost"],
        questions_paid_off=manifest["questions_paid_off"],
        training=tuple(_training_facts_from_json(value) for value in manifest.get("training", ())),
    )


def _task_facts_from_json(value: Mapping[str, Any]) -> TaskFacts:
    return TaskFacts(**{**value, "few_shot_ids": tuple(value["few_shot_ids"]), "labels": tuple(value["labels"])})


def _findings(
    verdict: Verdict,
    rows: Sequence[Row],
    facts: TaskFacts,
    questions: Mapping[str, Question],
    arms: Mapping[str, Arm],
    manifest: Mapping[str, Any],
) -> Findings:
    """What explains the scores of one task."""
    seed = manifest["inputs"]["config"]["evaluate"]["seed"]
    asked = [question for question in questions.values() if question.task == verdict.task]
    clusters = clusters_of(asked) if facts.split_note == _BY_DOCUMENT else None
    task = Task(facts.name, (facts.instruction,), facts.metric, facts.format, (), facts.labels)
    known = manifest["knowledge"].get(verdict.task)
    return Findings(
        diagnose(task, arms[verdict.arm], rows, questions, seed, clusters),
        ingredients(verdict.task, rows, arms, seed, clusters),
        KnowledgeCount(**known) if known else None,
    )
