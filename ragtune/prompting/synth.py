"""How a model is asked to write questions about a passage, and how its replies are read. Pure text.

`answer-first`: the model sees one statement with a gap and writes the question that asks for the gap. It never sees the
answer, so it cannot put it into the question. `free`: it sees the passage and writes question and answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from ragtune.prompting.strategies import template, user_text
from ragtune.types import Message, Passage

GAP = "____"
VERDICTS = ("yes", "no")
"""What the judge may say; yes: the passage answers the question."""

_PERSON = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|Capt|Sir|Captain|Doctor|Professor)\.? $")
_DURATION = re.compile(r"\d ?(?:seconds?|minutes?|hours?|days?|nights?|weeks?|months?|years?|s|min|h)\b")
_MEASURE = re.compile(r"\d ?(?:[mck]?m|m[gl]|k?g|tonnes?|litres?|knots|°C?|k?W|V|A)\b")
_QUESTION = re.compile(
    r"^[\s*#>\d.)-]*(?:question\b[^:\n]{0,12}:)?[\s*\"“]*(?P<text>[^\n]*?[?？؟])", re.IGNORECASE | re.M
)
_PAIR = re.compile(
    r"^[\s*#]*question\b[^:\n]{0,12}:[\s*]*(?P<question>[^\n]+)\s+^[\s*#]*answer\b[^:\n]{0,12}:[\s*]*(?P<answer>[^\n]+)",
    re.IGNORECASE | re.M,
)


@dataclass(frozen=True, slots=True)
class _Example:
    context: str
    before: str
    answer: str
    behind: str
    question: str


@cache
def _examples() -> tuple[_Example, ...]:
    """The worked examples; in the template brackets stand around the answer."""
    parts = []
    for block in template("synth_examples").split("\n\n"):
        context, statement, question = block.splitlines()
        before, answer, behind = re.split(r"[\[\]]", statement)
        parts.append(_Example(context, before, answer, behind, question))
    return tuple(parts)


def question_messages(context: str, statement: tuple[str, str, str], kind: str) -> tuple[Message, ...]:
    """Ask for a question about a gap. `statement`: what stands before the answer, the answer, what stands behind."""
    messages = [Message("system", template("synth_question"))]
    for example in _examples():
        shown = _statement(example.context, example.before, example.behind, " ".join(example.question.split()[:2]))
        messages += [Message("user", shown), Message("assistant", example.question)]
    before, answer, behind = statement
    messages.append(Message("user", _statement(context, before, behind, question_begin(kind, answer, before))))
    return tuple(messages)


def _statement(context: str, before: str, behind: str, begin: str) -> str:
    words = " ".join(f"{before}{GAP}{behind}".split())
    return template("synth_statement").format(context=context, statement=words, begin=begin)


def question_begin(kind: str, answer: str, before: str) -> str:
    """The words that a question for such an answer begins with; `before` is what stands before it."""
    if kind == "date":
        return "When"
    if kind == "time":
        return "At what time"
    if kind == "name" and (_PERSON.search(before) or _PERSON.match(f"{answer.split()[0]} ")):
        return "Who"
    if kind != "amount":
        return "What"
    if answer[0] in "£$€¥":
        return "How much"
    if answer[-1] in "%‰" or answer.endswith("per cent"):
        return "What percentage"
    if _DURATION.search(answer):
        return "How long"
    return "What" if _MEASURE.search(answer) else "How many"


def pair_messages(context: str, text: str, count: int) -> tuple[Message, ...]:
    """Ask for question and answer together. The examples show one pair each, so more are asked for without them."""
    wanted = "one question" if count == 1 else f"{count} different questions"
    messages = [Message("system", template("synth_pairs").format(count=wanted))]
    for example in _examples() if count == 1 else ():
        shown = f"{example.before}{example.answer}{example.behind}"
        messages.append(Message("user", template("synth_text").format(context=example.context, text=shown)))
        messages.append(Message("assistant", f"Question: {example.question}\nAnswer: {example.answer}"))
    messages.append(Message("user", template("synth_text").format(context=context, text=" ".join(text.split()))))
    return tuple(messages)


def read_question(reply: str) -> str | None:
    """The first question in a reply, without what introduces it; None when nothing ends with a question mark."""
    match = _QUESTION.search(reply)
    return " ".join(match["text"].split()) if match else None


def read_pairs(reply: str) -> list[tuple[str, str]]:
    """All questions in a reply that are followed by their answer."""
    return [(match["question"].strip(' *"'), match["answer"].strip(" *")) for match in _PAIR.finditer(reply)]


def answer_messages(question: str, passage: Passage) -> tuple[Message, ...]:
    """Ask for the answer to a question, from its passage."""
    return Message("system", template("synth_answer")), Message("user", user_text(question, [passage]))


def judge_messages(question: str, passage: Passage) -> tuple[Message, ...]:
    """Ask whether a passage answers a question; the reply is one of VERDICTS."""
    return Message("system", template("synth_judge")), Message("user", user_text(question, [passage]))
