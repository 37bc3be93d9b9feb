"""All arms answer the same questions: prompt choices on dev, answers on test, one scored row per question and arm.

Every answer is kept in an append-only log under the hash of what was asked of which weights, so a run that is killed
goes on where it stopped, and a run with one more arm asks only that arm's questions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean

from ragtune import store
from ragtune.assistant import ARMS, Assistant
from ragtune.config import EvaluateConfig, RetrievalConfig
from ragtune.errors import UnfinishedError
from ragtune.evaluator.score import score_answer
from ragtune.prompting.calibrate import LabelScores, label_prior, likeliest
from ragtune.prompting.strategies import Example
from ragtune.types import Answer, Arm, Generator, Hit, Message, Passage, Question, Reply, Row, Task

_CHUNK = 64

Report = Callable[[str, int, int], None]
"""Called with (what is being answered, questions done, questions in all)."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What was chosen on dev for one task.

    `dev_scores` holds each candidate's mean, for the report. `priors` holds the label priors of the arms (by
    `prompting_name`) that pick better labels with one.
    """

    instruction: str
    instruction_with_passages: str
    example_ids: tuple[str, ...]
    dev_scores: Mapping[str, float]
    priors: Mapping[str, LabelScores] = field(default_factory=dict)

    def instruction_for(self, arm: Arm, task: Task) -> str:
        """The instruction an arm is given: tuned weights get the one they were trained with."""
        if arm.weights != "base":
            return task.instructions[0]
        return self.instruction if arm.passages == "none" else self.instruction_with_passages


@dataclass(frozen=True)
class Bench:
    """What all measurements share: the answer log, what retrieval found, and gold passages, by question id."""

    log: AnswerLog
    hits: Mapping[str, tuple[Hit, ...]]
    gold: Mapping[str, tuple[Passage, ...]]
    retrieval: RetrievalConfig
    config: EvaluateConfig
    report: Report


class AnswerLog:
    """Replies by the hash of their request; survives a kill at any point."""

    def __init__(self, log: store.JsonlLog) -> None:
        self._log = log
        self._replies = {row["key"]: Reply(**row["reply"]) for row in log.rows()}

    def __contains__(self, key: str) -> bool:
        return key in self._replies

    def __getitem__(self, key: str) -> Reply:
        return self._replies[key]

    def add(self, replies: Mapping[str, Reply]) -> None:
        """Log replies, synced to the disk before this returns."""
        self._replies.update(replies)
        self._log.append({"key": key, "reply": asdict(reply)} for key, reply in replies.items())


def choose_on_dev(task: Task, generator: Generator, bench: Bench) -> Choices:
    """Instruction variants, few-shot examples and label priors that do best on dev, for the prompting arms.

    Fairness: tuning fits itself to the task, so prompting gets its effort too, on questions that the test never sees.
    """
    dev = dev_sample(task, bench.config)
    scores: dict[str, float] = {}
    priors: dict[str, LabelScores] = {}

    def best(arm: str, candidates: Sequence[tuple[str, str, Sequence[Question]]]) -> int:
        """The number of the best of (name, instruction, examples)."""
        if not dev or (len(candidates) == 1 and task.format != "label"):
            return 0
        tried = []
        for name, instruction, shown in candidates:
            assistant = build_assistant(ARMS[arm], task, instruction, shown, generator, bench)
            tried.append(_try(assistant, dev, bench, f"{task.name}: choosing {name}"))
            if len(candidates) > 1:
                scores[name] = tried[-1][0]
        chosen = max(range(len(tried)), key=lambda i: tried[i][0])
        if prior := tried[chosen][1]:
            priors[arm] = prior
        return chosen

    def instructions(what: str) -> list[tuple[str, str, Sequence[Question]]]:
        return [(f"{what} {i}", text, ()) for i, text in enumerate(task.instructions, 1)]

    plain = task.instructions[best("prompt", instructions("instruction"))]
    with_passages = task.instructions[best("retrieve", instructions("instruction with passages"))]
    draws = draw_candidates(task, bench.config)
    examples = draws[best("few-shot", [(f"examples {i}", plain, draw) for i, draw in enumerate(draws, 1)])]
    if examples:
        best("retrieve+few-shot", [("labels with examples and passages", with_passages, examples)])
    return Choices(plain, with_passages, tuple(q.id for q in examples), scores, priors)


def _try(assistant: Assistant, dev: Sequence[Question], bench: Bench, label: str) -> tuple[float, Mapping[str, float]]:
    """Mean score on dev, and the label prior it takes; no prior where labels are picked as well without."""

    def mean_score(answers: Sequence[Answer]) -> float:
        rows = (score_answer(q, assistant.task, answer) for q, answer in zip(dev, answers, strict=True))
        return fmean(row.score or 0.0 for row in rows)

    answers = answer_all(assistant, dev, bench, label)
    plain = mean_score(answers)
    likely = [answer.reply.label_scores for answer in answers]
    if not all(likely):
        return plain, {}
    # A question's label is picked with the prior of the others: the test's questions are not in it either.
    picked = [likeliest(own, label_prior([*likely[:i], *likely[i + 1 :]])) for i, own in enumerate(likely)]
    calibrated = mean_score([replace(answer, text=text) for answer, text in zip(answers, picked, strict=True)])
    return (calibrated, label_prior(likely)) if calibrated > plain else (plain, {})


def dev_sample(task: Task, config: EvaluateConfig) -> tuple[Question, ...]:
    """The dev questions that prompts are chosen with."""
    return sample(task.split("dev"), config.dev_questions, config.seed)


def draw_candidates(task: Task, config: EvaluateConfig) -> list[tuple[Question, ...]]:
    """The sets of few-shot examples that compete on dev: each draw with `shots` examples and with half as many."""
    sizes = dict.fromkeys((config.shots, max(1, config.shots // 2)))
    return [draw_examples(task, size, config.seed + i) for i in range(config.example_sets) for size in sizes]


def draw_examples(task: Task, shots: int, seed: int) -> tuple[Question, ...]:
    """Seeded few-shot examples from train: spread over labels; one unanswerable where the task has such questions."""
    rng = random.Random(f"{task.name}/{seed}")
    pool = list(task.split("train"))
    rng.shuffle(pool)
    groups: dict[str, list[Question]] = {}
    for question in pool:
        kind = question.answers[0] if task.format == "label" else str(question.answerable)
        groups.setdefault(kind, []).append(question)
    if task.format == "label":
        ordered = [group[i] for i in range(len(pool)) for group in groups.values() if i < len(group)]
    else:
        ordered = groups.get("True", [])[: max(1, shots - 1)] + groups.get("False", [])[:1]
        ordered += [q for q in pool if q not in ordered]
    chosen = ordered[:shots]
    rng.shuffle(chosen)
    return tuple(chosen)


def build_assistant(
    arm: Arm, task: Task, instruction: str, examples: Sequence[Question], generator: Generator, bench: Bench
) -> Assistant:
    """An arm on a task; its examples carry passages when the arm does."""
    shown = examples if arm.few_shot else ()
    worked = tuple(
        Example(
            q, example_passages(bench.gold.get(q.id, ()), bench.hits.get(q.id, ())) if arm.passages != "none" else ()
        )
        for q in shown
    )
    return Assistant(arm, task, instruction, generator, worked, bench.retrieval.context_tokens)


def example_passages(gold: Sequence[Passage], hits: Sequence[Hit]) -> tuple[Passage, ...]:
    """The passage of a worked example: a gold one, else the best hit. One keeps the shared beginning short."""
    return (*gold, *(hit.passage for hit in hits))[:1]


@dataclass(frozen=True, slots=True)
class _Request:
    """A question as one arm asks it; `key` is the hash of all that decides the reply."""

    question: Question
    prompt: tuple[Message, ...]
    hits: tuple[Hit, ...]
    key: str

    @property
    def length(self) -> int:
        return sum(len(message.content) for message in self.prompt)


def _request(assistant: Assistant, question: Question, bench: Bench) -> _Request:
    prompt, used = assistant.prepare(question.text, arm_hits(assistant.arm, question, bench))
    task = assistant.task
    allowed = list(task.labels) if task.format == "label" else []
    asked = [assistant.generator.fingerprint, [asdict(m) for m in prompt], allowed, task.max_answer_tokens]
    return _Request(question, prompt, used, store.sha256_of_json(asked))


def ask_all(assistant: Assistant, questions: Sequence[Question], bench: Bench, label: str) -> list[Row]:
    """One scored row per question, in order.

    Raises: like `answer_all`.
    """
    answers = answer_all(assistant, questions, bench, label)
    return [score_answer(q, assistant.task, answer) for q, answer in zip(questions, answers, strict=True)]


def answer_all(assistant: Assistant, questions: Sequence[Question], bench: Bench, label: str) -> list[Answer]:
    """One answer per question, in order; what the log already holds is not asked again.

    Raises: UnfinishedError when an endpoint leaves questions unanswered; what it answered is in the log.
    """
    requests = [_request(assistant, question, bench) for question in questions]
    missing = sorted((r for r in requests if r.key not in bench.log), key=lambda r: -r.length)
    done = len(requests) - len(missing)
    bench.report(label, done, len(requests))
    for start in range(0, len(missing), _CHUNK):
        chunk = missing[start : start + _CHUNK]
        try:
            replies = assistant.reply([request.prompt for request in chunk])
        except UnfinishedError as error:  # what came is paid for
            bench.log.add({chunk[i].key: reply for i, reply in error.replies.items()})
            raise
        bench.log.add({request.key: reply for request, reply in zip(chunk, replies, strict=True)})
        done += len(chunk)
        bench.report(label, done, len(requests))
    return [assistant.read(r.question.text, r.hits, bench.log[r.key]) for r in requests]


def arm_hits(arm: Arm, question: Question, bench: Bench) -> tuple[Hit, ...]:
    """The passages an arm is given: what was retrieved, or the gold ones (retrieved ones where no answer exists)."""
    if arm.passages == "none":
        return ()
    if arm.passages == "gold" and question.answerable:
        return tuple(Hit(p, 1.0, rank) for rank, p in enumerate(bench.gold.get(question.id, ()), 1))
    return bench.hits.get(question.id, ())


def sample(questions: Sequence[Question], most: int | None, seed: int) -> tuple[Question, ...]:
    """At most `most` questions, drawn by seed, in file order; a random sample, never the first ones."""
    if most is None or most >= len(questions):
        return tuple(questions)
    chosen = set(random.Random(seed).sample(range(len(questions)), most))
    return tuple(q for i, q in enumerate(questions) if i in chosen)
