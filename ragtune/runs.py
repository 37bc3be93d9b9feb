"""The work of `evaluate`: what a run depends on, the arms and questions, measuring, probing and deciding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from ragtune import store
from ragtune.assistant import ARMS, choice_key, get_arm, prompting_name
from ragtune.errors import ConfigError
from ragtune.evaluator.constant import constant_answer, constant_sentence
from ragtune.evaluator.decide import Prices, decide
from ragtune.measure import AnswerLog, Bench, Choices, Report, ask_all, build_assistant, choose_on_dev, dev_sample
from ragtune.probes import probe_forgetting, probe_knowledge
from ragtune.results import others, token_prices, training_price
from ragtune.rounds import Contest, Pace, clusters_of, questions_to_ask, rows_of, run_rounds
from ragtune.session import TUNED, Session, gold_passages
from ragtune.types import Arm, Question, Row, Task, Verdict


def arms_to_measure(session: Session) -> tuple[Arm, ...]:
    """The arms that the config names, or all whose weights exist. With no RAFT adapter the oracle reads with the base.

    Raises: ConfigError for an unknown arm, or one whose adapter is missing.
    """
    names = session.project.evaluate.arms
    arms = []
    for arm in (get_arm(name, session.arms) for name in names or session.arms):
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
        "generators": {name: [session.fingerprint_of(name), *token_prices(project, name)] for name in others(arms)},
        "index": session.index.fingerprint,
        "tasks": {task.name: store.sha256_of_json(asdict(task)) for task in tasks},
        "arms": [asdict(arm) for arm in arms],
        "router": {"format": 2, "tasks": store.sha256_of_json([asdict(task) for task in session.tasks])},
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
        for q in (
            *t.split("train"),
            *dev_sample(t, config),
            *questions_to_ask(t, config),
        )
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


def measure_all(
    session: Session, tasks: Sequence[Task], arms: Sequence[Arm], bench: Bench, pace: Pace
) -> tuple[dict[str, Choices], list[Contest]]:
    """Dev choices, then the rounds of each task: what all its arms answered, and which were dropped."""
    contests = [_contest(session, task, arms) for task in tasks]
    choices = {
        choice_key(task.name, arm.generator): choose_on_dev(task, session.generator_for(arm), bench)
        for arm in (ARMS["prompt"], *others(arms).values())
        for task in tasks
    }
    by_name = {task.name: task for task in tasks}

    def ask(arm: Arm, name: str, questions: Sequence[Question]) -> list[Row]:
        task, choice = by_name[name], choices[choice_key(name, arm.generator)]
        by_id = {q.id: q for q in task.questions}
        examples = [by_id[i] for i in choice.example_ids]  # in the order that dev chose
        instruction = choice.instruction_for(arm, task)
        assistant = build_assistant(arm, task, instruction, examples, session.generator_for(arm), bench)
        if arm.weights == "base":
            assistant = replace(assistant, prior=choice.priors.get(prompting_name(arm), {}))
        return ask_all(assistant, questions, bench, f"{arm.name} on {name}")

    run_rounds(contests, ask, session.project.evaluate, pace)
    return choices, contests


def probe_all(
    session: Session, tasks: Sequence[Task], arms: Sequence[Arm], choices: Mapping[str, Choices], bench: Bench
) -> dict[str, Any]:
    """What the base model knows of each task, and what each adapter forgot, for the manifest."""
    base = session.generator("base")
    known = {task.name: probe_knowledge(task, choices[task.name], base, bench) for task in tasks}
    tuned = sorted({arm.weights for arm in arms} - {"base"}) if bench.config.forgetting_probe else []
    lost = [probe_forgetting(name, base, session.generator(name), bench) for name in tuned]
    return {
        "knowledge": {name: asdict(count) for name, count in known.items() if count},
        "forgetting": [asdict(each) for each in lost],
    }


def _contest(session: Session, task: Task, arms: Sequence[Arm]) -> Contest:
    """A task with the arms that can be measured on it.

    Raises: ConfigError when none of them can win: told before the first question, not after hours.
    """
    fitting = tuple(arm for arm in arms if _applies(session, arm, task))
    if all(arm.reference for arm in fitting):
        names = ", ".join(arm.name for arm in arms)
        raise ConfigError(f"none of the arms {names} can win task {task.name!r}; add one that can, such as prompt")
    return Contest(task.name, questions_to_ask(task, session.project.evaluate), fitting)


def _applies(session: Session, arm: Arm, task: Task) -> bool:
    """Few-shot needs train questions, the oracle evidence; a tuned arm a task that its adapter was trained on."""
    if arm.few_shot and not task.split("train"):
        return False
    if arm.passages == "gold" and not any(q.evidence for q in task.questions):
        return False
    return arm.weights == "base" or task.name in store.read_manifest(session.adapter(arm.weights), "adapter")["tasks"]


def decide_all(session: Session, arms: Sequence[Arm], contests: Sequence[Contest]) -> list[Verdict]:
    """One verdict for each contest that was asked anything."""
    project = session.project
    prices = Prices(
        project.prices.prompt,
        project.prices.output,
        currency=project.prices.currency,
        training={arm.name: training_price(session, arm) for arm in arms},
        by_arm={arm.name: token_prices(project, arm.generator) for arm in arms if arm.generator is not None},
    )
    config = project.evaluate
    by_name = {arm.name: arm for arm in arms}
    tasks = {task.name: task for task in session.tasks}
    verdicts = []
    for contest in contests:
        if not contest.asked:
            continue
        verdict = decide(
            contest.task,
            rows_of([contest]),
            by_name,
            config.margin,
            prices,
            config.seed,
            clusters=None if project.tasks[contest.task].shared_documents else clusters_of(contest.questions),
            dropped=contest.dropped if config.racing_error else None,
            racing_alpha=config.racing_error,
        )
        floor = constant_answer(tasks[contest.task].split("train"), contest.questions[: contest.asked])
        warning = constant_sentence(verdict, *floor)
        verdicts.append(replace(verdict, reason=f"{verdict.reason} {warning}".strip()))
    return verdicts
