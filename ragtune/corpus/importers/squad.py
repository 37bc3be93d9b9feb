"""SQuAD JSON, versions 1.1 and 2.0 (Rajpurkar et al. 2016 and 2018) -> paragraphs as documents, and questions.

`answer_start` counts characters in the paragraph. A question with `is_impossible` has no answer; its
`plausible_answers` are wrong ones and are not read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ragtune.corpus.importers.rows import identity, scalar, usable_answers, usable_text
from ragtune.corpus.importers.source import (
    Broken,
    Ledger,
    Quote,
    Source,
    SourceDocument,
    SourceQuestion,
    Unusable,
    broken_type,
    convert_rows,
    one_line,
    read_json_file,
)
from ragtune.errors import InputError
from ragtune.types import Split

SplitFile = tuple[Path, Split | None]


def read_squad(files: Sequence[SplitFile], ledger: Ledger) -> Source:
    """All questions of the files; a paragraph that several files hold is one document.

    Raises: InputError when a file is no SQuAD JSON, or naming the place of a broken part.
    """
    documents: dict[tuple[str, str], SourceDocument] = {}
    numbers: Counter[str] = Counter()
    questions: list[SourceQuestion] = []
    for path, split in files:
        value = read_json_file(path)
        if not isinstance(value, dict) or not isinstance(value.get("data"), list):
            raise InputError(f"{path} is no SQuAD JSON; expected an object with a list `data`")
        articles = ((f"{path}, data[{i}]", article) for i, article in enumerate(value["data"]))
        for where, title, paragraphs in convert_rows(articles, _article, ledger):
            rows = ((f"{where}.paragraphs[{i}]", paragraph) for i, paragraph in enumerate(paragraphs))
            for place, context, asked in convert_rows(rows, _paragraph, ledger):
                document = documents.get((title, context))
                if document is None:
                    number = numbers[title]
                    numbers[title] += 1
                    name = re.sub(r"\s+", "_", title) or "document"
                    document = SourceDocument(f"{name}-{number:03}", title, context, place)
                    documents[title, context] = document
                questions += _questions(asked, place, document.id, split, ledger)
    return Source("squad", tuple(questions), lambda _: documents.values())


def _article(article: object, where: str) -> tuple[str, str, list[Any]]:
    paragraphs = _part(article, "paragraphs", list)
    title = article.get("title") if isinstance(article, dict) else None
    return where, one_line(title.replace("_", " ")) if isinstance(title, str) else "", paragraphs


def _paragraph(paragraph: object, where: str) -> tuple[str, str, list[Any]]:
    return where, _part(paragraph, "context", str), _part(paragraph, "qas", list)


def _questions(
    asked: list[Any], where: str, document: str, split: Split | None, ledger: Ledger
) -> Iterator[SourceQuestion]:
    def convert(item: object, place: str) -> SourceQuestion:
        return _question(item, place, document, split)

    return convert_rows(((f"{where}.qas[{i}]", item) for i, item in enumerate(asked)), convert, ledger)


def _question(item: object, where: str, document: str, split: Split | None) -> SourceQuestion:
    text = usable_text(scalar(_part(item, "question", str), "question"), "question")
    answers: list[tuple[str, int]] = []
    if not _get(item, "is_impossible"):
        answers = [_answer(answer) for answer in _part(item, "answers", list)]
        if not answers:
            raise Unusable("no answer, and not marked with is_impossible")
    accepted = usable_answers([words for words, _ in answers])
    quotes = tuple(Quote(document, words, start, start + len(words)) for words, start in answers[:1] if start >= 0)
    return SourceQuestion(
        identity(_get(item, "id")),
        text,
        accepted,
        where,
        split,
        (document,),
        quotes,
    )


def _answer(answer: object) -> tuple[str, int]:
    words, start = _part(answer, "text", str), _get(answer, "answer_start")
    return words, start if type(start) is int else -1


def _part(value: object, key: str, expected: type) -> Any:
    part = _get(value, key)
    if part is None:
        raise Broken(f"no {key}")
    if not isinstance(part, expected):
        broken_type(key, part, "a list" if expected is list else "text")
    return part


def _get(value: object, key: str) -> Any:
    if not isinstance(value, dict):
        raise Broken("not a JSON object", f"a {type(value).__name__}")
    return value.get(key)
