"""EPUB books: the chapters in reading order."""

from __future__ import annotations

import posixpath
import zipfile
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from ragtune.corpus.readers.html import read_html
from ragtune.corpus.readers.parsed import Parsed, one_line, open_zip, stated
from ragtune.errors import InputError

if TYPE_CHECKING:
    from lxml.etree import _Element

_CONTAINER = "META-INF/container.xml"
_PAGES = {"application/xhtml+xml", "text/html"}


def read_epub(data: bytes) -> Parsed:
    """The HTML files of the book's spine (EPUB 3.3, section 5.7), joined; members are read in memory, never unpacked.

    Raises: InputError for a file that unpacks to far more than it is, one that is encrypted, and one without text.
    """
    with open_zip(data) as archive:
        if "META-INF/encryption.xml" in archive.namelist() and "META-INF/rights.xml" in archive.namelist():
            raise InputError("encrypted (digital rights management)")
        place = _xml(archive, _CONTAINER).xpath("string(//*[local-name()='rootfile']/@full-path)")
        package = _xml(archive, str(place))
        chapters = [text for name in _spine(package, str(place)) if (text := _chapter(archive, name))]
    if not chapters:
        raise InputError("no text")
    title, author, created, language = (
        one_line(str(package.xpath(f"string(//*[local-name()='metadata']/*[local-name()='{name}'])")))
        for name in ("title", "creator", "date", "language")
    )
    return Parsed("\n\n".join(chapters), title, stated(author=author, created=created, language=language))


def _xml(archive: zipfile.ZipFile, name: str) -> _Element:
    """An XML member, read without entities, network and huge trees."""
    from lxml import etree

    if name not in archive.namelist():
        raise InputError(f"no {name or 'package document'} in it, so it is no EPUB book")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False, load_dtd=False)
    return etree.fromstring(archive.read(name), parser)


def _spine(package: _Element, place: str) -> list[str]:
    """The names of the members that are read in order; the table of contents is none of them."""
    items: Any = package.xpath("//*[local-name()='manifest']/*[local-name()='item']")
    pages = {
        item.get("id"): posixpath.normpath(posixpath.join(posixpath.dirname(place), unquote(item.get("href", ""))))
        for item in items
        if item.get("media-type") in _PAGES and "nav" not in item.get("properties", "").split()
    }
    references: Any = package.xpath("//*[local-name()='spine']/*[local-name()='itemref']/@idref")
    return [pages[str(reference)] for reference in references if str(reference) in pages]


def _chapter(archive: zipfile.ZipFile, name: str) -> str:
    """A chapter's text; empty for a page of pictures. Raises: InputError when the member is missing."""
    if name not in archive.namelist():
        raise InputError(f"its chapter {name} is missing")
    try:
        return read_html(archive.read(name)).text
    except InputError:
        return ""
