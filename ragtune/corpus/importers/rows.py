"""One row of a JSONL or CSV file -> a question: the keys that people use, and evidence in its three spellings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ragtune.corpus.importers.source import (
    Broken,
    Quote,
    SourceDocument,
    SourceQuestion,
    Unusable,
    broken_type,
    one_line,
)
from ragtune.corpus.readers import clean
from ragtune.types import Split

QUESTION_KEYS = ("question", "query", "prompt", "input", "text", "message")
ANSWER_KEYS = ("answers", "answer", "output", "completion", "response")
LABEL_KEYS = ("labels", "label", "intent", "category")
DOCUMENT_KEYS = ("doc_ids", "document")
_ID_KEYS = ("id", "_id")
_BLANK: tuple[object, ...] = (None, "", [], [""])
SPLIT_NAMES: Mapping[str, Split] = {
    "train": "train",
    "dev": "dev",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "test": "test",
}

Contexts = dict[tuple[str, str], SourceDocument]
"""Documents that came in rows, by title and text."""


def question_from_row(row: Mapping[str, Any], where: str, split: Split | None, contexts: Contexts) -> SourceQuestion:
    """The question in a row; `split` is that of its file. A document in the row itself (`context`) joins `contexts`.

    Raises: Broken when a key is missing or of the wrong type; Unusable when question or answers are blank.
    """
    text = scalar(_need(row, QUESTION_KEYS, "question"), "question")
    answers, starts = _answers(_need(row, (*ANSWER_KEYS, *LABEL_KEYS), "answers"))
    if row.get("is_impossible") is True:
        answers, starts = (), ()
    documents = _documents(row, where, contexts)
    return SourceQuestion(
        id=_id(row),
        text=usable_text(text, "question"),
        answers=usable_answers(answers),
        where=where,
        split=_split(row, split),
        documents=documents,
        quotes=(*_stated(row), *_from_offsets(row, answers, starts, documents)),
        is_label=bool(answers) and any(_list(row.get(key)) == list(answers) for key in LABEL_KEYS),
    )


def document_from_row(row: Mapping[str, Any], where: str) -> SourceDocument:
    """The document in a row of `corpus.jsonl`: id (or _id), text, and where given title and source.

    Raises: Broken when a key is missing or of the wrong type.
    """
    document_id = _id(row)
    if not document_id:
        raise Broken("document without id", f"keys are {', '.join(row)}")
    text, title = row.get("text"), row.get("title") or ""
    if not isinstance(text, str):
        broken_type("text", text, "text")
    if not isinstance(title, str):
        broken_type("title", title, "text")
    origin = row.get("source")
    return SourceDocument(document_id, title, text, where, one_line(origin) if isinstance(origin, str) else "")


def scalar(value: object, key: str) -> str:
    """The text of a JSON string, number or boolean.

    Raises: Broken for a list, an object or null.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)):
        return json.dumps(value)
    broken_type(key, value, "text")


def usable_text(text: str, what: str) -> str:
    """The text in clean characters, without outer white space.

    Raises: Unusable when nothing is left.
    """
    text = clean(text).strip()
    if not text:
        raise Unusable(f"the {what} is empty")
    return text


def usable_answers(answers: Sequence[str]) -> tuple[str, ...]:
    """The answers in clean characters, without repetitions and blank ones; none at all stay none.

    Raises: Unusable when all of them are blank, since that says neither what is right nor that nothing is.
    """
    kept = tuple(dict.fromkeys(text for answer in answers if (text := clean(answer).strip())))
    if answers and not kept:
        raise Unusable("the answer is empty ([] would mean that the documents do not say)")
    return kept


def identity(value: object) -> str:
    """The id in a JSON string or number; empty for null, where one is to be made.

    Raises: Broken for anything else.
    """
    return "" if value is None else clean(scalar(value, "id")).strip()


def _need(row: Mapping[str, Any], keys: Iterable[str], what: str) -> Any:
    for key in keys:
        if row.get(key) is not None:
            return row[key]
    raise Broken(f"no {what}", f"keys are {', '.join(map(str, row))}; expected one of {', '.join(keys)}")


def _id(row: Mapping[str, Any]) -> str:
    return identity(next((row[key] for key in _ID_KEYS if row.get(key) is not None), None))


def _split(row: Mapping[str, Any], split: Split | None) -> Split | None:
    stated = row.get("split")
    if stated is None or stated == "":
        return split
    if not isinstance(stated, str) or stated.lower() not in SPLIT_NAMES:
        raise Broken("unknown split", f"{stated!r}, expected one of {', '.join(SPLIT_NAMES)}")
    return SPLIT_NAMES[stated.lower()]


def _answers(value: object) -> tuple[tuple[str, ...], tuple[object, ...]]:
    """Accepted answers, and their offsets where they come as `{"text": [...], "answer_start": [...]}`."""
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        starts = value.get("answer_start")
        texts = tuple(scalar(text, "answer") for text in value["text"])
        return texts, tuple(starts) if isinstance(starts, list) else ()
    return tuple(_answer(item) for item in _list(value)), ()


def _answer(value: object) -> str:
    """An answer; one that is an object stands for its JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else scalar(value, "answer")


def _documents(row: Mapping[str, Any], where: str, contexts: Contexts) -> tuple[str, ...]:
    context = row.get("context")
    if context not in _BLANK:
        if not isinstance(context, str):
            broken_type("context", context, "text")
        title = row.get("title")
        title = title if isinstance(title, str) else ""
        document = SourceDocument(f"context-{len(contexts) + 1:04}", title, context, where)
        return (contexts.setdefault((title, context), document).id,)
    value: object = next((row[key] for key in DOCUMENT_KEYS if row.get(key) not in _BLANK), [])
    return tuple(dict.fromkeys(identity(item) for item in _list(value)))


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _stated(row: Mapping[str, Any]) -> tuple[Quote, ...]:
    """Evidence in our own spelling: `[{"document": ..., "text": ..., "start": ..., "end": ...}]`."""
    evidence = row.get("evidence") or []
    if not isinstance(evidence, list):
        broken_type("evidence", evidence, "a list")
    return tuple(_quote(item) for item in evidence)


def _quote(item: object) -> Quote:
    if not isinstance(item, Mapping) or not {"document", "text"} <= item.keys():
        raise Broken("evidence without document and text", f"{item!r:.60}")
    start, end = item.get("start", -1), item.get("end", -1)
    if type(start) is not int or type(end) is not int:
        raise Broken("evidence with offsets that are no whole numbers", f"{start!r} and {end!r}")
    return Quote(identity(item["document"]), scalar(item["text"], "evidence"), start, end)


def _from_offsets(
    row: Mapping[str, Any], answers: Sequence[str], starts: Sequence[object], documents: Sequence[str]
) -> tuple[Quote, ...]:
    """Evidence as offsets in the only gold document: `spans` of [start, end], or where the first answer starts."""
    if len(documents) != 1:
        return ()
    spans = row.get("spans") or []
    if not isinstance(spans, list) or not all(_is_span(span) for span in spans):
        raise Broken("spans are not pairs of whole numbers", f"{spans!r:.60}")
    if spans:
        texts = answers if len(spans) == len(answers) else [""] * len(spans)
        return tuple(Quote(documents[0], text, *span) for text, span in zip(texts, spans, strict=True))
    start = row.get("answer_start", starts[0] if starts else None)
    if type(start) is not int or not answers:
        return ()
    return (Quote(documents[0], answers[0], start, start + len(answers[0])),)


def _is_span(span: object) -> bool:
    return isinstance(span, list) and len(span) == 2 and all(type(offset) is int for offset in span)
