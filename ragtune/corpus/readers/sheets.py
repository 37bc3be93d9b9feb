"""Tables: CSV files and Excel workbooks, a row a line."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, time
from io import BytesIO
from typing import Any

from ragtune.corpus.readers.parsed import Parsed, one_line, open_zip, stated, table
from ragtune.corpus.readers.text import read_text
from ragtune.errors import InputError

_DELIMITERS = ",;\t|"
_LOOKED_AT = 20


def read_csv(data: bytes) -> Parsed:
    """The rows as lines with ` | ` between the cells, whatever the delimiter (comma, semicolon, tab, bar)."""
    parsed = read_text(data)
    csv.field_size_limit(len(parsed.text) + 1)
    lines = parsed.text.splitlines(keepends=True)
    return Parsed(table(csv.reader(lines, delimiter=_delimiter(lines))), metadata=parsed.metadata)


def _delimiter(lines: Sequence[str]) -> str:
    """The one that cuts most of the first rows into the same number of cells, at least two."""
    first = list(itertools.islice((line for line in lines if line.strip()), _LOOKED_AT))

    def alike(delimiter: str) -> tuple[int, int]:
        widths = Counter(len(row) for row in csv.reader(first, delimiter=delimiter) if len(row) > 1)
        width, rows = widths.most_common(1)[0] if widths else (0, 0)
        return rows, width

    return max(_DELIMITERS, key=alike)


def read_xlsx(data: bytes) -> Parsed:
    """A section a sheet; values as they were last calculated, dates in ISO 8601, hidden sheets left out.

    Raises: InputError for a file that unpacks to far more than it is, and for one without values.
    """
    open_zip(data)
    from openpyxl import load_workbook

    book = load_workbook(BytesIO(data), read_only=True, data_only=True, keep_links=False)
    sections = []
    for sheet in book.worksheets:
        if sheet.sheet_state == "visible":
            sheet.reset_dimensions()  # what a file declares may be a million times what it holds
            text = "\n\n".join(_tables(sheet.iter_rows(values_only=True)))
            sections += [f"## {one_line(sheet.title)}\n\n{text}"] if text else []
    if not sections:
        raise InputError("no values in its sheets")
    about = book.properties
    metadata = stated(author=about.creator, created=about.created, modified=about.modified)
    return Parsed("\n\n".join(sections), one_line(about.title or ""), metadata)


def _tables(rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """The tables of a sheet: runs of rows without an empty row."""
    filled = ([_cell(value) for value in row] for row in rows)
    for has_text, run in itertools.groupby(filled, key=any):
        if has_text:
            run_rows = list(run)
            first = min(next(i for i, cell in enumerate(row) if cell) for row in run_rows)
            last = max(len(row) - next(i for i, cell in enumerate(reversed(row)) if cell) for row in run_rows)
            yield table(row[first:last] for row in run_rows)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.15g}"  # as Excel shows it: 0.1 + 0.2 is 0.3
    if isinstance(value, datetime) and value.time() == time():
        value = value.date()
    return value.isoformat() if isinstance(value, date | time) else one_line(str(value))
