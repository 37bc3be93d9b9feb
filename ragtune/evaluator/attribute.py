"""Why an arm's answers are wrong, and what would help most: one cause for each question, by plain rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ragtune.errors import InputError
from ragtune.evaluator.compare import Array, mean_interval
from ragtune.evaluator.knowledge import states_answer
from ragtune.types import Arm, Interval, Question, Row, Task

Cause = Literal[
    "right",
    "retrieval miss",
    "reading failure",
    "knowledge gap",
    "format failure",
    "wrong refusal",
    "unjustified answer",
]

RIGHT = 0.5
"""An answer is right from this score on; a graded metric then gives it at least half of what a perfect one gets."""
ORACLE = "oracle"
"""The reference arm that is given the gold evidence."""
EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class CauseCount:
    """How many answers have one cause, their share of all diagnosed ones, and the ids of up to three such questions."""

    cause: Cause
    count: int
    share: Interval
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Remedy:
    """What the arm's mean score would gain if one part of it were perfect and all else stayed as it is."""

    name: str
    gain: Interval


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One arm's answers to the n questions of a task that it has a score for.

    `causes` are those that occur, "right" first and then the most frequent; `remedies` begin with the largest gain.
    """

    task: str
    arm: str
    n: int
    causes: tuple[CauseCount, ...]
    remedies: tuple[Remedy, ...]


@dataclass(frozen=True, slots=True)
class _Case:
    """One scored answer of the arm. `oracle` is that arm's score of the same question; NaN without one."""

    question: Question
    row: Row
    score: float
    oracle: float

    @property
    def missed(self) -> bool:
        """Evidence exists, and not all of it was before the arm; an arm without passages is given none."""
        return bool(self.question.evidence) and (self.row.scores.get("recall_at_k") or 0.0) < 1.0


def diagnose(
    task: Task,
    arm: Arm,
    rows: Sequence[Row],
    questions: Mapping[str, Question],
    seed: int = 0,
    clusters: Mapping[str, str] | None = None,
) -> Diagnosis:
    """Explain one arm's answers with the help of the oracle's; `rows` are those of all arms, `questions` by their id.

    Each question with a score gets the first cause that fits:

    1. right: the score is at least 0.5.
    2. unjustified answer: the question has no answer, and the arm gave one.
    3. format failure: an answer that only its form makes wrong. In a `short` or `text` task it states an accepted
       answer among other words; in a `label` task it is no label; in a `json` task it is not one JSON object and no
       field could be read from it. A label chosen by likelihood cannot fail so, whatever the arm writes freely.
    4. knowledge gap, for an arm without passages: it does not know, whether it guessed or said so.
    5. retrieval miss: part of the evidence was not among the passages, and the oracle scored higher (or has no score).
    6. reading failure: the same, and the oracle was no better, so the evidence would not have helped.
    7. wrong refusal: it refused, though all evidence stood in its passages or the question names none.
    8. reading failure: all evidence stood in its passages.
    9. knowledge gap: the question names no evidence, so whether the passages sufficed cannot be seen.

    A remedy's gain is a mean over the n questions, 0 where it does not apply, with a paired interval; remedies that
    apply nowhere are left out. Two of them can cure the same question, so the gains don't add up.

    - perfect retrieval: oracle minus arm, right or wrong, wherever part of the evidence was not before the arm (so it
      can be negative). An oracle with other weights than the arm's brings their difference in, too. Questions that the
      oracle has no score for are left out.
    - perfect reading: 1 - score on reading failures whose evidence was all given.
    - perfect refusals: 1 - score on unjustified answers and wrong refusals.
    - perfect format: 1 - score on format failures. This and the two before it are upper bounds: how good the answer
      would have been otherwise is not known (but for unjustified answers, where a refusal scores 1).

    `clusters` maps question ids to clusters that are resampled whole; a question that it lacks is its own.

    Raises: InputError when the arm has no score on the task, or a row's question is missing from `questions`.
    """
    cases = _cases(task.name, arm.name, rows, questions)
    labels = None if clusters is None else [clusters.get(case.question.id, case.question.id) for case in cases]

    def interval(values: Array, low: float) -> Interval:
        return mean_interval(values, seed=seed, bounds=(low, 1.0), clusters=labels)

    causes: list[Cause] = [_cause(case, task, arm) for case in cases]
    counts = []
    for cause in get_args(Cause):
        those = np.array([found == cause for found in causes])
        if those.any():
            ids = tuple(cases[i].question.id for i in np.flatnonzero(those)[:EXAMPLES])
            counts.append(CauseCount(cause, int(those.sum()), interval(those.astype(np.float64), 0.0), ids))
    remedies = [Remedy(name, interval(gains, -1.0)) for name, gains in _gains(cases, causes).items()]
    return Diagnosis(
        task=task.name,
        arm=arm.name,
        n=len(cases),
        causes=tuple(sorted(counts, key=lambda c: (c.cause != "right", -c.count))),
        remedies=tuple(sorted(remedies, key=lambda r: -r.gain.mean)),
    )


