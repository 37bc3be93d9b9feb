"""Is the model that is served the model that was trained? A frozen probe, answered by both and compared.

The reference is the base with its adapter, as it answers today. A form made of it (merged, quantised) is asked the
same prompts, greedily, and how likely it finds the reference's answers.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ragtune import store
from ragtune.assistant import ARMS, OPEN_TASK, Assistant
from ragtune.config import ExportConfig
from ragtune.evaluator.score import score_answer
from ragtune.measure import sample
from ragtune.session import Session
from ragtune.types import Generator, Hit, Message, Question, Reply, Task, Weights

if TYPE_CHECKING:
    from ragtune.generator.generate import LocalGenerator
    from ragtune.generator.logprobs import Likelihood

_TIE = 0.25
"""Nats by which a token may be likelier and count as no likelier: bf16 tells logits from 16 to 32 in steps of 1/8."""

_SHOWN = 60  # characters of an answer


@dataclass(frozen=True, slots=True)
class Probe:
    """One question of the frozen set, with the prompt that every form is given."""

    question: Question
    task: Task
    prompt: tuple[Message, ...]
    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class Answers:
    """What one form said to the probe, in order.

    `likelihoods` are those of the reference's answers, `scores` those of the tasks' metrics.
    """

    replies: tuple[Reply, ...]
    likelihoods: tuple[Likelihood, ...]
    scores: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """A question that a form answers otherwise.

    `margin` (nats) is the most by which the form, more than the reference, finds another token likelier than one of the
    reference's answer.
    """

    question_id: str
    reference: str
    answer: str
    margin: float

    def __str__(self) -> str:
        return f"{self.question_id}: {_shorten(self.reference)!r} became {_shorten(self.answer)!r}"


@dataclass(frozen=True, slots=True)
class Parity:
    """A form beside the reference.

    `identical` is the share of answers that are the same word for word, `agreement` the share of those that are, or
    differ by a tie. `logp_difference` is the mean over all tokens of |log p(form) - log p(reference)| in nats,
    `score_difference` the form's mean score minus the reference's. `changes` come without ties.
    """

    questions: int
    identical: float
    agreement: float
    logp_difference: float
    score: float
    score_difference: float
    changes: tuple[Change, ...]

    def failures(self, bounds: ExportConfig) -> list[str]:
        """What lies beyond the bounds, in words; nothing when the form may be served."""
        found = []
        if self.agreement < bounds.min_agreement:
            found.append(f"{self.agreement:.3f} of the answers agree, at least {bounds.min_agreement:g} must")
        # Not `>`: a model that gives no numbers must not pass.
        if not self.logp_difference <= bounds.max_logp_difference:
            found.append(
                f"log-probabilities differ by {self.logp_difference:.3f} nats a token, "
                f"at most {bounds.max_logp_difference:g} is allowed"
            )
        return found


def parity_from_json(value: Mapping[str, Any]) -> Parity:
    """A comparison back from the JSON object that `dataclasses.asdict` gives."""
    return Parity(**{**value, "changes": tuple(Change(**change) for change in value["changes"])})


def frozen_probe(session: Session, weights: Weights, generator: Generator) -> list[Probe]:
    """Dev questions of the adapter's tasks as its own arm asks them; where there are none, rows it was trained on.

    Raises: StoreError when the adapter is missing, or the index that the arm needs.
    """
    config = session.project.export
    trained = store.read_manifest(session.adapter(weights), "adapter")["tasks"]
    chosen = [task for task in _tasks(session, weights) if task.name in trained and task.split("dev")]
    if not chosen:
        return _from_rows(session, weights)
    each = -(-config.probe_questions // len(chosen))
    asked = [(question, task) for task in chosen for question in sample(task.split("dev"), each, config.seed)]
    found = session.retriever.search([q.text for q, _ in asked]) if weights == "raft" else [()] * len(asked)
    probes = []
    for (question, task), hits in zip(asked, found, strict=True):
        prompt, used = _assistant(session, weights, task, generator).prepare(question.text, hits)
        probes.append(Probe(question, task, prompt, used))
    return probes


def _tasks(session: Session, weights: Weights) -> Sequence[Task]:
    """The project's tasks; with their evidence located where passages are scored by it."""
    return session.located_tasks if weights == "raft" else session.tasks


