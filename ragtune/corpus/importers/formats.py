"""A file or folder -> what format it is, and the source in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from ragtune.corpus.importers.beir import corpus_documents, read_beir
from ragtune.corpus.importers.chat import read_chat
from ragtune.corpus.importers.rows import SPLIT_NAMES, Contexts, question_from_row
from ragtune.corpus.importers.shape import TEXT_WORDS
from ragtune.corpus.importers.source import (
    About,
    Format,
    Ledger,
    Quote,
    Source,
    SourceDocument,
    SourceQuestion,
    convert_rows,
    json_lines,
    one_line,
    read_json_file,
)
from ragtune.corpus.importers.squad import SplitFile, read_squad
from ragtune.corpus.importers.tables import table_rows
from ragtune.corpus.readers import clean
from ragtune.errors import InputError
from ragtune.types import Split

_TABLES = (".csv", ".tsv")
_SUFFIXES = (".jsonl", ".json", *_TABLES)
_SPLIT_FILE = re.compile(rf"({'|'.join(sorted(SPLIT_NAMES, key=len, reverse=True))})(?![a-z])", re.IGNORECASE)


def read_source(path: Path, format: Format | None, ledger: Ledger) -> Source:
    """Read a file, or a folder of train, dev and test files; without a format, the one that it looks like.

    Raises: InputError when there is nothing to read, or it is not what it should be, naming file and line.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; name a file or folder of questions")
    format = format or detect_format(path)
    if format == "beir":
        return read_beir(path, ledger)
    files = _files(path, ledger)
    if format == "squad":
        source = read_squad(files, ledger)
    elif format == "chat":
        source = read_chat(files, ledger)
    else:
        source = _read_rows(files, format, ledger)
    return _with_folder(source, path) if path.is_dir() else source


def detect_format(path: Path) -> Format:
    """The format that a file or folder looks like, from names and first lines.

    Raises: InputError when it looks like none.
    """
    if path.is_dir():
        if (path / "queries.jsonl").exists() and (path / "qrels").is_dir():
            return "beir"
        return detect_format(_files(path, Ledger())[0][0])
    suffix = path.suffix.lower()
    if suffix in _TABLES:
        return "faq" if _looks_like_faq(path) else "csv"
    if suffix == ".json":
        value = read_json_file(path)
        return "squad" if isinstance(value, dict) and "data" in value else "jsonl"
    if suffix == ".jsonl":
        first = next(json_lines(path, Ledger(skip_broken=True)), ("", {}))[1]
        return "chat" if "messages" in first else "jsonl"
    raise InputError(f"{path} is of no known type; expected a {', '.join(_SUFFIXES)} file or a folder of them")


def _looks_like_faq(path: Path) -> bool:
    """Two columns, and answers that are texts and hardly ever repeat."""
    rows = [row for _, row in table_rows(path, Ledger(skip_broken=True))]
    answers = [" ".join(row["answer"]) for row in rows if set(row) == {"question", "answer"}]
    if not answers or len(answers) < len(rows):
        return False
    return median(len(answer.split()) for answer in answers) > TEXT_WORDS and len(set(answers)) >= 0.9 * len(answers)


def _files(path: Path, ledger: Ledger) -> list[SplitFile]:
    """The files to read, each with the split that its name states; a single file states none."""
    if path.is_file():
        return [(path, None)]
    found: dict[Split, Path] = {}
    # The plain name comes first: test.jsonl rather than test_full.jsonl.
    for file in sorted(path.iterdir(), key=lambda file: (len(file.name), file.name)):
        name = _SPLIT_FILE.match(file.name)
        if not name or not file.is_file() or file.suffix.lower() not in _SUFFIXES:
            continue
        split = SPLIT_NAMES[name[1].lower()]
        if split in found:
            ledger.skip(f"file {file.name}, since {found[split].name} is the {split} split", str(file))
        else:
            found[split] = file
    if not found:
        raise InputError(
            f"{path} is not a source that can be read; expected train, dev or test files ({', '.join(_SUFFIXES)}), "
            "or a BEIR folder with queries.jsonl, corpus.jsonl and qrels"
        )
    return [(found[split], split) for split in ("train", "dev", "test") if split in found]


def _read_rows(files: Sequence[SplitFile], format: Format, ledger: Ledger) -> Source:
    contexts: Contexts = {}
    questions: list[SourceQuestion] = []
    for path, split in files:

        def convert(row: Mapping[str, Any], where: str, split: Split | None = split) -> SourceQuestion:
            return question_from_row(row, where, split, contexts)

        questions += convert_rows(_rows(path, format, ledger), convert, ledger)
    if format == "faq":
        return _answers_as_documents(questions)
    return Source(format, tuple(questions), lambda _: contexts.values())


def _rows(path: Path, format: Format, ledger: Ledger) -> Iterable[tuple[str, dict[str, Any]]]:
    suffix = path.suffix.lower()
    if format == "csv" or (format == "faq" and suffix not in (".json", ".jsonl")):
        return table_rows(path, ledger)
    return _json_items(path) if suffix == ".json" else json_lines(path, ledger)


def _json_items(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    value = read_json_file(path)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InputError(f"{path}: expected a list of objects with question and answer, or SQuAD JSON")
    return ((f"{path}, item {number}", item) for number, item in enumerate(value, 1))


def _answers_as_documents(questions: Sequence[SourceQuestion]) -> Source:
    """A FAQ's answers are its knowledge: each distinct one becomes a document, without the question's words."""
    documents: dict[str, SourceDocument] = {}
    asked = []
    for question in questions:
        for answer in question.answers:
            if answer not in documents:
                documents[answer] = SourceDocument(f"answer-{len(documents) + 1:04}", "", answer, question.where)
        ids = tuple(documents[answer].id for answer in question.answers)
        quotes = tuple(Quote(documents[answer].id, answer, 0, len(answer)) for answer in question.answers)
        asked.append(replace(question, documents=ids, quotes=quotes))
    return Source("faq", tuple(asked), lambda _: documents.values())


def _with_folder(source: Source, folder: Path) -> Source:
    """Add what a folder may hold beside its questions: corpus.jsonl and meta.json."""
    corpus = folder / "corpus.jsonl"
    if corpus.exists():
        inline = source.documents

        def documents(ledger: Ledger) -> Iterator[SourceDocument]:
            yield from inline(ledger)
            yield from corpus_documents(corpus, ledger)

        source = replace(source, documents=documents)
    meta = folder / "meta.json"
    return replace(source, about=_about(read_json_file(meta), source.about)) if meta.exists() else source


def _about(meta: Any, about: About) -> About:
    def text(*keys: str) -> str:
        values = (meta.get(key) for key in keys)
        return next((one_line(value) for value in values if isinstance(value, str)), "")

    if not isinstance(meta, dict):
        return about
    listed = meta.get("labels")
    labels = [clean(label).strip() for label in listed if isinstance(label, str)] if isinstance(listed, list) else []
    return About(
        title=text("title", "name"),
        licence=text("licence", "license"),
        instruction=about.instruction or text("instruction"),
        labels=tuple(label for label in labels if label),
    )
