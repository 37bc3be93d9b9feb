"""The work of `tune`: training rows from questions and the serving index, lint, training, the adapter folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragtune import store
from ragtune.errors import InputError, TrainingError
from ragtune.session import Session, gold_passages
from ragtune.types import Message, Passage, Question, Weights

if TYPE_CHECKING:
    from ragtune.generator.examples import TrainingRow
    from ragtune.generator.lint import LintFinding
    from ragtune.generator.methods import Method
    from ragtune.generator.train import Progress


def training_rows(session: Session, arm: Weights, only: Sequence[str] = ()) -> list[TrainingRow]:
    """The rows that `tune` would train on: train questions of the tasks (all, or those named in `only`).

    Raises: ConfigError for an unknown task; InputError when there are no training questions.
    """
    from ragtune.generator.examples import plain_rows, raft_rows
    from ragtune.measure import sample
    from ragtune.prompting.strategies import build_messages, may_abstain, target_text

    for name in only:
        session.task(name)
    config = session.project.tune
    tasks = [t for t in session.located_tasks if not only or t.name in only]
    by_name = {t.name: t for t in tasks}
    questions = [q for t in tasks for q in sample(t.split("train"), config.max_rows_per_task, config.seed)]
    if not questions:
        raise InputError("there are no training questions; add tasks with a train split to ragtune.toml")

    def render(question: Question, passages: Sequence[Passage]) -> tuple[tuple[Message, ...], str]:
        task = by_name[question.task]
        messages = build_messages(question.text, task, task.instructions[0], passages)
        return messages, target_text(question, task, passages)

    if arm == "tune":
        return plain_rows(questions, render)
    found = session.retriever.search([q.text for q in questions], 4 * session.project.retrieval.k)
    hits = {q.id: tuple(h) for q, h in zip(questions, found, strict=True)}
    gold = gold_passages(questions, session.index.passages)
    # Where a task has no unanswerable questions, abstaining is never right there and must not be taught.
    never = config.model_copy(update={"share_without_gold": 0.0}) if config.without_gold == "abstain" else config
    return [
        row
        for task in tasks
        for row in raft_rows(
            [q for q in questions if q.task == task.name],
            hits,
            gold,
            render,
            config if may_abstain(task) else never,
            session.project.retrieval.k,
        )
    ]


def lint_rows(session: Session, rows: Sequence[TrainingRow]) -> tuple[LintFinding, ...]:
    """Lint training rows with the base model's tokenizer.

    Raises: TrainingError naming the first rows at fault.
    """
    from ragtune.generator.generate import load_tokenizer
    from ragtune.generator.lint import lint
    from ragtune.generator.train import encode_row

    tokenizer = load_tokenizer(session.base[0])
    held_out = [q.text for task in session.tasks for q in task.questions if q.split != "train"]
    findings = lint(
        rows, lambda row: encode_row(tokenizer, row), tokenizer.eos_token_id, session.project.tune.max_tokens, held_out
    )
    errors = [f for f in findings if f.level == "error"]
    if errors:
        shown = "; ".join(f"{f.question_id}: {f.message}" for f in errors[:3])
        raise TrainingError(f"lint found {len(errors)} errors in {len(rows)} training rows: {shown}")
    return tuple(findings)


def train_into(
    target: Path,
    session: Session,
    rows: Sequence[TrainingRow],
    plan: tuple[Method, dict[str, Any], Path],
    report: Callable[[Progress], None],
) -> tuple[float, ...]:
    """Train on rows and write the adapter folder; `plan` is (method, inputs, work folder). Returns the losses."""
    from ragtune.generator.card import model_card
    from ragtune.generator.train import disk_errors, train

    method, inputs, work = plan
    project = session.project
    folder, fingerprint = session.base
    model, result = train(rows, folder, method, project.tune, work, report)
    manifest = {
        "kind": "adapter",
        "inputs": inputs,
        "arm": target.name,
        "method": method.name,
        "nf4": method.nf4,
        "base": {"name": project.generator.model, "fingerprint": fingerprint},
        "documents": session.index.manifest["inputs"]["documents"],
        "rows": len(rows),
        "tasks": sorted({row.task for row in rows}),
        "config": project.tune.model_dump(mode="json"),
        **asdict(result),
    }
    with store.atomic_folder(target, manifest) as building:
        with disk_errors(target):
            model.save_pretrained(building)
        store.write_jsonl(building / "rows.jsonl", (row.to_json() for row in rows))
        (building / "README.md").write_text(model_card(manifest), encoding="utf-8")
    return result.losses
