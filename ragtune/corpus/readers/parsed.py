"""What a reader gives, and the helpers that several readers share."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from io import BytesIO

from ragtune.errors import InputError

_MAX_UNPACKED = 200_000_000
_MAX_RATIO = 100
_MAX_MEMBERS = 10_000


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a reader found. `title` is one that stands outside the text (HTML's <title>), else empty.

    Keys of `metadata`, where a file states them: `author`, `created` and `modified` (ISO 8601), `language`, `encoding`
    (of text that is not UTF-8), `pages` (JSON list of the offsets where pages or slides start) and `warning` (what of
    the file could not be read).
    """

    text: str
    title: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


def clean(text: str) -> str:
    r"""Newlines as `\n`, no NULs, and no halves of UTF-16 pairs (PDF fonts yield them), so that UTF-8 can hold it."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def one_line(text: str) -> str:
    """The text with each run of white space as one space."""
    return " ".join(text.split())


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows as lines with ` | ` between the cells; rows without text are left out."""
    lines = (" | ".join(map(one_line, cells)) for cells in rows if any(cell.strip() for cell in cells))
    return "\n".join(lines)


def fence(code: str, language: str = "") -> str:
    """The code between fences that are longer than any run of backquotes in it."""
    longest = run = 0
    for char in code:
        run = run + 1 if char == "`" else 0
        longest = max(longest, run)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{code}\n{marks}"


def stated(**values: object) -> dict[str, str]:
    """Metadata of what a file states: dates in ISO 8601, texts on one line, nothing for what is missing or empty."""
    found = {}
    for name, value in values.items():
        text = value.isoformat() if isinstance(value, date | datetime) else one_line(clean(str(value or "")))
        if text:
            found[name] = text
    return found


def open_zip(data: bytes) -> zipfile.ZipFile:
    """The archive, of which nothing is unpacked yet.

    Raises: InputError for one that unpacks to far more than it is; zipfile.BadZipFile for what is no archive.
    """
    archive = zipfile.ZipFile(BytesIO(data))
    members = archive.infolist()
    unpacked, packed = sum(m.file_size for m in members), sum(m.compress_size for m in members)
    if unpacked > _MAX_UNPACKED or unpacked > _MAX_RATIO * packed:
        raise InputError(
            f"unpacks from {packed} to {unpacked} bytes, more than {_MAX_UNPACKED} bytes or {_MAX_RATIO} times its size"
        )
    if len(members) > _MAX_MEMBERS:
        raise InputError(f"an archive of {len(members)} files, more than {_MAX_MEMBERS}")
    return archive
