"""PDF: the text layer, page by page, in reading order."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from ragtune.corpus.readers.columns import in_columns
from ragtune.corpus.readers.parsed import Parsed, clean, one_line, stated
from ragtune.corpus.readers.slides import join_pages
from ragtune.errors import InputError

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument

_PASSWORD_ERROR = 4  # FPDF_ERR_PASSWORD in fpdfview.h
_BROKEN_WORD = re.compile(r"(\w?)[\ufffe\u0002]\s*(\w?)")
_DATE = re.compile(r"D:(\d{4})(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\d\d)?(?:Z|([+-])(\d\d)'?(\d\d)?)?")
_NO_TITLE = re.compile(r"^(?:\W|untitled|microsoft )|\.\w{2,4}$", re.IGNORECASE)
"""What programs write as a title: names of files and of themselves, `(anonymous)`."""

_FIRSTS = (1980, 1, 1, 0, 0, 0)
"""The first year that is believed, and what parts of a date that are left out stand for."""


def read_pdf(data: bytes) -> Parsed:
    """The text layer, pages joined by a blank line; metadata `pages` is the JSON list of their start offsets.

    Raises: InputError for a file that needs a password, and for one without text, such as a scan.
    """
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if error.err_code == _PASSWORD_ERROR:
            raise InputError("encrypted; save a copy without password") from None
        raise
    with document:
        pages = [_page(document, number) for number in range(len(document))]
        about = document.get_metadata_dict()
    if not any(pages):
        raise InputError("no text layer (a scan?); run text recognition on it first, as with: ocrmypdf FILE FILE")
    empty = [str(number) for number, page in enumerate(pages, 1) if not page]
    warning = f"no text on {len(empty)} of {len(pages)} pages ({_shortened(empty)}); scans need text recognition"
    metadata = stated(
        author=about.get("Author"),
        created=_date(about.get("CreationDate", "")),
        modified=_date(about.get("ModDate", "")),
        warning=warning if empty else "",
    )
    title = one_line(clean(about.get("Title", "")))
    return join_pages(pages, "" if _NO_TITLE.search(title) else title, metadata)


def _page(document: PdfDocument, number: int) -> str:
    page = document[number]
    text_page = page.get_textpage()
    text = in_columns(text_page) or text_page.get_text_range()
    text_page.close()
    page.close()
    return clean(_BROKEN_WORD.sub(_mended, text)).strip()


def _mended(broken: re.Match[str]) -> str:
    """A word that a line's end broke: small letters are joined, around others the hyphen was part of it."""
    before, after = broken.groups()
    return before + ("" if before.islower() and after.islower() else "-") + after


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _date(text: str) -> datetime | None:
    """A date as in ISO 32000-1, section 7.9.4; None for what is none, or before there were PDF files."""
    match = _DATE.match(text)
    if match is None or int(match[1]) < _FIRSTS[0]:
        return None
    year, month, day, hour, minute, second = (
        int(part or first) for part, first in zip(match.groups(), _FIRSTS, strict=False)
    )
    shift = timedelta(hours=int(match[8] or 0), minutes=int(match[9] or 0))
    try:
        zone = timezone(-shift if match[7] == "-" else shift)
        return datetime(year, month, day, hour, minute, second, tzinfo=zone)
    except ValueError:
        return None
