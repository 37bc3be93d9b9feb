"""Questions from documents alone: a model writes them, every answer is found again in its passage, word for word.

passages -> requests -> replies (logged) -> drafts -> what is wrong with them -> pairs

Every reply is kept in `runs/NAME.synth.jsonl` under the hash of its request, so a run that is killed goes on where it
stopped and the same run again asks nothing.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from ragtune import store
from ragtune.assistant import ARMS
from ragtune.corpus.answer_spans import answer_spans, pick_spans
from ragtune.corpus.grounding import ground, sentence_around
from ragtune.corpus.screen import Distinct, fault_of
from ragtune.errors import ConfigError, InputError, UnfinishedError
from ragtune.measure import AnswerLog
from ragtune.prompting import synth
from ragtune.session import Session
from ragtune.types import Generator, Message, Passage, Reply, Split

Strategy = Literal["answer-first", "free"]
Filter = Literal["answerable", "round-trip"]

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_CHUNK = 32
_QUESTION_TOKENS = 48
_LONGEST_ANSWER = 12
"""Words of the longest answer that a model may give."""
_WORTH_CHOOSING = 3
"""Fewest possible answers in a passage among which picking the right one means something."""


@dataclass(frozen=True, slots=True)
class SynthOptions:
    """What to write, and how.

    `questions`: at most so many are kept; `per_passage`: asked for of one passage; `shares` of train, dev and test;
    `generator`: one of `[generators]`, empty for the project's own model; `similarity`: cosine from which two questions
    are nearly the same; `filters`: judgements of the model that a pair must pass.

    Raises: InputError for numbers that make no sense.
    """

    name: str = "synthetic"
    generator: str = ""
    questions: int = 100
    per_passage: int = 1
    shares: tuple[float, float, float] = (70, 10, 20)
    strategy: Strategy = "answer-first"
    filters: tuple[Filter, ...] = ()
    similarity: float = 0.9
    seed: int = 17

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if self.questions < 1 or self.per_passage < 1 or not 0 < self.similarity <= 1:
            raise InputError(
                f"questions {self.questions}, per_passage {self.per_passage}, similarity {self.similarity}: "
                "expected at least 1, at least 1, and a number above 0 and up to 1"
            )
        if not _NAME.fullmatch(self.name):
            raise InputError(
                f"task name {self.name!r} cannot be used; expected small letters, digits, - and _ (set --name)"
            )
        if not all(math.isfinite(share) and share >= 0 for share in self.shares) or not sum(self.shares):
            raise InputError(f"shares {self.shares}: expected those of train, dev and test, such as 70, 10, 20")

    @property
    def split_shares(self) -> dict[Split, float]:
        """The shares by split; they sum to 1."""
        train, dev, test = (share / sum(self.shares) for share in self.shares)
        return {"train": train, "dev": dev, "test": test}


@dataclass(frozen=True, slots=True)
class Draft:
    """A question with its answer; `start` and `end` are the answer's offsets in the document, -1 where it has none."""

    passage: Passage
    question: str
    answer: str
    start: int = -1
    end: int = -1
    reply: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A draft that was left out, and why: a key of `corpus.screen.REASONS`."""

    draft: Draft
    reason: str

    def to_json(self) -> dict[str, Any]:
        """A line of the file of rejected pairs."""
        return {"reason": self.reason, **origin_json(self.draft)}


@dataclass(frozen=True, slots=True)
class Written:
    """What a model wrote: `pairs` that are kept, `rejected` ones, and how many of its replies were looked at."""

    pairs: tuple[Draft, ...]
    rejected: tuple[Rejected, ...]
    replies: int

    @property
    def reasons(self) -> dict[str, int]:
        """How many pairs were left out for each reason, the most frequent first."""
        return dict(Counter(rejected.reason for rejected in self.rejected).most_common())


def origin_json(draft: Draft) -> dict[str, Any]:
    """Where a pair comes from: the passage, the answer's offsets in the document, and the whole reply."""
    passage = draft.passage
    return {
        "question": draft.question,
        "answer": draft.answer,
        "document": passage.document_id,
        "passage": [passage.start, passage.end],
        "answer_at": [draft.start, draft.end] if draft.start >= 0 else None,
        "reply": draft.reply,
    }


