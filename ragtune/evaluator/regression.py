"""Two finished runs -> what became better or worse, for the user and in each arm, on the questions that both asked.

A question is compared when both runs hold it with the same id, text and answers; edited ones are counted and left out.
Two families of tests, each corrected by Holm 1979 on its own: the verdicts' arms, one line per task (what a user gets),
and every arm with itself, over all tasks (where a change comes from). So more arms never make the first ones blinder.
Questions about one document rise and fall together, as in the verdict, where the task is split by document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np

from ragtune import store
from ragtune.errors import InputError, StoreError
from ragtune.evaluator.compare import (
    MINIMUM_QUESTIONS,
    Array,
    holm,
    paired_difference,
    permutation_p_value,
    win_tie_loss,
)
from ragtune.evaluator.decide import ALPHA
from ragtune.evaluator.report import words
from ragtune.records import question_from_json, row_from_json
from ragtune.types import Interval, Question, Row

_BY_DOCUMENT = "split by source document"
Status = Literal["better", "worse", "no difference shown", "too few common questions"]


@dataclass(frozen=True, slots=True)
class Results:
    """What a comparison needs of a finished run: by task the verdict's arm and the metric, questions by (task, id).

    Questions of the tasks in `by_document` that share their first evidence's document are one cluster (see `compare`).
    """

    choices: Mapping[str, str]
    metrics: Mapping[str, str]
    questions: Mapping[tuple[str, str], Question]
    rows: Sequence[Row]
    by_document: frozenset[str] = frozenset()

    def ids(self, task: str) -> set[str]:
        """The ids of the questions of one task that were asked."""
        return {row.question_id for row in self.rows if row.task == task}

    def cluster(self, task: str, id: str) -> str:
        """What a question rises and falls with: its document, or nothing but itself."""
        evidence = self.questions[task, id].evidence
        return evidence[0].document_id if evidence and task in self.by_document else f"question {id}"

    def scores(self, task: str) -> dict[str, dict[str, float]]:
        """The scores of one task by arm and question id; what is unscored is left out."""
        found: dict[str, dict[str, float]] = {}
        for row in self.rows:
            if row.task == task:
                answered = found.setdefault(row.arm, {})
                if row.score is not None:
                    answered[row.question_id] = row.score
        return found


@dataclass(frozen=True, slots=True)
class Change:
    """Arm `before` of the baseline against arm `after` of the new run, on the `n` questions that both have scored.

    `difference` is new minus old with its 95 % interval, for this line alone. `p_value` is two-sided and Holm-corrected
    within its family; None when there are too few questions, or `clusters` of them, for a test.
    """

    before: str
    after: str
    score_before: float
    score_after: float
    difference: Interval
    p_value: float | None
    wins: int
    ties: int
    losses: int
    clusters: int

    @property
    def n(self) -> int:
        """Questions scored in both runs."""
        return self.wins + self.ties + self.losses

    @property
    def status(self) -> Status:
        """What the test says, at 5 %."""
        if self.p_value is None:
            return "too few common questions"
        if self.p_value > ALPHA:
            return "no difference shown"
        return "better" if self.difference.mean > 0 else "worse"


@dataclass(frozen=True, slots=True)
class TaskChange:
    """One task in two runs. `verdict` compares the arms that the verdicts name, `arms` each arm with itself.

    `common` questions are the same in both runs, `edited` have the same id but another text or other answers, and
    `unmatched` are in one run only. `left_out` are arms without a common scored question, mostly new or dropped ones.
    """

    task: str
    metric: str
    verdict: Change
    arms: tuple[Change, ...]
    common: int
    edited: int
    unmatched: int
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RunComparison:
    """All tasks that can be compared, and by name why the others cannot."""

    tasks: tuple[TaskChange, ...]
    skipped: Mapping[str, str]

    @property
    def regressions(self) -> tuple[str, ...]:
        """The tasks on which a user is shown to get worse answers than before."""
        return tuple(change.task for change in self.tasks if change.verdict.status == "worse")

    @property
    def families(self) -> Mapping[str, int]:
        """How many tests each family holds; its p-values are corrected together."""
        return {
            "verdicts": sum(change.verdict.p_value is not None for change in self.tasks),
            "arms": sum(line.p_value is not None for change in self.tasks for line in change.arms),
        }


def load_results(folder: Path) -> Results:
    """Read a finished run for comparison.

    Raises: InputError when it is not an intact run of this format version: an argument that cannot be used, so that the
    exit code differs from that of a regression.
    """
    try:
        manifest = store.open_folder(folder, "run")
        choices = {verdict["task"]: verdict["arm"] for verdict in store.read_json(folder / "verdicts.json")}
        questions = [question_from_json(value) for value in store.read_jsonl(folder / "questions.jsonl")]
        rows = [row_from_json(value) for value in store.read_jsonl(folder / "rows.jsonl")]
    except StoreError as error:
        raise InputError(str(error)) from None
    return Results(
        choices=choices,
        metrics={facts["name"]: facts["metric"] for facts in manifest["tasks"]},
        questions={(question.task, question.id): question for question in questions},
        rows=rows,
        by_document=frozenset(facts["name"] for facts in manifest["tasks"] if facts["split_note"] == _BY_DOCUMENT),
    )


def compare_runs(before: Results, after: Results, seed: int = 0) -> RunComparison:
    """What changed from the baseline `before` to the new run `after`, tested by paired two-sided permutation.

    Raises: InputError naming the reasons when no task can be compared.
    """
    changes: list[TaskChange] = []
    skipped: dict[str, str] = {}
    for task in dict.fromkeys((*before.choices, *after.choices)):
        try:
            changes.append(_compare_task(task, before, after, seed))
        except InputError as error:
            skipped[task] = str(error)
    if not changes:
        reasons = "; ".join(f"task {task!r}: {reason}" for task, reason in skipped.items())
        raise InputError(
            f"the runs have nothing to compare ({reasons}); evaluate the same questions and metric in both"
        )
    verdicts = _corrected([change.verdict for change in changes])
    arms = iter(_corrected([line for change in changes for line in change.arms]))
    return RunComparison(
        tuple(
            replace(change, verdict=verdict, arms=tuple(next(arms) for _ in change.arms))
            for change, verdict in zip(changes, verdicts, strict=True)
        ),
        skipped,
    )


def sentence(change: TaskChange) -> str:
    """A task's verdict line in words, and which questions and arms could not be compared."""
    line = change.verdict
    if line.p_value is None:
        said = f"only {_counted(line)} scored in both runs; it takes at least {MINIMUM_QUESTIONS} to show a difference"
    else:
        now = "scores" if line.before == line.after else f"{line.after} scores"
        said = (
            f"{line.before} scored {line.score_before:.2f} in the baseline and {now} {line.score_after:.2f} now: "
            f"{words.interval(line.difference, signed=True)} on {_counted(line)}"
        )
    sentences = [f"{change.task}: {line.status}; {said}."]
    unscored = change.common - line.n
    if change.edited or change.unmatched or unscored:
        counts = f"{change.edited} edited, {change.unmatched} in one run only, {unscored} without a score in both"
        sentences.append(f"Questions left out: {counts}.")
    if change.left_out:
        sentences.append(f"Arms not compared with themselves: {', '.join(change.left_out)}.")
    return " ".join(sentences)


