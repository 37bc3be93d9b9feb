"""One file's bytes -> its text, title and metadata, by file type; headings come out as Markdown `#` lines.

A reader raises InputError with the reason when a file is well understood but of no use (encrypted, no text).
Whatever else a parser raises is for the caller to report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ragtune.corpus.readers.data import read_ipynb, read_json, read_jsonl
from ragtune.corpus.readers.epub import read_epub
from ragtune.corpus.readers.html import read_html
from ragtune.corpus.readers.mail import read_eml
from ragtune.corpus.readers.parsed import Parsed, clean
from ragtune.corpus.readers.pdf import read_pdf
from ragtune.corpus.readers.rst import read_rst
from ragtune.corpus.readers.sheets import read_csv, read_xlsx
from ragtune.corpus.readers.slides import read_pptx
from ragtune.corpus.readers.text import LANGUAGES, code_reader, read_text
from ragtune.corpus.readers.word import read_docx
from ragtune.errors import InputError

__all__ = ["MAX_LINE", "PLAIN", "READERS", "Parsed", "clean", "read_file", "read_text", "tidy"]

MAX_LINE = 1_000_000
"""Most characters in a line: longer ones are data, not text, and slow down whatever reads them."""

_MAX_TEXT = 20_000_000

_TEXT: Mapping[str, Callable[[bytes], Parsed]] = {
    **dict.fromkeys((".md", ".markdown", ".txt", ".text"), read_text),
    **{suffix: code_reader(name) for name, suffixes in LANGUAGES.items() for suffix in suffixes.split()},
}

READERS: Mapping[str, Callable[[bytes], Parsed]] = {
    **_TEXT,
    ".rst": read_rst,
    **dict.fromkeys((".html", ".htm", ".xhtml"), read_html),
    ".pdf": read_pdf,
    **dict.fromkeys((".docx", ".docm"), read_docx),
    ".pptx": read_pptx,
    ".xlsx": read_xlsx,
    **dict.fromkeys((".csv", ".tsv"), read_csv),
    ".epub": read_epub,
    ".eml": read_eml,
    ".ipynb": read_ipynb,
    ".json": read_json,
    **dict.fromkeys((".jsonl", ".ndjson"), read_jsonl),
}
"""Suffix -> reader."""

PLAIN = frozenset(_TEXT)
"""Suffixes of text that only has to be decoded."""


def read_file(path: Path, max_bytes: int) -> Parsed:
    """Read a file by its suffix, which must be one of `READERS`; the text is tidy.

    Raises: InputError for a file that is empty, larger than `max_bytes`, or of no use; whatever a parser raises.
    """
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise InputError(f"more than the limit of {max_bytes} bytes")
    return tidy(READERS[path.suffix.lower()](data))


def tidy(parsed: Parsed) -> Parsed:
    """Text and title cleaned.

    Raises: InputError for a text that is nothing but white space, or too long, or has a line that is too long.
    """
    text = clean(parsed.text)
    if not text.strip():
        raise InputError("empty (nothing but whitespace)")
    if len(text) > _MAX_TEXT:
        raise InputError(f"a text of {len(text)} characters, more than the limit of {_MAX_TEXT}")
    longest = max(map(len, text.split("\n")))
    if longest > MAX_LINE:
        raise InputError(f"a line of {longest} characters, more than the limit of {MAX_LINE}")
    return Parsed(text, clean(parsed.title), parsed.metadata)
