"""A project's training rows: built from its questions and the serving index or read from a file, and linted."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragtune import store
from ragtune.config import TuneConfig
from ragtune.errors import InputError, TrainingError
from ragtune.measure import sample
from ragtune.prompting.strategies import build_messages, may_abstain, target_text
from ragtune.session import Session, gold_passages
from ragtune.types import Hit, Message, Passage, Question, Task, Weights

if TYPE_CHECKING:
    from ragtune.generator.examples import Built, Recipe, Render, TooLong, TrainingRow
    from ragtune.generator.findings import Known, LintFinding, Reading

_LOOKED_UP = 64
"""Rows whose distractors lint looks up in the index again."""


def rows_for(session: Session, arm: Weights, only: Sequence[str] = (), file: Path | None = None) -> Built:
    """The rows to train on: those in `file` exactly as they stand there, or else those that the project gives.

    Says what was left out or shortened to fit.

    Raises: InputError for a file with broken lines, or with `only` beside it; what `build_rows` raises.
    """
    from ragtune.generator.chat_formats import read_rows
    from ragtune.generator.examples import Built

    if file is None:
        built = build_rows(session, arm, only)
        _say_what_was_cut(built, session)
        return built
    if only:
        raise InputError(f"{file} holds the rows to take, task {only[0]!r} selects others; give one of the two")
    return Built(tuple(read_rows(file)))


def build_rows(session: Session, arm: Weights, only: Sequence[str] = ()) -> Built:
    """Rows from the train questions of the tasks (all, or those named in `only`), and from `tune.instructions`.

    Raises: ConfigError for an unknown task; InputError when there are no training questions, or none fits.
    """
    from ragtune.generator.examples import Recipe, join

    for name in only:
        session.task(name)
    project = session.project
    config = project.tune
    tasks = [t for t in session.located_tasks if not only or t.name in only]
    questions = [q for t in tasks for q in sample(t.split("train"), config.max_rows_per_task, config.seed)]
    if not questions:
        raise InputError("there are no training questions; add tasks with a train split to ragtune.toml")
    recipe = Recipe(_renderer(tasks), _too_long(session), config, project.retrieval.k)
    built = join(_question_rows(session, arm, tasks, questions, recipe))
    if config.instructions:
        built = join([built, _instructions(session, len(built.rows), recipe)])
    if not built.rows:
        raise InputError(f"no training row fits: {built.left_out[0].question_id} has {built.left_out[0].reason}")
    return built


def _question_rows(
    session: Session, arm: Weights, tasks: Sequence[Task], questions: Sequence[Question], recipe: Recipe
) -> list[Built]:
    """The rows of each task."""
    from ragtune.generator.examples import plain_rows, raft_rows

    if arm == "tune":
        return [plain_rows(questions, recipe)]
    hits = _search(session, questions)
    gold = gold_passages(questions, session.index.passages)
    parts = []
    for task in tasks:
        config = recipe.config.model_copy(update={"share_without_gold": _share_without_gold(task, recipe.config)})
        asked = [q for q in questions if q.task == task.name]
        parts.append(raft_rows(asked, hits, gold, replace(recipe, config=config)))
    return parts


def _search(session: Session, questions: Sequence[Question]) -> dict[str, tuple[Hit, ...]]:
    """What the serving index finds for questions, by their id; deep enough to pass over gold."""
    found = session.retriever.search([q.text for q in questions], 4 * session.project.retrieval.k)
    return {q.id: tuple(hits) for q, hits in zip(questions, found, strict=True)}


def _instructions(session: Session, others: int, recipe: Recipe) -> Built:
    """Rows of the instruction file, as many as its share asks for beside `others` rows."""
    from ragtune.generator.chat_formats import read_rows
    from ragtune.generator.examples import instruction_rows

    return instruction_rows(read_rows(session.project.root / recipe.config.instructions), others, recipe)


def _share_without_gold(task: Task, config: TuneConfig) -> float:
    """Where a task has no unanswerable questions, abstaining is never right there and must not be taught."""
    return config.share_without_gold if config.without_gold == "recall" or may_abstain(task) else 0.0


def _renderer(tasks: Iterable[Task]) -> Render:
    by_name = {task.name: task for task in tasks}

    def render(question: Question, passages: Sequence[Passage]) -> tuple[tuple[Message, ...], str]:
        task = by_name[question.task]
        messages = build_messages(question.text, task, task.instructions[0], passages)
        return messages, target_text(question, task, passages)

    return render


def _too_long(session: Session) -> TooLong:
    """Whether passages exceed the context that serving gives them, or a whole row what training can take."""
    from ragtune.generator.generate import load_tokenizer

    tokenizer = load_tokenizer(session.base[0])
    limit, room = _limit(session), session.project.retrieval.context_tokens

    @cache
    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    def too_long(row: TrainingRow, passages: Sequence[Passage]) -> str:
        context = sum(count(passage.text) for passage in passages)
        if context > room:
            return f"passages of {context} tokens, more than retrieval.context_tokens = {room}"
        tokens = len(_template(tokenizer, row, prompt_only=True)) + count(row.target) + 1  # the end of the turn
        if tokens > limit:
            return f"{tokens} tokens, more than the {limit} that tune.max_tokens and the base model allow"
        return ""

    return too_long


def _limit(session: Session) -> int:
    """The most tokens of a row: `tune.max_tokens`, or the base model's context where that is shorter."""
    config = store.read_json(session.base[0] / "config.json")
    context = config.get("max_position_embeddings") or config.get("text_config", {}).get("max_position_embeddings")
    return min(session.project.tune.max_tokens, context or session.project.tune.max_tokens)