def _assistant(session: Session, weights: Weights, task: Task, generator: Generator) -> Assistant:
    room = session.project.retrieval.context_tokens
    return Assistant(ARMS[weights], task, task.instructions[0], generator, context_tokens=room)


def _from_rows(session: Session, weights: Weights) -> list[Probe]:
    config = session.project.export
    known = {q.id: (q, task) for task in _tasks(session, weights) for q in task.questions}
    rows = list(store.read_jsonl(session.adapter(weights) / "rows.jsonl"))
    probes = []
    for row in random.Random(config.seed).sample(rows, min(len(rows), config.probe_questions)):
        messages = tuple(Message(**message) for message in row["messages"])
        own = Question(row["question_id"], messages[-1].content, (row["target"],), row["task"], "train")
        question, task = known.get(own.id, (own, replace(OPEN_TASK, name=own.task)))
        passages = [session.index.by_id[i] for i in row["passage_ids"] if i in session.index.by_id]
        hits = tuple(Hit(passage, 1.0, rank) for rank, passage in enumerate(passages, 1))
        probes.append(Probe(question, task, messages, hits))
    return probes


def answer(
    session: Session,
    weights: Weights,
    probes: Sequence[Probe],
    generator: LocalGenerator,
    reference: Answers | None = None,
) -> Answers:
    """What a generator says to the probe, and how likely it finds the reference's answers (its own without one)."""
    from ragtune.generator.logprobs import likelihoods

    replies: dict[int, Reply] = {}
    for limit in sorted({probe.task.max_answer_tokens for probe in probes}):
        places = [i for i, probe in enumerate(probes) if probe.task.max_answer_tokens == limit]
        said = generator.generate([probes[i].prompt for i in places], limit)
        replies.update(zip(places, said, strict=True))
    ordered = tuple(replies[i] for i in range(len(probes)))
    texts = [reply.text for reply in (reference.replies if reference else ordered)]
    likely = likelihoods(generator, [probe.prompt for probe in probes], texts)
    scores = []
    for probe, reply in zip(probes, ordered, strict=True):
        read = _assistant(session, weights, probe.task, generator).read(probe.question.text, probe.hits, reply)
        scores.append(score_answer(probe.question, probe.task, read).score)
    return Answers(ordered, tuple(likely), tuple(scores))


def compare(probes: Sequence[Probe], reference: Answers, answers: Answers) -> Parity:
    """A form's answers beside the reference's."""
    changes = [
        Change(probe.question.id, was.text, now.text, _margin(own, likely))
        for probe, was, now, own, likely in zip(
            probes, reference.replies, answers.replies, reference.likelihoods, answers.likelihoods, strict=True
        )
        if was.text != now.text
    ]
    real = tuple(change for change in changes if change.margin > _TIE)
    before = [value for likely in reference.likelihoods for value in likely.logprobs]
    after = [value for likely in answers.likelihoods for value in likely.logprobs]
    scored = [(a, b) for a, b in zip(reference.scores, answers.scores, strict=True) if a is not None and b is not None]
    return Parity(
        questions=len(probes),
        identical=1 - len(changes) / len(probes),
        agreement=1 - len(real) / len(probes),
        logp_difference=fmean(abs(b - a) for a, b in zip(before, after, strict=True)),
        score=fmean(b for _, b in scored),
        score_difference=fmean(b - a for a, b in scored),
        changes=real,
    )


def _margin(own: Likelihood, likely: Likelihood) -> float:
    """At most how much likelier than in the reference another token is; an answer cut short ends in neither."""
    return max(b - a for a, b in zip(own.margins, likely.margins, strict=True))


def probe_rows(probes: Sequence[Probe], reference: Answers) -> list[dict[str, Any]]:
    """The frozen probe as `probe.jsonl` holds it: all that anyone needs to check another server against it."""
    return [
        {
            "id": probe.question.id,
            "task": probe.task.name,
            "messages": [asdict(message) for message in probe.prompt],
            "max_answer_tokens": probe.task.max_answer_tokens,
            "answers": list(probe.question.answers),
            "prompt_tokens": reply.prompt_tokens,
            "reference": reply.text,
            "logprobs": list(likely.logprobs),
        }
        for probe, reply, likely in zip(probes, reference.replies, reference.likelihoods, strict=True)
    ]


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
