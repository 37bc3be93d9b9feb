"""Who answers what next: every arm answers a task's first test questions, and an arm shown worse answers no more.

One contest is one task. Its questions come in a random order that the seed decides, so that any number of them from the
beginning is a fair sample. After each round `evaluator.race` drops arms with a bound that holds at every time at
once; reference arms explain, cannot win and are never dropped.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ragtune.config import EvaluateConfig
from ragtune.errors import InputError
from ragtune.evaluator.compare import questions_needed
from ragtune.evaluator.race import drop, settled
from ragtune.types import Arm, Question, Row, Task

Ask = Callable[[Arm, str, Sequence[Question]], list[Row]]
"""(arm, task, questions) -> one scored row per question, in order."""

_LEAST_ROUND = 24
_GROWTH = 1.5


@dataclass
class Contest:
    """One task's arms, what they answered so far, and after how many questions an arm was dropped."""

    task: str
    questions: tuple[Question, ...]
    arms: tuple[Arm, ...]
    rows: dict[str, list[Row]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def asked(self) -> int:
        """Questions that the arms still in it have answered."""
        return max((len(rows) for rows in self.rows.values()), default=0)

    @property
    def running(self) -> tuple[Arm, ...]:
        """Arms still in it, reference arms included; those of one model stand together."""
        running = (arm for arm in self.arms if arm.name not in self.dropped)
        return tuple(sorted(running, key=lambda arm: (arm.generator or "", arm.weights)))

    @property
    def open(self) -> bool:
        """False when all questions are asked, or when racing left one arm."""
        racing = [arm.name for arm in self.arms if not arm.reference]
        return self.asked < len(self.questions) and not (self.dropped and settled(racing, self.dropped))

    def scores(self) -> dict[str, np.ndarray]:
        """Scores of the racing arms in the order asked, NaN where unscored."""
        return {
            arm.name: np.array([np.nan if r.score is None else r.score for r in self.rows.get(arm.name, ())])
            for arm in self.arms
            if not arm.reference
        }

    def means(self) -> list[tuple[str, float, float]]:
        """(arm, mean score so far, half its 95 % interval by normal approximation), best first, for the live table."""
        found = []
        for name, rows in self.rows.items():
            scores = [row.score for row in rows if row.score is not None]
            if scores:
                half = 1.96 * float(np.std(scores)) / len(scores) ** 0.5
                found.append((name, float(np.mean(scores)), half))
        return sorted(found, key=lambda entry: -entry[1])


def random_order(questions: Sequence[Question], seed: int, most: int | None = None) -> tuple[Question, ...]:
    """The questions in a seeded random order, at most `most`; more of them begin with the same ones."""
    order = list(questions)
    random.Random(seed).shuffle(order)
    return tuple(order[:most])


def questions_to_ask(task: Task, config: EvaluateConfig) -> tuple[Question, ...]:
    """The test questions of one task, in the order in which they are asked."""
    return random_order(task.split("test"), config.seed, config.questions_per_task)


@dataclass(frozen=True)
class Pace:
    """How long rounds may go on, and who wants to see the contests after each.

    `max_questions` bounds the questions of all tasks together; a question that several arms answer counts once.
    """

    time_left: Callable[[], bool] = lambda: True
    max_questions: int | None = None
    standings: Callable[[Sequence[Contest]], None] = lambda _: None


def run_rounds(contests: Sequence[Contest], ask: Ask, limits: EvaluateConfig, pace: Pace = Pace()) -> None:
    """Play rounds until no contest is open or the time is up; each round's rows are added to its contest.

    `limits.racing_error` bounds the probability that racing ever drops a task's best arm, or one within the margin of
    it; 0 means no racing. While time and questions are left, each contest gets its first round; then the one that seems
    closest to a difference goes first.

    Raises: InputError when there was no time for any answer.
    """
    most = pace.max_questions
    while (open_contests := [c for c in contests if c.open]) and pace.time_left():
        left = None if most is None else most - sum(contest.asked for contest in contests)
        if left == 0:
            break
        contest = min(open_contests, key=questions_to_go)
        play_round(contest, ask, limits, left)
        pace.standings(contests)
    if not any(contest.asked for contest in contests):
        raise InputError("the budget ended before the first answer; give more time, e.g. --budget 10m")


def play_round(contest: Contest, ask: Ask, limits: EvaluateConfig, most: int | None = None) -> None:
    """The running arms answer the next questions, at most `most`; then the arms shown worse are dropped."""
    start = contest.asked
    size = max(_LEAST_ROUND, int(start * (_GROWTH - 1)))
    questions = contest.questions[start : start + size][:most]
    for arm in contest.running:
        contest.rows.setdefault(arm.name, []).extend(ask(arm, contest.task, questions))
    if limits.racing_error > 0:
        contest.dropped = drop(contest.scores(), limits.racing_error, limits.margin)


def questions_to_go(contest: Contest) -> float:
    """About how many more questions tell the two best arms apart; 0 before the first round."""
    if not contest.asked:
        return 0.0
    racing = contest.scores()
    best = [name for name, _, _ in contest.means() if name in racing and name not in contest.dropped][:2]
    if len(best) < 2:
        return float("inf")
    difference = racing[best[0]] - racing[best[1]]
    gap, spread = float(np.nanmean(difference)), float(np.nanstd(difference))
    if gap <= 0 or spread == 0:
        return float(len(contest.questions))
    return max(1.0, questions_needed(gap, spread) - contest.asked)


def generations(contests: Sequence[Contest]) -> tuple[int, int]:
    """Answers given, and answers that all arms on all questions would have taken."""
    asked = sum(len(rows) for contest in contests for rows in contest.rows.values())
    return asked, sum(len(contest.arms) * len(contest.questions) for contest in contests)


def rows_of(contests: Sequence[Contest]) -> list[Row]:
    """All rows, task by task and arm by arm."""
    return [row for contest in contests for arm in contest.arms for row in contest.rows.get(arm.name, ())]


def clusters_of(questions: Sequence[Question]) -> dict[str, str]:
    """Question id -> the source document of its first evidence, or the question itself: what is resampled together."""
    return {q.id: q.evidence[0].document_id if q.evidence else q.id for q in questions}