def _template(tokenizer: Any, row: TrainingRow, prompt_only: bool = False) -> list[int]:
    """Token ids that the chat template makes of a row: all of it, or the prompt up to where the assistant begins.

    Raises: TrainingError when the template refuses the row.
    """
    from jinja2 import TemplateError

    chat = [{"role": m.role, "content": m.content} for m in row.messages]
    if not prompt_only:
        chat.append({"role": "assistant", "content": row.target})
    try:
        ids: list[int] = tokenizer.apply_chat_template(chat, add_generation_prompt=prompt_only, return_dict=False)
    except TemplateError as error:
        raise TrainingError(f"row {row.question_id}: the chat template refuses it: {error}") from None
    return ids


def _say_what_was_cut(built: Built, session: Session) -> None:
    config = session.project.tune
    if built.shortened:
        session.say(f"{built.shortened} of {len(built.rows)} rows have fewer distractors than drawn, so that they fit")
    if built.left_out:
        first = built.left_out[0]
        session.say(f"{len(built.left_out)} rows are left out, e.g. {first.task}/{first.question_id}: {first.reason}")
    share, stated = sum(row.kind == "instruction" for row in built.rows) / len(built.rows), config.share_instructions
    if config.instructions and share < stated - 0.01:
        session.say(f"{config.instructions} is too small: it makes {share:.2f} of the rows, not {stated:g}")


def lint_rows(session: Session, rows: Sequence[TrainingRow]) -> tuple[LintFinding, ...]:
    """What lint finds in rows, with the base model's tokenizer and what the project knows of its questions.

    Raises: ModelError for a tokenizer without chat template; StoreError without the index that rows name passages of.
    """
    from ragtune.generator.lint import lint

    return tuple(lint(rows, _reading(session), _known(session, rows)))


def refuse_errors(findings: Sequence[LintFinding], rows: Sequence[TrainingRow]) -> None:
    """Stop before a step is spent on faulty rows.

    Raises: TrainingError naming the first rows at fault.
    """
    errors = [f for f in findings if f.level == "error"]
    if errors:
        shown = "; ".join(f"{f.question_id}: {f.message}" for f in errors[:3])
        raise TrainingError(f"lint found {len(errors)} errors in {len(rows)} training rows: {shown}")


def _reading(session: Session) -> Reading:
    from ragtune.generator.findings import Reading
    from ragtune.generator.generate import load_tokenizer
    from ragtune.generator.train import encode_row

    tokenizer = load_tokenizer(session.base[0])
    return Reading(
        encode=lambda row: encode_row(tokenizer, row),
        template=lambda row: _template(tokenizer, row),
        end_of_turn=tokenizer.eos_token_id,
        limit=_limit(session),
    )


def _known(session: Session, rows: Sequence[TrainingRow]) -> Known:
    from ragtune.generator.findings import Known

    config = session.project.tune
    questions = [q for task in session.tasks for q in task.questions]
    train = {q.id: q for q in questions if q.split == "train"}
    placed = any(row.passage_ids for row in rows)
    return Known(
        train=train,
        held_out={q.id: q for q in questions if q.split != "train"},
        passages=session.index.by_id if placed else {},
        shares={task.name: _share_without_gold(task, config) for task in session.tasks},
        private=_private_documents(session),
        ranks=_ranks(session, rows, train) if placed else {},
    )


def _private_documents(session: Session) -> dict[str, frozenset[str]]:
    """Per task the documents that dev and test questions draw on; tasks that share documents are left out."""
    tasks = [task for task in session.tasks if not session.project.tasks[task.name].shared_documents]
    held_out = [q for task in tasks for q in task.questions if q.split != "train"]
    documents = frozenset(span.document_id for question in held_out for span in question.evidence)
    return {task.name: documents for task in tasks}


def _ranks(session: Session, rows: Sequence[TrainingRow], train: Mapping[str, Question]) -> dict[str, dict[str, int]]:
    """What the serving index finds for the questions of some rows, drawn by seed: passage ids with their ranks."""
    asked = sorted({row.question_id for row in rows if row.passage_ids and row.question_id in train})
    drawn = random.Random(session.project.tune.seed).sample(asked, min(_LOOKED_UP, len(asked)))
    found = _search(session, [train[id] for id in drawn])
    return {id: {hit.passage.id: hit.rank for hit in hits} for id, hits in found.items()}
