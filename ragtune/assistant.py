"""An arm at work: question -> Answer. ask, evaluate and serve all go through here, so they cannot drift apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ragtune import store
from ragtune.config import OtherGeneratorConfig
from ragtune.errors import ConfigError
from ragtune.prompting.budget import fit
from ragtune.prompting.calibrate import LabelScores, likeliest
from ragtune.prompting.strategies import CITING_FORMATS, Example, build_messages, is_refusal, read_citations
from ragtune.types import Answer, Arm, Generator, Hit, Message, Reply, Task

ARMS = {
    arm.name: arm
    for arm in (
        Arm("prompt", few_shot=False, passages="none", weights="base"),
        Arm("few-shot", few_shot=True, passages="none", weights="base"),
        Arm("retrieve", few_shot=False, passages="retrieved", weights="base"),
        Arm("retrieve+few-shot", few_shot=True, passages="retrieved", weights="base"),
        Arm("tune", few_shot=False, passages="none", weights="tune"),
        Arm("tune+retrieve", few_shot=False, passages="retrieved", weights="tune"),
        Arm("raft", few_shot=False, passages="retrieved", weights="raft"),
        Arm("oracle", few_shot=False, passages="gold", weights="raft", reference=True),
        Arm("raft-closed", few_shot=False, passages="none", weights="raft", reference=True),
    )
}
OPEN_TASK = Task(
    name="open",
    instructions=("Answer the question in one short sentence.",),
    metric="rouge_l",
    format="text",
    questions=(),
    max_answer_tokens=96,
)
"""The task of a question when the project has none: plain question answering over the documents."""


def other_arms(generators: Mapping[str, OtherGeneratorConfig]) -> dict[str, Arm]:
    """The arms of other generators by name: `big:retrieve` is `retrieve`, answered by `[generators.big]`."""
    return {
        f"{name}:{arm}": replace(ARMS[arm], name=f"{name}:{arm}", generator=name)
        for name, config in generators.items()
        for arm in config.arms
    }


def get_arm(name: str, arms: Mapping[str, Arm] = ARMS) -> Arm:
    """The arm of a name.

    Raises: ConfigError listing the arms.
    """
    if name not in arms:
        raise ConfigError(f"unknown arm {name!r}; expected one of: {', '.join(arms)}")
    return arms[name]


def choice_key(task: str, generator: str | None) -> str:
    """Under what name prompt choices are kept: each generator has its own, chosen with it on dev."""
    return task if generator is None else f"{generator}:{task}"


def prompting_name(arm: Arm) -> str:
    """How an arm prompts, whichever generator answers: `big:retrieve` is `retrieve`."""
    return arm.name.rpartition(":")[2]


@dataclass(frozen=True)
class Assistant:
    """One arm on one task: what it needs to answer. `context_tokens` bounds the passages in a prompt.

    `prior` is what the prompt favours: the log-probabilities that a label must exceed to be picked.
    """

    arm: Arm
    task: Task
    instruction: str
    generator: Generator
    examples: tuple[Example, ...] = ()
    context_tokens: int = 1200
    prior: LabelScores = field(default_factory=dict)

    def prepare(self, question: str, hits: Sequence[Hit]) -> tuple[tuple[Message, ...], tuple[Hit, ...]]:
        """The prompt for a question, and the hits whose passages are in it."""
        if self.arm.passages == "none":
            hits = ()
        fitting = fit([hit.passage for hit in hits], self.generator.count_tokens, self.context_tokens)
        ids = {passage.id for passage in fitting}
        used = tuple(hit for hit in hits if hit.passage.id in ids)
        return build_messages(question, self.task, self.instruction, fitting, self.examples), used

    def reply(self, prompts: Sequence[Sequence[Message]]) -> list[Reply]:
        """What the generator says: the most likely label for label tasks, else a greedy answer."""
        if self.task.format == "label":
            return self.generator.choose(prompts, self.task.labels, self.task.max_answer_tokens)
        return self.generator.generate(prompts, self.task.max_answer_tokens)

    def read(self, question: str, hits: tuple[Hit, ...], reply: Reply) -> Answer:
        """A reply as an answer: in formats with room for them, citations are resolved and refusals recognised."""
        if self.task.format not in CITING_FORMATS:
            picked = likeliest(reply.label_scores, self.prior) if self.prior and reply.label_scores else reply.text
            return Answer(question, self.arm.name, picked, hits, (), False, reply, self.task.name)
        text, cited = read_citations(reply.text, [hit.passage for hit in hits]) if hits else (reply.text, ())
        refused = is_refusal(text)
        return Answer(question, self.arm.name, text, hits, () if refused else cited, refused, reply, self.task.name)

    def answer(self, question: str, hits: Sequence[Hit]) -> Answer:
        """One question, whole."""
        prompt, used = self.prepare(question, hits)
        return self.read(question, used, self.reply([prompt])[0])

    def stream(self, question: str, hits: Sequence[Hit], show: Callable[[str], None]) -> Answer:
        """One question, with each piece of text handed to `show` as it comes. Label tasks come in one piece.

        The reply's prompt tokens count the messages' contents, without the chat template's own tokens.
        """
        prompt, used = self.prepare(question, hits)
        if self.task.format == "label":
            answer = self.read(question, used, self.reply([prompt])[0])
            show(answer.text)
            return answer
        started = time.perf_counter()
        pieces: list[str] = []
        for piece in self.generator.stream(prompt, self.task.max_answer_tokens):
            pieces.append(piece)
            show(piece)
        text = "".join(pieces).strip()
        count = self.generator.count_tokens
        seconds = time.perf_counter() - started
        reply = Reply(text, sum(count(message.content) for message in prompt), count(text), seconds)
        return self.read(question, used, reply)


@dataclass(frozen=True, slots=True)
class Decision:
    """`decision.json`: per task the arm to use, with the prompt choices that the verdict was measured with."""

    arms: Mapping[str, str]
    reasons: Mapping[str, str]
    instructions: Mapping[str, Mapping[str, str]]
    examples: Mapping[str, tuple[str, ...]]
    priors: Mapping[str, Mapping[str, LabelScores]]

    @classmethod
    def load(cls, folder: Path) -> Decision:
        """Read the decision of a finished run.

        Raises: StoreError when the run is missing or damaged.
        """
        store.open_folder(folder, "run")
        value = store.read_json(folder / "decision.json")
        examples = {task: tuple(ids) for task, ids in value["examples"].items()}
        return cls(value["arms"], value["reasons"], value["instructions"], examples, value["priors"])
