"""CSV and TSV files -> rows by column name; the separator and whether there is a header are found out."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ragtune.corpus.importers.rows import ANSWER_KEYS, DOCUMENT_KEYS, LABEL_KEYS, QUESTION_KEYS
from ragtune.corpus.importers.source import Broken, Ledger, cannot_read, convert_rows
from ragtune.corpus.readers import read_text
from ragtune.errors import InputError

SEPARATOR = "||"
"""Between several answers (or documents) in one cell."""

_DELIMITERS = "\t;,"
_LOOKED_AT = 20
_LISTS = {*ANSWER_KEYS, *LABEL_KEYS, *DOCUMENT_KEYS}

Record = tuple[str, list[str]]


def table_rows(path: Path, ledger: Ledger) -> list[tuple[str, dict[str, Any]]]:
    """The place and the named cells of each row. Cells of answers are lists: parts between `||`, none for `[]`.

    Without a known header a file of two columns holds questions and answers.

    Raises: InputError for a file that is no such table, or naming a row that cannot be read.
    """
    text = _text(path)
    delimiter = _delimiter(text)
    records = list(_records(text, path, delimiter, ledger))
    if not records:
        raise InputError(f"{path} holds no rows; expected a header with question and answer, and rows")
    first_place, first = records[0]
    names = [cell.strip().lower() for cell in first]
    if not _is_header(names):
        if len(first) != 2:
            raise InputError(
                f"{first_place}: columns are {', '.join(map(repr, first))[:200]}; "
                "expected a header with question and answer, or two columns without one"
            )
        names = ["question", "answer"]
        ledger.note("no known header: the first column is the question, the second the answer", first_place)
        rows = records
    else:
        rows = records[1:]
    return list(convert_rows(rows, lambda cells, where: (where, _named(names, cells)), ledger))


def _text(path: Path) -> str:
    try:
        return read_text(path.read_bytes()).text
    except OSError as error:
        raise cannot_read(path, error) from None
    except InputError as refusal:
        raise InputError(f"{path}: {refusal}; expected a CSV or TSV file") from None


def _records(text: str, path: Path, delimiter: str, ledger: Ledger) -> Iterator[Record]:
    """The cells of each record, with the line on which it begins; lines without cells are passed over."""
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        where = f"{path}, line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            ledger.broken(Broken("not valid CSV", str(error)), where)
            continue
        if any(cell.strip() for cell in cells):
            yield where, cells


def _delimiter(text: str) -> str:
    """The separator that makes a known header, else the one that makes the same two or more columns in all rows."""
    best = ","
    for delimiter in _DELIMITERS:
        sample = _sample(text, delimiter)
        widths = {len(cells) for cells in sample}
        if sample and _is_header([cell.strip().lower() for cell in sample[0]]):
            return delimiter
        if len(widths) == 1 and widths.pop() > 1:
            best = delimiter if best == "," else best
    return best


def _sample(text: str, delimiter: str) -> list[list[str]]:
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter)
    rows: list[list[str]] = []
    try:
        for cells in reader:
            rows += [cells] if cells else []
            if len(rows) == _LOOKED_AT:
                break
    except csv.Error:
        return rows
    return rows


def _is_header(names: Sequence[str]) -> bool:
    return bool(set(names) & set(QUESTION_KEYS)) and bool(set(names) & {*ANSWER_KEYS, *LABEL_KEYS})


def _named(names: Sequence[str], cells: Sequence[str]) -> dict[str, Any]:
    if len(cells) != len(names):
        raise Broken("not as many cells as the header", f"{len(cells)}, expected {len(names)}")
    return {name: _parts(cell) if name in _LISTS else cell for name, cell in zip(names, cells, strict=True)}


def _parts(cell: str) -> list[str]:
    return [] if cell.strip() == "[]" else cell.split(SEPARATOR)
