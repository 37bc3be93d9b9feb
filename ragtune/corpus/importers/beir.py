"""A BEIR folder (Thakur et al. 2021): corpus.jsonl, queries.jsonl and judgements in qrels/*.tsv -> retrieval questions.

The queries have no answers, only documents that were judged relevant. So the question becomes which document it is: any
title of a relevant document is accepted, its first line where it has no title, and there stands the evidence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ragtune.corpus.importers.rows import SPLIT_NAMES, document_from_row, identity, scalar, usable_text
from ragtune.corpus.importers.source import (
    About,
    Broken,
    Ledger,
    Quote,
    Source,
    SourceDocument,
    SourceQuestion,
    Unusable,
    cannot_read,
    convert_rows,
    json_lines,
    one_line,
)
from ragtune.errors import InputError
from ragtune.types import Split

INSTRUCTION = "Name the document that deals with this: give its title."
_LONGEST_NAME = 100
Judgements = Mapping[str, tuple[Split, tuple[str, ...]]]


def read_beir(folder: Path, ledger: Ledger) -> Source:
    """The judged queries of a folder; the corpus is read once here, for the titles of the relevant documents.

    Raises: InputError when a file is missing, or naming a broken line.
    """
    relevant = _judgements(folder / "qrels", ledger)
    wanted = {document for _, documents in relevant.values() for document in documents}
    quiet = Ledger(ledger.skip_broken)
    names = {d.id: _name(d) for d in corpus_documents(folder / "corpus.jsonl", quiet) if d.id in wanted}

    unseen = dict.fromkeys(relevant)

    def convert(row: Mapping[str, Any], where: str) -> SourceQuestion:
        query = identity(row.get("_id", row.get("id")))
        unseen.pop(query, None)
        return _question(query, row, where, relevant, names)

    questions = tuple(convert_rows(json_lines(folder / "queries.jsonl", ledger), convert, ledger))
    for query in unseen:
        ledger.skip("a judged query that is not in queries.jsonl", f"{folder / 'qrels'}, query {query}")
    return Source(
        "beir",
        questions,
        lambda ledger: corpus_documents(folder / "corpus.jsonl", ledger),
        About(instruction=INSTRUCTION),
    )


def corpus_documents(path: Path, ledger: Ledger) -> Iterator[SourceDocument]:
    """The documents of a corpus.jsonl, one in memory at a time.

    Raises: InputError when it cannot be read, or naming a broken line.
    """
    return convert_rows(json_lines(path, ledger), document_from_row, ledger)


def _judgements(folder: Path, ledger: Ledger) -> Judgements:
    """Query id -> its split and its relevant documents. A query of two splits belongs to the later one of them."""
    files = {path: SPLIT_NAMES[path.stem.lower()] for path in folder.glob("*.tsv") if path.stem.lower() in SPLIT_NAMES}
    if not files:
        raise InputError(f"{folder} holds no judgements; expected train.tsv, dev.tsv or test.tsv")
    found: dict[str, tuple[Split, tuple[str, ...]]] = {}
    for path in sorted(files, key=lambda path: ("train", "dev", "test").index(files[path])):
        here: dict[str, list[str]] = {}
        for query, document in convert_rows(_lines(path), _judgement, ledger):
            here.setdefault(query, []).append(document)
        for query, documents in here.items():
            if query in found:
                ledger.note("a query of two splits, kept in the later one", f"{path}, query {query}")
            found[query] = files[path], tuple(dict.fromkeys(documents))
    return found


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                cells = line.rstrip("\r\n")
                if cells and not (number == 1 and cells.lower().startswith("query-id")):
                    yield f"{path}, line {number}", cells
    except OSError as error:
        raise cannot_read(path, error) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}); expected tab-separated judgements") from None


def _judgement(line: str, where: str) -> tuple[str, str]:
    cells = line.split("\t")
    if len(cells) != 3:
        raise Broken("not a judgement", f"{len(cells)} cells, expected query-id, corpus-id and score between tabs")
    try:
        score = float(cells[2])
    except ValueError:
        raise Broken("not a judgement", f"score {cells[2]!r} is no number") from None
    if score <= 0:
        raise Unusable("a document judged not relevant")
    return identity(cells[0]), identity(cells[1])


def _question(
    query: str, row: Mapping[str, Any], where: str, relevant: Judgements, names: Mapping[str, str]
) -> SourceQuestion:
    text = usable_text(scalar(row.get("text"), "text"), "query")
    if query not in relevant:
        raise Unusable("a query without relevant documents")
    split, documents = relevant[query]
    known = tuple(document for document in documents if names.get(document))
    if not known:
        raise Unusable("a query whose relevant documents are not in the corpus")
    answers = tuple(dict.fromkeys(names[document] for document in known))
    quotes = tuple(Quote(document, names[document]) for document in known)
    return SourceQuestion(query, text, answers, where, split, known, quotes)


def _name(document: SourceDocument) -> str:
    """A document's title, else its first line, cut after a whole word."""
    if document.title.strip():
        return one_line(document.title)
    line = one_line(document.text.strip().partition("\n")[0])
    return line if len(line) <= _LONGEST_NAME else line[:_LONGEST_NAME].rpartition(" ")[0]
