"""How a question becomes messages, and how an answer is read back. Pure text: no model, no torch.

The words stand in `templates/*.txt`. Every arm uses the same functions, so a difference between two arms is a
difference of ingredients and never of phrasing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from ragtune.types import Message, Passage, Question, Task

CITING_FORMATS = ("short", "text")
_CITATION = re.compile(r"\[(\d{1,2})\]")
_REFUSAL = re.compile(
    r"^(sorry, )?(but )?("
    r"i (do not|don't|cannot|can't) (know|answer|say|tell|find)"
    r"|i('m| am) (not sure|unable)"
    r"|(the|this|these|none of the) (\w+ )?"
    r"(documents?|passages?|context|texts?|information|answer|question)( \w+){0,2}? "
    r"(do not|does not|don't|doesn't|is not|isn't|are not|aren't|cannot|can't) (be )?"
    r"(say|tell|mention|state|specify|give|provide|contain|include|answer|in\b|available)"
    r"|(this|that|it) (is not|isn't|cannot be|can't be) "
    r"(in\b|mentioned|stated|given|specified|provided|available|answered)"
    r"|not (in|mentioned|stated|given|specified|provided|available)\b"
    r")"
)


@dataclass(frozen=True, slots=True)
class Example:
    """A worked question for few-shot prompting. `passages` is empty where the arm has none."""

    question: Question
    passages: tuple[Passage, ...] = ()


@cache
def template(name: str) -> str:
    """The text of `templates/NAME.txt` without its final newline."""
    return (resources.files("ragtune.prompting") / "templates" / f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")


def abstention() -> str:
    """The sentence with which an arm says that the documents do not tell."""
    return template("abstention")


def system_text(task: Task, instruction: str, with_passages: bool) -> str:
    """The instruction, plus how to cite and when to abstain where the task's format has room for that."""
    text = instruction
    if with_passages and task.format in CITING_FORMATS:
        text = template("answer_from_passages").format(instruction=text)
    if task.format in CITING_FORMATS and may_abstain(task):
        text += " " + template("may_abstain").format(abstention=abstention())
    return text


def may_abstain(task: Task) -> bool:
    """True when some training question of the task has no answer, so that abstaining is part of it."""
    return any(not q.answerable for q in task.questions if q.split == "train")


def user_text(question: str, passages: Sequence[Passage]) -> str:
    """The question, after its numbered passages when there are any."""
    if not passages:
        return question
    numbered = "\n".join(
        template("passage").format(number=number, source=_source(p), text=" ".join(p.text.split()))
        for number, p in enumerate(passages, 1)
    )
    return template("context").format(passages=numbered, question=question)


def _source(passage: Passage) -> str:
    return passage.context or passage.document_id


def target_text(question: Question, task: Task, passages: Sequence[Passage]) -> str:
    """What a perfect arm would say: the answer, after `[n]` for each passage that holds its evidence."""
    if not question.answerable:
        return abstention()
    if task.format not in CITING_FORMATS or not passages:
        return question.answers[0]
    cited = [n for n, p in enumerate(passages, 1) if any(span.overlaps(p) for span in question.evidence)]
    marks = "".join(f"[{n}]" for n in cited)
    return f"{marks} {question.answers[0]}" if marks else question.answers[0]


def build_messages(
    question: str,
    task: Task,
    instruction: str,
    passages: Sequence[Passage] = (),
    examples: Sequence[Example] = (),
) -> tuple[Message, ...]:
    """System message, worked examples, then the question itself.

    Few-shot examples come first so that questions of one arm share their prompt's beginning (Brown et al. 2020,
    section 2.1: examples as earlier turns, no weights updated).
    """
    messages = [Message("system", system_text(task, instruction, bool(passages)))]
    for example in examples:
        messages.append(Message("user", user_text(example.question.text, example.passages)))
        messages.append(Message("assistant", target_text(example.question, task, example.passages)))
    messages.append(Message("user", user_text(question, passages)))
    return tuple(messages)


def read_citations(text: str, passages: Sequence[Passage]) -> tuple[str, tuple[str, ...]]:
    """The answer without its `[n]` marks, and the ids of the passages they name (marks out of range are dropped)."""
    numbers = dict.fromkeys(int(n) for n in _CITATION.findall(text))
    cited = tuple(passages[n - 1].id for n in numbers if 1 <= n <= len(passages))
    return " ".join(_CITATION.sub(" ", text).split()), cited


def is_refusal(text: str) -> bool:
    """True when the text begins by saying that the documents do not tell, in our words or in the usual ones."""
    return _REFUSAL.search(" ".join(text.lower().replace("’", "'").split())) is not None


def closest_passage(text: str, passages: Sequence[Passage]) -> str | None:
    """The id of the passage that holds most of an answer's words, for answers without citations of their own.

    None when no passage holds at least half of them. Small untuned models rarely write `[n]`; this says where to look,
    not what the model used.
    """
    words = {word.strip(".,;:!?()'\"").lower() for word in text.split()} - {""}
    shares = [
        (len(words & {w.strip(".,;:!?()'\"").lower() for w in p.text.split()}) / len(words), -i, p.id)
        for i, p in enumerate(passages)
        if words
    ]
    best = max(shares, default=(0.0, 0, ""))
    return best[2] if best[0] >= 0.5 else None
