"""How well a model in training answers the dev questions of its tasks: what early stopping stops by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from ragtune.assistant import ARMS, Assistant
from ragtune.errors import InputError
from ragtune.evaluator.score import score_answer
from ragtune.measure import sample
from ragtune.session import Session
from ragtune.types import Hit, Question, Weights


def dev_score(session: Session, weights: Weights, only: Sequence[str] = ()) -> Callable[[Any], float]:
    """A function from a model that is being trained as `weights` to its score on dev questions.

    The score is the mean over tasks (all, or those named in `only`) of the mean primary metric, with the prompt that
    the arm of these weights will be measured with. Passages are retrieved once, here.

    Raises: InputError when a task has no dev questions; ConfigError for an unknown task.
    """
    from ragtune.generator.early_stopping import answering
    from ragtune.generator.generate import load_tokenizer

    config, project = session.project.tune, session.project
    names = [session.task(name).name for name in only]
    tasks = [task for task in session.located_tasks if not names or task.name in names]
    asked = {task.name: sample(task.split("dev"), config.dev_questions, config.seed) for task in tasks}
    if without := [name for name, questions in asked.items() if not questions]:
        raise InputError(
            f"tune.eval_steps stops training by dev questions, and there are none in: {', '.join(without)}; add some, "
            "or leave eval_steps out"
        )
    hits = _retrieve(session, [q for questions in asked.values() for q in questions]) if weights == "raft" else {}
    tokenizer = load_tokenizer(session.base[0])

    def score(model: Any) -> float:
        with answering(model, tokenizer, project.generator.model) as generator:
            room = project.retrieval.context_tokens
            return fmean(
                _mean_score(
                    Assistant(ARMS[weights], task, task.instructions[0], generator, (), room), asked[task.name], hits
                )
                for task in tasks
            )

    return score


def _retrieve(session: Session, questions: Sequence[Question]) -> dict[str, tuple[Hit, ...]]:
    found = session.retriever.search([q.text for q in questions])
    return {q.id: tuple(hits) for q, hits in zip(questions, found, strict=True)}


def _mean_score(assistant: Assistant, questions: Sequence[Question], hits: Mapping[str, tuple[Hit, ...]]) -> float:
    prepared = [assistant.prepare(q.text, hits.get(q.id, ())) for q in questions]
    replies = assistant.reply([prompt for prompt, _ in prepared])
    answers = [
        assistant.read(q.text, used, reply) for q, (_, used), reply in zip(questions, prepared, replies, strict=True)
    ]
    rows = (score_answer(q, assistant.task, answer) for q, answer in zip(questions, answers, strict=True))
    return fmean(row.score or 0.0 for row in rows)
