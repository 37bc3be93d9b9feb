"""The nouns of ragtune: everything that crosses the border between two stages.

Data flow:  Document -> Passage -> (index) -> Hit -> Message -> Answer -> Row -> Verdict

All are frozen, hold values only and import the standard library alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Split = Literal["train", "dev", "test"]
AnswerFormat = Literal["short", "label", "json", "text"]


@dataclass(frozen=True, slots=True)
class Document:
    """One source text. `id` is its path below the folder that was loaded, with forward slashes."""

    id: str
    text: str
    title: str
    sha256: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Passage:
    """A slice of one document: `text == document.text[start:end]` (offsets in characters)."""

    id: str
    document_id: str
    text: str
    start: int
    end: int
    headings: tuple[str, ...] = ()

    @property
    def context(self) -> str:
        """Where the passage stands, for the embedder and the prompt; not part of the offsets."""
        return " > ".join(self.headings)


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that a search found. `score` is the fused score, larger is better; `rank` counts from 1."""

    passage: Passage
    score: float
    rank: int


@dataclass(frozen=True, slots=True)
class Span:
    """Gold evidence: `text == document.text[start:end]`. Spans survive another splitting; passages do not."""

    document_id: str
    start: int
    end: int
    text: str

    def overlaps(self, passage: Passage) -> bool:
        """True when at least half of the span lies inside the passage."""
        if passage.document_id != self.document_id:
            return False
        shared = min(self.end, passage.end) - max(self.start, passage.start)
        return 2 * shared >= self.end - self.start


@dataclass(frozen=True, slots=True)
class Question:
    """One thing to answer. Any of `answers` is right; none means that the documents do not say."""

    id: str
    text: str
    answers: tuple[str, ...]
    task: str
    split: Split
    evidence: tuple[Span, ...] = ()

    @property
    def answerable(self) -> bool:
        """False when the right answer is to say that the documents do not tell."""
        return bool(self.answers)


@dataclass(frozen=True, slots=True)
class Task:
    """A named set of questions with instructions, an answer format and a primary metric in [0, 1].

    `instructions` are variants of one wording; which one the prompting arms use is chosen on the dev split.
    """

    name: str
    instructions: tuple[str, ...]
    metric: str
    format: AnswerFormat
    questions: tuple[Question, ...]
    labels: tuple[str, ...] = ()
    max_answer_tokens: int = 32

    def split(self, name: Split) -> tuple[Question, ...]:
        """The questions of one split, in file order."""
        return tuple(q for q in self.questions if q.split == name)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


Weights = Literal["base", "tune", "raft"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of answering: a base model plus the ingredients that it has or lacks."""

    name: str
    few_shot: bool
    passages: Literal["none", "retrieved", "gold"]
    weights: Weights
    reference: bool = False
    """Reference arms are measured for what they explain; they cannot win a verdict."""
    generator: str | None = None
    """Which of the config's `[generators]` answers; None means the project's own model."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a generator gave back for one prompt.

    `seconds` is the batch's wall time shared evenly. `label_scores` are the log-probabilities (nats) of the allowed
    labels, end of turn included; only label tasks have them. `free_text` is what the generator writes on its own where
    `text` was picked among labels; it shows format failures.
    """

    text: str
    prompt_tokens: int
    output_tokens: int
    seconds: float
    label_scores: Mapping[str, float] = field(default_factory=dict)
    free_text: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What an arm says to one question. `citations` are ids among `hits`; `refused`: the documents do not tell."""

    question: str
    arm: str
    text: str
    hits: tuple[Hit, ...]
    citations: tuple[str, ...]
    refused: bool
    reply: Reply
    task: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One question answered by one arm, scored. `score` is None when it could not be scored; never 0 for that."""

    task: str
    question_id: str
    arm: str
    score: float | None
    scores: Mapping[str, float | None]
    text: str
    passage_ids: tuple[str, ...]
    cited_ids: tuple[str, ...]
    prompt_tokens: int
    output_tokens: int
    seconds: float
    refused: bool
    free_text: str | None = None


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with the interval that holds it at the stated confidence."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Arm `a` minus arm `b` on the same questions. `p_value` is Holm-corrected within its task."""

    a: str
    b: str
    difference: Interval
    p_value: float
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """One arm on one task: how good, how dear, how many questions.

    `probability_best` is 0 for reference arms and for dropped ones. `dropped_after` is the number of questions after
    which racing dropped the arm; None means that it was asked all.
    """

    arm: str
    score: Interval
    n: int
    unscored: int
    cost: float
    prompt_tokens: float
    output_tokens: float
    seconds_p50: float
    seconds_p95: float
    reference: bool
    in_best_set: bool
    probability_best: float = 0.0
    dropped_after: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Per task: the arm to use, how sure, why, and what it costs."""

    task: str
    arm: str
    status: Literal["decided", "undecided"]
    reason: str
    questions_needed: int | None
    smallest_difference: float
    arms: tuple[ArmSummary, ...]
    comparisons: tuple[Comparison, ...]

    def summary(self, arm: str) -> ArmSummary:
        """The summary of one arm; KeyError when it was not measured."""
        for row in self.arms:
            if row.arm == arm:
                return row
        raise KeyError(arm)


@dataclass(frozen=True, slots=True)
class RouterFacts:
    """How well a router does on `n` questions that it was not fitted to, as if each task were asked equally often.

    `per_task`: the share of a task's questions for which it is the likeliest task; 0 where a task has too few to be
    learned. `accuracy`: the mean of these. `covered`: the share of questions (of learned tasks) that are routed, not
    left to the default; `precision`: the share of those that are right, 0 when none is routed. The temperature and
    the threshold are chosen on the same predictions, so with few questions `precision` is a little high.
    """

    accuracy: float
    covered: float
    n: int
    per_task: Mapping[str, float]
    precision: float


class Embedder(Protocol):
    """Texts -> unit vectors. `ragtune.testing.HashEmbedder` is the public double."""

    @property
    def name(self) -> str:
        """The name that a config gives it."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides its vectors."""
        ...

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        ...

    @property
    def max_tokens(self) -> int:
        """Longest text that it reads, special tokens included."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens per text, special tokens included, without truncation."""
        ...

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """Character offsets of the text's tokens, special tokens left out, without truncation."""
        ...

    def embed(self, texts: Sequence[str]) -> object:
        """float32 array (len(texts), dimension), rows of length 1."""
        ...


class Generator(Protocol):
    """Messages -> replies. `ragtune.testing.ScriptedGenerator` is the public double."""

    @property
    def name(self) -> str:
        """The name that a config gives it."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides its replies."""
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of a text without special tokens."""
        ...

    def generate(self, prompts: Sequence[Sequence[Message]], max_new_tokens: int) -> list[Reply]:
        """Greedy answers, one for each prompt, in the same order."""
        ...

    def choose(self, prompts: Sequence[Sequence[Message]], labels: Sequence[str], max_new_tokens: int) -> list[Reply]:
        """The most likely of the allowed labels for each prompt, and what it writes on its own in so many tokens."""
        ...

    def stream(self, prompt: Sequence[Message], max_new_tokens: int) -> Iterator[str]:
        """The greedy answer to one prompt, piece by piece."""
        ...
