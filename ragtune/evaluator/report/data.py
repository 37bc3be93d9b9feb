"""What a report is made from: the nouns of `ragtune.types` and a few words on how they were measured."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

from ragtune.errors import InputError
from ragtune.evaluator.attribute import Diagnosis
from ragtune.evaluator.ingredients import Ingredients
from ragtune.evaluator.knowledge import Forgetting, KnowledgeCount
from ragtune.types import AnswerFormat, Arm, Passage, Question, RouterFacts, Row, Verdict


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """How one task was measured. `n_unanswerable` counts among the `n_test` test questions.

    `labels` are the only right answers of a label task; empty for other tasks, or where they are not known.
    """

    name: str
    format: AnswerFormat
    metric: str
    instruction: str
    n_test: int
    n_unanswerable: int
    few_shot_ids: tuple[str, ...]
    split_note: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Findings:
    """What explains one task's scores; None where it was not found out.

    `diagnosis`: why answers of the chosen arm fail; `knowledge`: what the base model knows without documents.
    """

    diagnosis: Diagnosis | None = None
    ingredients: Ingredients | None = None
    knowledge: KnowledgeCount | None = None


@dataclass(frozen=True, slots=True)
class RaceFacts:
    """Answers given (`asked`) of those that all arms on all questions would take (`in_full`).

    `error` bounds the probability that racing dropped a task's best arm; 0 where there was no racing.
    """

    asked: int
    in_full: int
    error: float


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """How one adapter was trained.

    `losses` holds one mean loss (nats per answer token) per optimiser step, `dev_scores` (step, score) where dev
    questions chose the best step. Seconds, tokens with prompts included, and bytes of memory, 0 where not known.
    """

    adapter: str
    method: str
    learning_rate: float
    trainable_parameters: int
    all_parameters: int
    tokens: int
    seconds: float
    peak_memory: int
    losses: tuple[float, ...]
    dev_scores: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything that a report shows. Costs are per question, in `currency`; times are in seconds.

    `questions` and `passages` are keyed by their ids and hold at least those that `rows` name. `settings` are shown
    under "Data and method" and `provenance` at the end, both in the order given, as is `freshness`: what of the
    documents changed since something was made from them. `findings` are by task. `training_cost` is by arm the whole
    price of training its adapter, 0 for the base model, or empty where that is not known, and then nothing is said on
    when training pays off; `questions_paid_off` says over how many questions `ArmSummary.cost` has spread it.
    `training` holds the adapters that took part.

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
    findings: Mapping[str, Findings] = field(default_factory=dict)
    race: RaceFacts | None = None
    forgetting: tuple[Forgetting, ...] = ()
    router: RouterFacts | None = None
    freshness: Mapping[str, str] = field(default_factory=dict)
    training_cost: Mapping[str, float] = field(default_factory=dict)
    questions_paid_off: int = 1
    training: tuple[TrainingFacts, ...] = ()

    def __post_init__(self) -> None:
        arms = [arm.name for arm in self.arms]
        _require(self.findings, [task.name for task in self.tasks], "task of the findings", "tasks")
        if self.questions_paid_off < 1:
            raise InputError(f"training is paid off over {self.questions_paid_off} questions; expected 1 or more")
        for verdict in self.verdicts:
            measured = [summary.arm for summary in verdict.arms]
            _require([verdict.task], [task.name for task in self.tasks], "task of a verdict", "tasks")
            _require(measured, arms, "arm of a verdict", "arms")
            if self.training_cost:
                _require(measured, self.training_cost, "arm of a verdict", "training costs")
            _require([verdict.arm], measured, "chosen arm", f"summaries of task {verdict.task!r}")
            self._require_diagnosis(verdict)
        _require([row.question_id for row in self.rows], self.questions, "question of a row", "questions")
        _require([id for row in self.rows for id in row.passage_ids], self.passages, "passage of a row", "passages")

    def _require_diagnosis(self, verdict: Verdict) -> None:
        diagnosis = self.findings_of(verdict.task).diagnosis
        if diagnosis:
            _require([diagnosis.arm], [verdict.arm], "diagnosed arm", f"choice of task {verdict.task!r}")
            examples = [id for cause in diagnosis.causes for id in cause.examples]
            _require(examples, self.answers(verdict.task, verdict.arm), "question of a cause", "chosen arm's rows")

    def task(self, name: str) -> TaskFacts:
        """The facts on one task."""
        return next(task for task in self.tasks if task.name == name)

    def findings_of(self, task: str) -> Findings:
        """What explains one task's scores; empty where nothing was looked for."""
        return self.findings.get(task, Findings())

    def arm(self, name: str) -> Arm:
        """The ingredients of one arm."""
        return next(arm for arm in self.arms if arm.name == name)

    def asked(self, task: str) -> int:
        """To how many questions of a task there is an answer."""
        return len({row.question_id for row in self.rows if row.task == task})

    def answers(self, task: str, arm: str) -> dict[str, Row]:
        """The rows of one arm on one task by question id, in their order."""
        return {row.question_id: row for row in self.rows if row.task == task and row.arm == arm}


def _require(found: Iterable[str], known: Container[str], what: str, where: str) -> None:
    for name in found:
        if name not in known:
            raise InputError(f"the {what}, {name!r}, is missing from the {where}; a report needs both")