def _cases(task: str, arm: str, rows: Sequence[Row], questions: Mapping[str, Question]) -> list[_Case]:
    """The arm's scored answers, sorted by question id."""
    oracle = {row.question_id: row.score for row in rows if (row.task, row.arm) == (task, ORACLE)}
    cases = []
    for row in sorted((r for r in rows if (r.task, r.arm) == (task, arm)), key=lambda r: r.question_id):
        if row.score is None:
            continue
        if row.question_id not in questions:
            raise InputError(f"task {task!r} has a row of question {row.question_id!r}, which is not among those given")
        reference = oracle.get(row.question_id)
        cases.append(_Case(questions[row.question_id], row, row.score, np.nan if reference is None else reference))
    if not cases:
        raise InputError(f"arm {arm!r} has no score on task {task!r}, so there is nothing to explain; measure it first")
    return cases


def _cause(case: _Case, task: Task, arm: Arm) -> Cause:
    """The first of the rules of `diagnose` that fits."""
    if case.score >= RIGHT:
        return "right"
    if not case.question.answerable:
        return "unjustified answer"
    if not case.row.refused and _fails_in_form(case, task):
        return "format failure"
    if arm.passages == "none":
        return "knowledge gap"
    if case.missed:
        return "reading failure" if case.oracle <= case.score else "retrieval miss"  # NaN is no better and no worse
    if case.row.refused:
        return "wrong refusal"
    return "reading failure" if case.question.evidence else "knowledge gap"


def _fails_in_form(case: _Case, task: Task) -> bool:
    row = case.row
    if task.format == "json":
        return row.scores.get("valid_json") == 0.0 and row.scores.get("field_match") == 0.0
    if task.format == "label":
        return row.text.strip().casefold() not in {label.strip().casefold() for label in task.labels}
    return states_answer(row.text, case.question.answers)


def _gains(cases: Sequence[_Case], causes: Sequence[Cause]) -> dict[str, Array]:
    """For each remedy that applies to some question what it would add to each, shape (n,)."""
    score = np.array([case.score for case in cases])
    oracle = np.array([case.oracle for case in cases])
    missed = np.array([case.missed for case in cases])

    def have(*names: Cause) -> npt.NDArray[np.bool_]:
        return np.array([cause in names for cause in causes])

    cured = {
        "perfect reading": have("reading failure") & ~missed,
        "perfect refusals": have("wrong refusal", "unjustified answer"),
        "perfect format": have("format failure"),
    }
    gains = {name: those * (1.0 - score) for name, those in cured.items() if those.any()}
    if (missed & ~np.isnan(oracle)).any():
        gains["perfect retrieval"] = missed * (oracle - score)  # NaN without a score of the oracle
    return gains