def _counted(line: Change) -> str:
    questions = f"{line.n} question{'' if line.n == 1 else 's'}"
    return questions if line.clusters == line.n else f"{questions} from {line.clusters} sources"


def _compare_task(task: str, before: Results, after: Results, seed: int) -> TaskChange:
    """The task's lines, their p-values not corrected yet.

    Raises: InputError saying why the task cannot be compared.
    """
    if task not in before.choices or task not in after.choices:
        raise InputError(f"only in the {'baseline' if task in before.choices else 'new run'}")
    if before.metrics[task] != after.metrics[task]:
        raise InputError(f"metric {before.metrics[task]} in the baseline, {after.metrics[task]} in the new run")
    shared = before.ids(task) & after.ids(task)
    common = sorted(i for i in shared if _same(before.questions[task, i], after.questions[task, i]))
    edited, unmatched = len(shared) - len(common), len(before.ids(task) ^ after.ids(task))
    old, new = before.scores(task), after.scores(task)
    chosen = before.choices[task], after.choices[task]
    clusters = {id: after.cluster(task, id) for id in common}
    verdict = _change(chosen, old[chosen[0]], new[chosen[1]], clusters, seed)
    if verdict is None:
        scored = "none scored by both verdicts' arms, " if common else ""
        raise InputError(f"{len(common)} common questions, {scored}{edited} edited, {unmatched} in one run only")
    arms = {arm: _change((arm, arm), old[arm], new[arm], clusters, seed) for arm in old if arm in new}
    return TaskChange(
        task=task,
        metric=before.metrics[task],
        verdict=verdict,
        arms=tuple(line for line in arms.values() if line is not None),
        common=len(common),
        edited=edited,
        unmatched=unmatched,
        left_out=tuple(arm for arm in dict.fromkeys((*old, *new)) if arms.get(arm) is None),
    )


def _same(one: Question, other: Question) -> bool:
    return (one.text, one.answers) == (other.text, other.answers)


def _change(
    names: tuple[str, str], old: Mapping[str, float], new: Mapping[str, float], clusters: Mapping[str, str], seed: int
) -> Change | None:
    """One line with its uncorrected p-value; None when no common question is scored in both runs.

    `clusters` holds the cluster of each common question, in order.
    """
    scored = [i for i in clusters if i in old and i in new]
    if not scored:
        return None
    a, b = _array(new, scored), _array(old, scored)
    labels = [clusters[i] for i in scored]
    enough = len(set(labels)) >= MINIMUM_QUESTIONS
    return Change(
        *names,
        fmean(b),
        fmean(a),
        paired_difference(a, b, 1 - ALPHA, seed, labels),
        permutation_p_value(a, b, seed, clusters=labels) if enough else None,
        *win_tie_loss(a, b),
        len(set(labels)),
    )


def _array(scores: Mapping[str, float], ids: Sequence[str]) -> Array:
    return np.array([scores[i] for i in ids])


def _corrected(lines: Sequence[Change]) -> list[Change]:
    """The lines of one family, their p-values Holm-corrected; a line without a test doesn't count."""
    adjusted = iter(holm([line.p_value for line in lines if line.p_value is not None]))
    return [line if line.p_value is None else replace(line, p_value=next(adjusted)) for line in lines]
