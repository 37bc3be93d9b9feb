"""Two looks beside the race: what the base model knows of a task by heart, and what tuning made it forget."""

from __future__ import annotations

from ragtune.assistant import ARMS, Assistant
from ragtune.evaluator.knowledge import (
    Forgetting,
    KnowledgeCount,
    classify_knowledge,
    forgetting,
    general_probe,
    states_answer,
)
from ragtune.measure import Bench, Choices, ask_all, build_assistant, dev_sample, draw_candidates
from ragtune.types import Generator, Task

_GENERAL = Task(
    name="general",
    instructions=("Answer the question in a few words.",),
    metric="token_f1",
    format="short",
    questions=(),
    max_answer_tokens=16,
)


def probe_knowledge(task: Task, choices: Choices, base: Generator, bench: Bench) -> KnowledgeCount | None:
    """What the base model says of dev questions closed-book, with each draw of few-shot examples; None without any.

    The examples show it the form of an answer, so that what is missing is knowledge. The answers are those that the
    draws were chosen with, so they stand in the log already.
    """
    asked = [q for q in dev_sample(task, bench.config) if q.answerable]
    if not asked:
        return None
    outcomes = []
    for number, draw in enumerate(draw_candidates(task, bench.config), 1):
        assistant = build_assistant(ARMS["few-shot"], task, choices.instruction, draw, base, bench)
        rows = ask_all(assistant, asked, bench, f"what the base model knows of {task.name}, examples {number}")
        outcomes.append([row.score is not None and row.score >= 0.5 for row in rows])
    return classify_knowledge(list(zip(*outcomes, strict=True)))


def probe_forgetting(name: str, base: Generator, tuned: Generator, bench: Bench) -> Forgetting:
    """Ask base and tuned weights the general questions, in one plain wording that tuning did not train."""
    before, after = (_general_scores(generator, bench) for generator in (base, tuned))
    return forgetting(name, before, after, bench.config.seed)


def _general_scores(generator: Generator, bench: Bench) -> list[float]:
    questions = general_probe()
    assistant = Assistant(ARMS["prompt"], _GENERAL, _GENERAL.instructions[0], generator)
    rows = ask_all(assistant, questions, bench, "general knowledge")
    return [float(states_answer(row.text, q.answers)) for row, q in zip(rows, questions, strict=True)]
