"""Word documents: paragraphs, lists and tables in the order of the body."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import TYPE_CHECKING

from ragtune.corpus.readers.parsed import Parsed, one_line, open_zip, stated, table
from ragtune.errors import InputError

if TYPE_CHECKING:
    from docx.document import Document as DocxDocument
    from docx.oxml.xmlchemy import BaseOxmlElement

_STRICT = b"http://purl.oclc.org/ooxml/"
"""Begins the namespaces of ISO/IEC 29500 Strict."""

_BREAKS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
# Properties hold tab stops, not tabs; deleted and moved text is gone; boxes are read as paragraphs of their own.
_NOT_TEXT = frozenset({"pPr", "rPr", "del", "moveFrom", "txbxContent", "Fallback"})


def read_docx(data: bytes) -> Parsed:
    """Paragraphs, lists and tables in the order of the body; heading styles become `#` lines.

    Footnotes, comments and equations are not read.

    Raises: InputError for a file that unpacks to far more than it is, one of the Strict kind, and one without text.
    """
    with open_zip(data) as archive:
        if _STRICT in archive.read("_rels/.rels"):
            raise InputError("Strict Open XML, which cannot be read; save it as an ordinary Word document (.docx)")
    import docx

    document = docx.Document(BytesIO(data))
    levels = _heading_levels(document)
    parts: list[str] = []
    was_item = False
    for element in _elements(document.element.body):
        text, is_item = _block(element, levels)
        if text:
            parts += ["\n" if is_item and was_item else "\n\n", text]
            was_item = is_item
    if not parts:
        raise InputError("no text")
    about = document.core_properties
    dates = stated(author=about.author, created=about.created, modified=about.modified, language=about.language)
    return Parsed("".join(parts[1:]), one_line(about.title), dates)


def _local(element: BaseOxmlElement) -> str:
    return str(element.tag).rpartition("}")[2]


def _elements(parent: BaseOxmlElement) -> Iterator[BaseOxmlElement]:
    """Paragraphs and tables in order, those in content controls and text boxes included."""
    for child in parent:
        name = _local(child)
        if name == "tbl":
            yield child
        elif name == "p":
            yield child
            for box in child.xpath('.//w:txbxContent[not(ancestor::*[local-name()="Fallback"])]'):
                yield from _elements(box)
        elif name in ("sdt", "sdtContent", "ins", "customXml"):
            yield from _elements(child)


def _block(element: BaseOxmlElement, levels: Mapping[str, int]) -> tuple[str, bool]:
    """The text of a paragraph or table, and whether it is an item of a list."""
    if _local(element) == "tbl":
        rows = [[_cell(cell) for cell in row.xpath("./w:tc | ./w:sdt//w:tc")] for row in element.xpath("./w:tr")]
        return table(rows), False
    text = _text(element).strip()
    style = "".join(element.xpath("./w:pPr/w:pStyle/@w:val"))
    if text and levels.get(style, 0) > 0:
        return f"{'#' * levels[style]} {one_line(text)}", False
    is_item = bool(text) and (style in levels or bool(element.xpath("./w:pPr/w:numPr")))
    return f"- {text}" if is_item else text, is_item


def _cell(cell: BaseOxmlElement) -> str:
    return " ".join(" ".join(_text(paragraph) for paragraph in cell.xpath(".//w:p")).split())


def _text(element: BaseOxmlElement) -> str:
    """Text of a paragraph with links, fields and tracked insertions, which python-docx's own `text` leaves out."""
    parts = []
    for child in element:
        name = _local(child)
        if name == "t":
            parts.append(child.text or "")
        elif name not in _NOT_TEXT:
            parts.append(_BREAKS.get(name) or _text(child))
    return "".join(parts)


def _heading_levels(document: DocxDocument) -> dict[str, int]:
    """Style id -> heading level, 0 for list styles. Below a title (level 1) the headings begin at level 2."""
    from docx.styles.style import ParagraphStyle

    names: dict[str, list[str]] = {}
    for style in document.styles:
        if isinstance(style, ParagraphStyle):
            # The chain of styles that it builds on; hostile files hold loops.
            chain, ancestor = [style.name or ""], style.base_style
            while ancestor is not None and len(chain) < 10:
                chain.append(ancestor.name or "")
                ancestor = ancestor.base_style
            names[style.style_id] = chain
    titles = {style for style, chain in names.items() if "Title" in chain}
    used = set(document.element.body.xpath(".//w:pStyle/@w:val"))
    shift = 1 if titles & used else 0
    levels = dict.fromkeys(titles, 1)
    for style, chain in names.items():
        heading = re.search(r"^heading ([1-9])$", "\n".join(chain), re.IGNORECASE | re.MULTILINE)
        if heading:
            levels[style] = min(6, int(heading[1]) + shift)
        elif chain[0].startswith("List") and chain[0] != "List Paragraph":
            levels[style] = 0
    return levels
