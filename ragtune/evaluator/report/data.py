"""What a report is made from: the nouns of `ragtune.types` and a few words on how they were measured."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from ragtune.errors import InputError
from ragtune.types import AnswerFormat, Arm, Passage, Question, Row, Verdict


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """How one task was measured. `n_unanswerable` counts among the `n_test` test questions."""

    name: str
    format: AnswerFormat
    metric: str
    instruction: str
    n_test: int
    n_unanswerable: int
    few_shot_ids: tuple[str, ...]
    split_note: str


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything that a report shows. Costs are per question, in `currency`; times are in seconds.

    `questions` and `passages` are keyed by their ids and hold at least those that `rows` name. `settings` are shown
    under "How it was measured" and `provenance` at the end, both in the order given.

    Raises: InputError when its parts don't fit together.
    """

    project: str
    verdicts: tuple[Verdict, ...]
    tasks: tuple[TaskFacts, ...]
    arms: tuple[Arm, ...]
    rows: tuple[Row, ...]
    questions: Mapping[str, Question]
    passages: Mapping[str, Passage]
    settings: Mapping[str, str]
    provenance: Mapping[str, str]
    currency: str

    def __post_init__(self) -> None:
        arms = [arm.name for arm in self.arms]
        for verdict in self.verdicts:
            measured = [summary.arm for summary in verdict.arms]
            _require([verdict.task], [task.name for task in self.tasks], "task of a verdict", "tasks")
            _require(measured, arms, "arm of a verdict", "arms")
            _require([verdict.arm], measured, "chosen arm", f"summaries of task {verdict.task!r}")
        _require([row.question_id for row in self.rows], self.questions, "question of a row", "questions")
        _require([id for row in self.rows for id in row.passage_ids], self.passages, "passage of a row", "passages")

    def task(self, name: str) -> TaskFacts:
        """The facts on one task."""
        return next(task for task in self.tasks if task.name == name)

    def arm(self, name: str) -> Arm:
        """The ingredients of one arm."""
        return next(arm for arm in self.arms if arm.name == name)

    def answers(self, task: str, arm: str) -> dict[str, Row]:
        """The rows of one arm on one task by question id, in their order."""
        return {row.question_id: row for row in self.rows if row.task == task and row.arm == arm}


def _require(found: Iterable[str], known: Container[str], what: str, where: str) -> None:
    for name in found:
        if name not in known:
            raise InputError(f"the {what}, {name!r}, is missing from the {where}; a report needs both")