# --- asking ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Writer:
    """A generator whose replies are logged and never asked for again."""

    generator: Generator
    log: AnswerLog

    def write(self, prompts: Sequence[Sequence[Message]], max_new_tokens: int) -> list[str]:
        """One reply for each prompt; what the log holds is not asked again."""
        keys = [self._key(prompt, [], max_new_tokens) for prompt in prompts]
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self.log}
        if missing:
            self._ask(list(missing), lambda: self.generator.generate(list(missing.values()), max_new_tokens))
        return [self.log[key].text for key in keys]

    def pick(self, prompt: Sequence[Message], labels: Sequence[str]) -> str:
        """The label that the generator picks."""
        key = self._key(prompt, labels, 1)
        if key not in self.log:
            self._ask([key], lambda: self.generator.choose([prompt], labels, 1))
        return self.log[key].text

    def _ask(self, keys: Sequence[str], ask: Callable[[], list[Reply]]) -> None:
        try:
            replies = ask()
        except UnfinishedError as error:  # what came is paid for
            self.log.add({keys[i]: reply for i, reply in error.replies.items()})
            raise
        self.log.add(dict(zip(keys, replies, strict=True)))

    def _key(self, prompt: Sequence[Message], labels: Sequence[str], max_new_tokens: int) -> str:
        asked = [self.generator.fingerprint, [asdict(message) for message in prompt], list(labels), max_new_tokens]
        return store.sha256_of_json(asked)


@dataclass(frozen=True, slots=True)
class _Request:
    """A prompt about a passage; `answer` holds the offsets in the passage of the answer that is asked about."""

    passage: Passage
    prompt: tuple[Message, ...]
    answer: tuple[int, int] | None = None


def _requests(passages: Iterable[Passage], options: SynthOptions) -> Iterator[_Request]:
    """Requests in seeded order: a passage of each document, then a second one of each; then further answers in each."""
    ordered = _spread(passages, options.seed)
    if options.strategy == "free":
        for passage in ordered:
            yield _Request(passage, synth.pair_messages(_source(passage), passage.text, options.per_passage))
        return
    for turn in range(options.per_passage):
        for passage in ordered:
            spans = pick_spans(passage.text, turn + 1, random.Random(f"{options.seed}/{passage.id}"))
            if len(spans) > turn:
                span = spans[turn]
                start, end = sentence_around(passage.text, span.start, span.end)
                cuts = (start, span.start, span.end, end)
                before, answer, behind = (passage.text[a:b] for a, b in itertools.pairwise(cuts))
                messages = synth.question_messages(_source(passage), (before, answer, behind), span.kind)
                yield _Request(passage, messages, (span.start, span.end))


def _spread(passages: Iterable[Passage], seed: int) -> list[Passage]:
    rng = random.Random(seed)
    by_document: dict[str, list[Passage]] = defaultdict(list)
    for passage in passages:
        by_document[passage.document_id].append(passage)
    rows = list(by_document.values())
    rng.shuffle(rows)
    for row in rows:
        rng.shuffle(row)
    return [passage for turn in itertools.zip_longest(*rows) for passage in turn if passage is not None]


def _source(passage: Passage) -> str:
    return passage.context or passage.document_id


# --- reading and judging ---------------------------------------------------------------------------------------------


def _drafts(request: _Request, reply: str) -> Iterator[Draft | Rejected]:
    """The pairs in a reply, their answers found in the passage; or why there is none."""
    passage = request.passage
    if request.answer:
        start, end = request.answer
        question = synth.read_question(reply)
        draft = _grounded(passage, question or "", (start, end), reply)
        yield draft if question else Rejected(draft, "no-question")
        return
    pairs = synth.read_pairs(reply)
    if not pairs:
        yield Rejected(Draft(passage, "", "", reply=reply), "no-question")
    for question, answer in pairs:
        place = ground(answer, passage.text)
        if place is None:
            yield Rejected(Draft(passage, question, answer, reply=reply), "ungrounded")
        elif len(answer.split()) > _LONGEST_ANSWER:
            yield Rejected(_grounded(passage, question, place, reply), "long-answer")
        else:
            yield _grounded(passage, question, place, reply)


def _grounded(passage: Passage, question: str, place: tuple[int, int], reply: str) -> Draft:
    answer = " ".join(passage.text[slice(*place)].split())
    return Draft(passage, question, answer, passage.start + place[0], passage.start + place[1], reply)


def _judge(draft: Draft, filters: Sequence[Filter], writer: _Writer) -> str | None:
    """What the model itself holds against a pair.

    `round-trip` is the consistency of Alberti et al. 2019, section 2, with a choice in place of a reader: of all
    possible answers in the passage, the model must pick this one for the question.
    """
    passage = draft.passage
    if "answerable" in filters:
        said = writer.pick(synth.judge_messages(draft.question, passage), synth.VERDICTS)
        if not said.strip().lower().startswith("yes"):
            return "unanswerable"
    return "round-trip" if "round-trip" in filters and not round_trip(draft, writer.pick) else None


def possible_answers(draft: Draft) -> list[str]:
    """The pair's answer and all others that its passage could give, sorted."""
    text = draft.passage.text
    start, end = draft.start - draft.passage.start, draft.end - draft.passage.start
    others = (text[span.start : span.end] for span in answer_spans(text) if span.end <= start or end <= span.start)
    return sorted({draft.answer, *others})


