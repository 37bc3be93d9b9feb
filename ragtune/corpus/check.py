"""Tasks and documents -> what is wrong with them: evidence that does not resolve, and splits that leak.

Errors make scores wrong (a test question that was trained on); warnings ask for a look.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ragtune.corpus.questions import locate_evidence
from ragtune.errors import QuestionError
from ragtune.types import Question, Split, Task

_SPLITS: tuple[Split, ...] = ("train", "dev", "test")
_EDGES = ".,;:!?…\"'`*_|()[]{}«»“”‘’„¿¡、。！？，；：「」『』（）।؟،"
_CHARACTER_OR_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `question_id` is empty where no single question is meant."""

    task: str
    question_id: str
    message: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found; `counts` are the questions per task and split."""

    errors: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    counts: Mapping[str, Mapping[str, int]]


def check_corpus(
    tasks: Sequence[Task], documents: Mapping[str, str], shared: frozenset[str] = frozenset()
) -> CheckReport:
    """Look for everything that would make an evaluation on these tasks wrong; `documents` maps ids to texts.

    Tasks named in `shared` ask about rules rather than facts, so their evidence may serve several splits.
    """
    questions = [question for task in tasks for question in task.questions]
    errors = [
        *_unresolved(questions, documents),
        *_shared_documents(q for q in questions if q.task not in shared),
        *_same_questions(tasks),
        *(finding for task in tasks for finding in _labels_without_example(task)),
    ]
    counts: dict[str, dict[str, int]] = {
        task.name: {split: len(task.split(split)) for split in _SPLITS} for task in tasks
    }
    warnings = [
        *(
            Finding(n, "", f"the {split} split is empty")
            for n, row in counts.items()
            for split in row
            if not row[split]
        ),
        *_near_duplicates(questions),
        *(finding for task in tasks if task.format == "short" for finding in _answers_not_in_evidence(task)),
    ]
    return CheckReport(tuple(errors), tuple(warnings), counts)


def normalise(text: str) -> str:
    """Lower case, one space between words, no punctuation around words; the text itself when nothing else is left."""
    words = (word.strip(_EDGES) for word in text.casefold().split())
    return " ".join(word for word in words if word) or text


def _unresolved(questions: Iterable[Question], documents: Mapping[str, str]) -> Iterator[Finding]:
    for question in questions:
        for span in question.evidence:
            try:
                locate_evidence([dataclasses.replace(question, evidence=(span,))], documents)
            except QuestionError as error:
                yield Finding(question.task, question.id, str(error))


def _shared_documents(questions: Iterable[Question]) -> Iterator[Finding]:
    """Documents whose evidence is used in more than one split: what was trained on them helps in the test."""
    users: dict[str, dict[str, Question]] = defaultdict(dict)
    for question in questions:
        for span in question.evidence:
            users[span.document_id].setdefault(question.split, question)
    for document, by_split in users.items():
        if len(by_split) > 1:
            ordered = [by_split[split] for split in _SPLITS if split in by_split]
            named = " and ".join(f"{q.split} ({q.task}/{q.id})" for q in ordered)
            yield Finding(
                ordered[-1].task, ordered[-1].id, f"document {document!r} is evidence in {named}; use it in one"
            )


def _same_questions(tasks: Sequence[Task]) -> Iterator[Finding]:
    """Repeated questions: in one task anywhere, in two tasks only across splits."""
    formats = {task.name: task.format for task in tasks}
    seen: dict[str, list[Question]] = defaultdict(list)
    for question in (question for task in tasks for question in task.questions):
        earlier = seen[normalise(question.text)]
        same_task = [other for other in earlier if other.task == question.task]
        twins = same_task or [other for other in earlier if other.split != question.split]
        if twins:
            yield Finding(question.task, question.id, f"the same question as {_reference(twins[0])}; keep one of them")
        for other in same_task:
            if not _agree(question, other, formats[question.task] == "json"):
                yield Finding(question.task, question.id, f"answers that contradict those of {_reference(other)}")
                break
        earlier.append(question)


def _reference(question: Question) -> str:
    return f"{question.task}/{question.id} ({question.split})"


def _agree(one: Question, other: Question, as_json: bool) -> bool:
    first, second = ({_canonical(answer, as_json) for answer in q.answers} for q in (one, other))
    return bool(first & second) or not (first or second)


def _canonical(answer: str, as_json: bool) -> str:
    return json.dumps(json.loads(answer), sort_keys=True) if as_json else normalise(answer)


def _near_duplicates(questions: Sequence[Question]) -> Iterator[Finding]:
    """For each question the most similar one of an earlier split, where the Jaccard similarity of words is >= 0.8.

    Prefix filtering (Bayardo, Ma and Srikant 2007, "Scaling up all pairs similarity search", section 4): with words
    ordered from rare to frequent, two sets that similar share a word among the first n - ceil(0.8 n) + 1 of each.
    """
    bags = [frozenset(_CHARACTER_OR_WORD.findall(normalise(question.text))) for question in questions]
    frequency = Counter(word for bag in bags for word in bag)
    index: dict[str, list[int]] = defaultdict(list)
    for i in sorted(range(len(questions)), key=lambda i: _SPLITS.index(questions[i].split)):
        bag = bags[i]
        rare_first = sorted(bag, key=lambda word: (frequency[word], word))
        prefix = rare_first[: len(bag) - -(-4 * len(bag) // 5) + 1]
        candidates = {j for word in prefix for j in index[word] if questions[j].split != questions[i].split}
        best = max(candidates, key=lambda j: (_jaccard(bag, bags[j]), -j), default=None)
        # An exact duplicate is an error already.
        if best is not None and _jaccard(bag, bags[best]) >= 0.8 and not _same_text(questions[i], questions[best]):
            similarity = _jaccard(bag, bags[best])
            message = f"nearly the same question as {_reference(questions[best])} (Jaccard {similarity:.2f})"
            yield Finding(questions[i].task, questions[i].id, message)
        for word in prefix:
            index[word].append(i)


def _same_text(one: Question, other: Question) -> bool:
    return normalise(one.text) == normalise(other.text)


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)


def _labels_without_example(task: Task) -> Iterator[Finding]:
    if task.format != "label":
        return
    trained = {answer for question in task.split("train") for answer in question.answers}
    used: dict[str, list[Question]] = {label: [] for label in task.labels}
    for question in task.questions:
        for answer in question.answers:
            used.setdefault(answer, []).append(question)
    for label, questions in used.items():
        if label not in trained:
            held_out = ", ".join(f"{sum(q.split == split for q in questions)} in {split}" for split in ("dev", "test"))
            first = questions[0].id if questions else ""
            yield Finding(task.name, first, f"label {label!r} has no train question ({held_out})")


def _answers_not_in_evidence(task: Task) -> Iterator[Finding]:
    for question in task.questions:
        evidence = [normalise(span.text) for span in question.evidence]
        if evidence and not any(normalise(answer) in text for answer in question.answers for text in evidence):
            message = (
                f"none of the answers {list(question.answers)} stands in its evidence; right if it is to be inferred"
            )
            yield Finding(task.name, question.id, message)
