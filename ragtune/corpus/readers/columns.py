"""The reading order of a PDF page whose columns are drawn line by line across the page.

Most producers write one column after the other, and then the order of the file is right. Some write the lines of all
columns together; here the gutters are found, and the text is put together again column by column. A table looks
much the same, but its cells leave most of a column's width empty, where prose fills it.
"""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pypdfium2 import PdfTextPage

_MIN_JUMPS = 10
_MIN_LINES = 8
_MIN_SHARE = 0.15
"""Least width of a column, as a share of the text's width."""

_MIN_FILL = 0.6
"""Least median width of a column's lines, as a share of its width: prose has about 0.9, cells of a table less."""

_BREAKS = "\r\n\ufffe\u0002"


@dataclass(slots=True)
class _Run:
    """Words on one line with no more than a space between them. Coordinates in points, `bottom` < `top`."""

    text: str
    left: float
    bottom: float
    right: float
    top: float

    @property
    def height(self) -> float:
        return self.top - self.bottom

    def goes_on(self, other: _Run) -> bool:
        """Whether the other one follows on the same line, close by."""
        overlap = min(self.top, other.top) - max(self.bottom, other.bottom)
        same_line = 2 * overlap > min(self.height, other.height)
        return same_line and -1 <= other.left - self.right < max(self.height, other.height)


def in_columns(page: PdfTextPage) -> str:
    """The text of a page column by column where the file's own order mixes columns, else an empty string."""
    if _jumps(page) < _MIN_JUMPS:
        return ""
    runs = list(_runs(page))
    columns = _columns(runs)
    if len(columns) < 2 or not all(_is_prose(runs, *column) for column in columns):
        return ""
    return "\n".join(_in_order(runs, columns))


def _jumps(page: PdfTextPage) -> int:
    """How often the text goes on at the right of where it was, with a gap, instead of below."""
    boxes = [page.get_rect(i) for i in range(page.count_rects())]
    return sum(two[0] > one[2] + 4 and two[3] > one[1] - 12 for one, two in pairwise(boxes))


def _runs(page: PdfTextPage) -> Iterator[_Run]:
    current: _Run | None = None
    for word in _words(page):
        if current is not None and current.goes_on(word) and current.text[-1] not in _BREAKS:
            current.text += f" {word.text}"
            current.left, current.right = min(current.left, word.left), max(current.right, word.right)
            current.bottom, current.top = min(current.bottom, word.bottom), max(current.top, word.top)
            continue
        if current is not None:
            yield current
        current = word
    if current is not None:
        yield current


def _words(page: PdfTextPage) -> Iterator[_Run]:
    """The words in the file's order; a word that a line's end breaks is two, the first of which ends with the mark."""
    from pypdfium2.raw import FPDFText_GetCharBox, FPDFText_GetUnicode

    sides = [ctypes.c_double() for _ in range(4)]
    chars: list[str] = []
    boxes: list[tuple[float, float, float, float]] = []
    for i in range(page.count_chars() + 1):
        char = chr(FPDFText_GetUnicode(page, i) or 32) if i < page.count_chars() else " "
        if not char.isspace():
            chars.append(char)
            if char not in _BREAKS and FPDFText_GetCharBox(page, i, *sides):
                boxes.append((sides[0].value, sides[2].value, sides[1].value, sides[3].value))
        if (char.isspace() or char in _BREAKS) and chars:
            if boxes:
                left, bottom, right, top = zip(*boxes, strict=True)
                yield _Run("".join(chars), min(left), min(bottom), max(right), max(top))
            chars, boxes = [], []


def _columns(runs: Sequence[_Run]) -> list[tuple[float, float]]:
    """The spans (left, right) of columns: gutters are where hardly any line passes."""
    left, right = min(run.left for run in runs), max(run.right for run in runs)
    passing = [0] * (int(right - left) + 1)
    for run in runs:
        for x in range(int(run.left - left), int(run.right - left) + 1):
            passing[x] += 1
    free = statistics.median(passing) / 5
    columns, start = [], None
    for x, count in enumerate([*passing, 0]):
        if count > free and start is None:
            start = x
        elif count <= free and start is not None:
            if x - start < _MIN_SHARE * (right - left):
                return []  # A narrow column is one of a table.
            columns.append((left + start, left + x))
            start = None
    return columns


def _is_prose(runs: Sequence[_Run], left: float, right: float) -> bool:
    lines = _lines([run for run in runs if _middle_in(run, left, right) and not _is_wide(run, left, right)])
    widths = [max(run.right for run in line) - min(run.left for run in line) for line in lines]
    return len(widths) >= _MIN_LINES and statistics.median(widths) >= _MIN_FILL * (right - left)


def _middle_in(run: _Run, left: float, right: float) -> bool:
    return left - 3 <= (run.left + run.right) / 2 <= right + 3


def _is_wide(run: _Run, left: float, right: float) -> bool:
    return run.right - run.left > 1.2 * (right - left)


def _lines(runs: Sequence[_Run]) -> list[list[_Run]]:
    """Runs grouped to lines from top to bottom, each from left to right."""
    lines: list[list[_Run]] = []
    for run in sorted(runs, key=lambda run: -(run.top + run.bottom)):
        middle = (run.top + run.bottom) / 2
        if lines and lines[-1][0].bottom < middle < lines[-1][0].top:
            lines[-1].append(run)
        else:
            lines.append([run])
    return [sorted(line, key=lambda run: run.left) for line in lines]


def _in_order(runs: Sequence[_Run], columns: Sequence[tuple[float, float]]) -> Iterator[str]:
    """Lines over several columns (titles, page heads) part the page into bands; each band goes column by column."""
    band: list[_Run] = []
    for run in sorted(runs, key=lambda run: -run.top):
        if any(run.left < left - 3 and run.right > left + 3 for left, _ in columns[1:]):
            yield from _band(band, columns)
            yield run.text
            band = []
        else:
            band.append(run)
    yield from _band(band, columns)


def _band(band: Sequence[_Run], columns: Sequence[tuple[float, float]]) -> Iterator[str]:
    edges = [float("-inf"), *(left - 3 for left, _ in columns[1:]), float("inf")]
    for left, right in pairwise(edges):
        for line in _lines([run for run in band if left <= run.left < right]):
            yield " ".join(run.text for run in line)