def round_trip(draft: Draft, pick: Callable[[Sequence[Message], Sequence[str]], str]) -> bool | None:
    """Whether `pick` chooses the answer among the possible ones of its passage; None where they are fewer than 3."""
    possible = possible_answers(draft)
    if len(possible) < _WORTH_CHOOSING:
        return None
    said = pick(synth.answer_messages(draft.question, draft.passage), possible)
    return " ".join(said.split()).casefold() == draft.answer.casefold()


# --- writing questions -----------------------------------------------------------------------------------------------


@dataclass
class _Sieve:
    """Drafts go in one by one; what is kept and what is left out comes to lie in `pairs` and `rejected`."""

    session: Session
    writer: _Writer
    options: SynthOptions
    distinct: Distinct
    pairs: list[Draft] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)

    def is_full(self) -> bool:
        """True when there are as many pairs as were asked for."""
        return len(self.pairs) >= self.options.questions

    def take(self, draft: Draft | Rejected) -> None:
        if isinstance(draft, Rejected):
            self.rejected.append(draft)
            return
        source = f"{_source(draft.passage)}\n{draft.passage.text}"
        reason = fault_of(draft.question, draft.answer, source) or self._keep(draft)
        if reason:
            self.rejected.append(Rejected(draft, reason))

    def _keep(self, draft: Draft) -> str | None:
        """Keep a draft that is new and passes the filters, else say why not."""
        vector = np.asarray(self.session.embedder.embed([draft.question]))[0]
        reason = self.distinct.fault_of(draft.question, vector) or _judge(draft, self.options.filters, self.writer)
        if not reason:
            self.distinct.add(draft.question, vector)
            self.pairs.append(draft)
        return reason


def write_questions(
    session: Session, options: SynthOptions, log: AnswerLog, progress: Callable[[str, int, int], None]
) -> Written:
    """Let the generator write until there are `options.questions` pairs, or nothing more to ask about.

    Raises: StoreError without an index; InputError when no passage may be used; UnfinishedError when an endpoint
    leaves prompts unanswered (what it answered is in the log).
    """
    requests = _requests(_usable(session, options), options)
    writer = _Writer(generator_of(session, options.generator), log)
    sieve = _Sieve(session, writer, options, _known_questions(session, options))
    room = _QUESTION_TOKENS if options.strategy == "answer-first" else 2 * _QUESTION_TOKENS * options.per_passage
    replies = 0
    while not sieve.is_full() and (chunk := list(itertools.islice(requests, _CHUNK))):
        said = writer.write([request.prompt for request in chunk], room)
        for request, reply in zip(chunk, said, strict=True):
            if sieve.is_full():
                break
            replies += 1
            for draft in _drafts(request, reply):
                if not sieve.is_full():
                    sieve.take(draft)
        progress("questions kept", len(sieve.pairs), options.questions)
    return Written(tuple(sieve.pairs), tuple(sieve.rejected), replies)


def _known_questions(session: Session, options: SynthOptions) -> Distinct:
    """The questions of all other tasks, with room for those to come."""
    known = [q.text for task in session.tasks if task.name != options.name for q in task.questions]
    distinct = Distinct.with_room(len(known) + options.questions, session.embedder.dimension, options.similarity)
    vectors = np.asarray(session.embedder.embed(known)) if known else ()
    for text, vector in zip(known, vectors, strict=True):
        distinct.add(text, vector)
    return distinct


def generator_of(session: Session, name: str) -> Generator:
    """The generator of a section `[generators.NAME]`, the project's own model for an empty name.

    Raises: ConfigError listing the sections.
    """
    if name and name not in session.project.generators:
        known = ", ".join(session.project.generators) or "none"
        raise ConfigError(f"unknown generator {name!r}; the sections [generators.NAME] of ragtune.toml are: {known}")
    return session.generator_for(replace(ARMS["prompt"], generator=name or None))


def _usable(session: Session, options: SynthOptions) -> list[Passage]:
    """The passages of documents whose split gets questions at all."""
    bound, shares = bound_documents(session, options.name), options.split_shares
    closed = {document for document, split in bound.items() if not shares[split]}
    passages = [passage for passage in session.index.passages if passage.document_id not in closed]
    if not passages:
        raise InputError("every document is evidence in a split that is to get no questions; give it a share")
    return passages


def bound_documents(session: Session, name: str) -> dict[str, Split]:
    """The split of each document that is evidence in another task than `name`; of several the latest."""
    bound: dict[str, Split] = {}
    splits: tuple[Split, ...] = ("train", "dev", "test")
    for split in splits:
        for task in session.tasks:
            if task.name != name and not session.project.tasks[task.name].shared_documents:
                bound |= {span.document_id: split for q in task.split(split) for span in q.evidence}
    return bound
