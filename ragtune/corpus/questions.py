"""A question file -> Task, and quotes of evidence -> spans with offsets.

One JSON object a line, strictly: a broken line is an error that names the file and the line, never a line left out.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ragtune.errors import QuestionError
from ragtune.types import AnswerFormat, Question, Span, Split, Task

_KEYS = ("id", "split", "question", "answers", "evidence")
_SPLITS: dict[str, Split] = {"train": "train", "dev": "dev", "test": "test"}


def load_task(
    name: str,
    path: Path,
    instructions: Sequence[str],
    metric: str,
    format: AnswerFormat,
    labels: Sequence[str] = (),
    max_answer_tokens: int = 32,
) -> Task:
    """The task in a JSONL file with exactly the keys id, split, question, answers and evidence on each line.

    For format "label", empty `labels` mean those of the train split, sorted. Evidence is not located yet: spans have
    start = end = -1, or the offsets that the file gives.

    Raises: QuestionError naming file and line: what came, what was expected.
    """
    questions: list[Question] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(_lines(path), 1):
        where = f"{path}, line {number}"
        question = _question(_object(line, where), name, where)
        if question.id in lines:
            raise QuestionError(
                f"{where}: id {question.id!r} is already that of line {lines[question.id]}; make it unique"
            )
        if format == "json":
            for answer in question.answers:
                _check_json(answer, metric, where)
        lines[question.id] = number
        questions.append(question)
    if not questions:
        raise QuestionError(f"{path} holds no questions; expected one JSON object a line")
    if format == "label":
        labels = tuple(labels) or tuple(sorted({a for q in questions if q.split == "train" for a in q.answers}))
        for question in questions:
            _check_labels(question, labels, f"{path}, line {lines[question.id]}")
    return Task(name, tuple(instructions), metric, format, tuple(questions), tuple(labels), max_answer_tokens)


def locate_evidence(questions: Sequence[Question], documents: Mapping[str, str]) -> tuple[Question, ...]:
    """The questions with each span's offsets found; `documents` maps a document's id to its text.

    A quote without offsets must occur exactly once, where any run of whitespace equals any other (line breaks in PDF);
    the span's text becomes the document's own slice. A span with offsets must match the document there exactly.

    Raises: QuestionError naming question and document.
    """
    return tuple(
        dataclasses.replace(q, evidence=tuple(_locate(q.id, span, documents) for span in q.evidence)) for q in questions
    )


def _locate(question_id: str, span: Span, documents: Mapping[str, str]) -> Span:
    where = f"question {question_id!r}, document {span.document_id!r}"
    text = documents.get(span.document_id)
    if text is None:
        raise QuestionError(f"{where}: there is no such document; expected one of the {len(documents)} loaded")
    quote = span.text if len(span.text) <= 60 else span.text[:57] + "..."
    if span.start >= 0:
        if text[span.start : span.end] != span.text:
            found = text[span.start : span.end][:60]
            raise QuestionError(f"{where}: characters {span.start} to {span.end} are {found!r}, expected {quote!r}")
        return span
    pattern = re.compile(r"\s+".join(map(re.escape, span.text.split())))
    match = pattern.search(text)
    if match is None:
        raise QuestionError(f"{where}: the quote {quote!r} does not occur in it; copy it character for character")
    # The second search begins inside the first match, so that overlapping occurrences count too.
    if pattern.search(text, match.start() + 1):
        raise QuestionError(f"{where}: the quote {quote!r} occurs more than once; quote more, or give start and end")
    return Span(span.document_id, match.start(), match.end(), match[0])


def _lines(path: Path) -> list[bytes]:
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise QuestionError(f"{path} cannot be read ({error.strerror}); expected a question file") from None
    return data.removesuffix(b"\n").split(b"\n") if data else []


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise QuestionError(f"{where}: not valid JSON ({error}); expected one JSON object") from None
    if not isinstance(value, dict):
        raise QuestionError(f"{where}: a JSON {_name(value)}, expected an object with the keys {', '.join(_KEYS)}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _question(row: dict[str, Any], task: str, where: str) -> Question:
    _check_keys(row, _KEYS, (), where)
    answers = tuple(_string(answer, "an answer", where) for answer in _list(row["answers"], "answers", where))
    evidence = tuple(_span(item, where) for item in _list(row["evidence"], "evidence", where))
    split = _string(row["split"], "split", where)
    if split not in _SPLITS:
        raise QuestionError(f"{where}: unknown split {split!r}, expected train, dev or test")
    if evidence and not answers:
        raise QuestionError(f"{where}: evidence for a question without answers, expected evidence []")
    text = _string(row["question"], "question", where)
    return Question(_string(row["id"], "id", where), text, answers, task, _SPLITS[split], evidence)


def _span(item: object, where: str) -> Span:
    if not isinstance(item, dict):
        raise QuestionError(f"{where}: evidence holds a JSON {_name(item)}, expected objects with document and text")
    where = f"{where}, evidence"
    _check_keys(item, ("document", "text"), ("start", "end"), where)
    start, end = item.get("start", -1), item.get("end", -1)
    given = [key for key in ("start", "end") if key in item]
    # `type` rather than `isinstance`: true and false are no offsets.
    if len(given) == 1 or (given and not (type(start) is int and type(end) is int and 0 <= start < end)):
        came = ", ".join(f"{key} {item[key]!r}" for key in given)
        raise QuestionError(f"{where}: {came}, expected integers 0 <= start < end, or neither")
    document = _string(item["document"], "document", where)
    return Span(document, start, end, _string(item["text"], "text", where))


def _check_keys(row: dict[str, Any], required: Sequence[str], optional: Sequence[str], where: str) -> None:
    missing = [key for key in required if key not in row]
    unknown = [key for key in row if key not in (*required, *optional)]
    if missing or unknown:
        kind, keys = ("missing", missing) if missing else ("unknown", unknown)
        raise QuestionError(f"{where}: {kind} key {', '.join(map(repr, keys))}, expected {', '.join(required)}")


def _string(value: object, what: str, where: str) -> str:
    if not isinstance(value, str):
        raise QuestionError(f"{where}: {what} is a JSON {_name(value)}, expected a string")
    if not value.strip():
        raise QuestionError(f"{where}: {what} is empty, expected text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise QuestionError(f"{where}: {what} holds half of a UTF-16 pair, expected whole characters") from None
    return value


def _list(value: object, what: str, where: str) -> list[object]:
    if not isinstance(value, list):
        raise QuestionError(f"{where}: {what} is a JSON {_name(value)}, expected a list")
    return value


def _name(value: object) -> str:
    names = {"NoneType": "null", "bool": "boolean", "int": "number", "float": "number", "str": "string"}
    return names.get(type(value).__name__) or ("list" if isinstance(value, list) else "object")


def _check_json(answer: str, metric: str, where: str) -> None:
    try:
        value = json.loads(answer, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise QuestionError(f"{where}: answer {answer!r} is not JSON ({error}), which format json expects") from None
    if metric == "field_match" and not isinstance(value, dict):
        raise QuestionError(f"{where}: answer {answer!r} is a JSON {_name(value)}, field_match expects an object")


def _check_labels(question: Question, labels: Sequence[str], where: str) -> None:
    for answer in question.answers:
        if answer not in labels:
            expected = (
                f"one of {', '.join(map(repr, labels))}" if labels else "labels, or train questions to take them from"
            )
            raise QuestionError(f"{where}: {answer!r} is no label of the task, expected {expected}")
