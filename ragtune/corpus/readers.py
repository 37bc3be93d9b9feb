"""One file's bytes -> its text, title and metadata, by file type; headings come out as Markdown `#` lines.

A reader raises InputError with the reason when a file is well understood but of no use (encrypted, no text).
Whatever else a parser raises is for the caller to report.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING

from ragtune.errors import InputError

if TYPE_CHECKING:
    from bs4 import Tag
    from bs4.element import PageElement
    from docx.document import Document as DocxDocument
    from docx.oxml.xmlchemy import BaseOxmlElement
    from pypdf import PdfReader


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a reader found. `title` is one that stands outside the text (HTML's <title>), else empty."""

    text: str
    title: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


# --- plain text and Markdown -----------------------------------------------------------------------------------------

_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_text(data: bytes) -> Parsed:
    """UTF-8, UTF-16 with its byte order mark, or else the encoding that charset-normalizer finds (in the metadata).

    Raises: InputError for binary data and for text in no known encoding.
    """
    if data.startswith(_WIDE_MARKS):
        return Parsed(data.decode("utf-16"), metadata={"encoding": "utf-16"})
    if b"\0" in data:
        raise InputError("binary (it holds NUL bytes)")
    try:
        return Parsed(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        from charset_normalizer import from_bytes

        matches = list(from_bytes(data))
    if not matches:
        raise InputError("not text in any known encoding")
    # In short texts several encodings look equally good; the detector orders those by name, which reads "£" as "Ł".
    equal = [m for m in matches if (m.chaos, m.coherence) == (matches[0].chaos, matches[0].coherence)]
    best = next((m for m in equal if m.encoding == "cp1252"), matches[0])
    return Parsed(str(best), metadata={"encoding": best.encoding})


# --- HTML ------------------------------------------------------------------------------------------------------------

_DROPPED = {"head", "script", "style", "nav", "header", "footer", "aside", "form", "noscript", "template", "svg"}
_HEADINGS = ["h1", "h2", "h3", "h4", "h5", "h6"]
_BLOCKS = _HEADINGS + re.findall(
    r"\w+",
    "address article blockquote body caption center dd details dialog div dl dt fieldset figcaption figure header "
    "hr html legend li main menu ol p pre section summary table tbody td tfoot th thead tr ul",
)


def read_html(data: bytes) -> Parsed:
    """The text of <main>, or of the only <article>, or of <body>, without navigation, scripts and forms.

    Raises: InputError when no text is left.
    """
    from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning, XMLParsedAsHTMLWarning

    try:
        source: str | bytes = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        if b"\0" in data and not data.startswith(_WIDE_MARKS):
            raise InputError("binary (it holds NUL bytes)") from None
        source = data  # The parser follows the encoding that the file declares.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)
        warnings.simplefilter("ignore", XMLParsedAsHTMLWarning)
        soup = BeautifulSoup(source, "lxml")
    articles = [tag for tag in soup.find_all("article") if tag.find_parent("article") is None]
    root = soup.find("main") or (articles[0] if len(articles) == 1 else soup.body) or soup
    text = "\n\n".join(_html_blocks(root))
    if not text.strip():
        raise InputError("no text in its main, article or body element")
    return Parsed(text, title=" ".join(soup.title.get_text().split()) if soup.title else "")


def _html_blocks(tag: Tag) -> Iterator[str]:
    """The blocks inside a tag: what stands between two block elements is one paragraph."""
    from bs4 import Tag

    inline: list[str] = []
    for child in tag.children:
        if isinstance(child, Tag) and (child.name in _BLOCKS or child.find(_BLOCKS) is not None):
            yield from _paragraph(inline)
            inline = []
            yield from _html_block(child)
        else:
            inline.append(_inline(child))
    yield from _paragraph(inline)


def _html_block(tag: Tag) -> Iterator[str]:
    # Headings inside a list or a table, and tables inside tables, mean that it lays out a page rather than holds data.
    if tag.name == "header" and tag.find_parent(["main", "article", "section"]):
        for heading in tag.find_all(_HEADINGS):
            yield from _html_block(heading)
    elif tag.name in _DROPPED:
        return
    elif tag.name in _HEADINGS:
        title = " ".join(_inline(tag).split())
        yield from [f"{'#' * int(tag.name[1])} {title}"] if title else []
    elif tag.name == "pre":
        code = tag.get_text().strip("\r\n")
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
        yield from [f"{fence}\n{code}\n{fence}"] if code.strip() else []
    elif tag.name in ("ul", "ol", "menu") and not tag.find(_HEADINGS):
        yield from _html_list(tag)
    elif tag.name == "table" and not tag.find([*_HEADINGS, "table", "pre"]):
        yield from _html_table(tag)
    else:
        yield from _html_blocks(tag)


def _html_list(tag: Tag) -> Iterator[str]:
    from bs4 import Tag

    items = []
    for child in tag.children:
        body = "\n".join(_html_block(child) if isinstance(child, Tag) else _paragraph([_inline(child)]))
        if body:
            is_item = isinstance(child, Tag) and child.name == "li"
            items.append(("- " if is_item else "  ") + body.replace("\n", "\n  "))
    yield from ["\n".join(items)] if items else []


def _html_table(tag: Tag) -> Iterator[str]:
    for caption in tag.find_all("caption"):
        yield from _paragraph([_inline(caption)])
    rows = [[" ".join(_inline(cell).split()) for cell in row.find_all(["td", "th"])] for row in tag.find_all("tr")]
    lines = [" | ".join(cells) for cells in rows if any(cells)]
    yield from ["\n".join(lines)] if lines else []


def _inline(node: PageElement) -> str:
    """Text of a node with runs of whitespace as one space; only <br> breaks a line."""
    from bs4 import Tag
    from bs4.element import NavigableString, PreformattedString

    if isinstance(node, Tag):
        if node.name in _DROPPED:
            return ""
        inside = "\n" if node.name == "br" else "".join(map(_inline, node.children))
        return f" {inside} " if node.name in _BLOCKS else inside
    if isinstance(node, NavigableString) and not isinstance(node, PreformattedString):
        return re.sub(r"\s+", " ", node)
    return ""  # A comment or a declaration.


def _paragraph(inline: list[str]) -> Iterator[str]:
    lines = (" ".join(line.split()) for line in "".join(inline).split("\n"))
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    if text:
        yield text


# --- PDF -------------------------------------------------------------------------------------------------------------


def read_pdf(data: bytes) -> Parsed:
    """The text layer, pages joined by a blank line; metadata `pages` is the JSON list of their start offsets.

    Raises: InputError for a file that needs a password and for one without text, such as a scan.
    """
    from pypdf import PdfReader

    logger = logging.getLogger("pypdf")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)  # It warns about every oddity that it can read past.
    try:
        reader = PdfReader(BytesIO(data))
        if reader.is_encrypted and not _opens_without_password(reader):
            raise InputError("encrypted")
        pages = [clean(page.extract_text()).strip() for page in reader.pages]
    finally:
        logger.setLevel(level)
    if not any(pages):
        raise InputError("no text layer (a scan?); run text recognition on it first")
    starts, offset = [], 0
    for page in pages:
        starts.append(offset)
        offset += len(page) + 2
    return Parsed("\n\n".join(pages), metadata={"pages": json.dumps(starts)})


def _opens_without_password(reader: PdfReader) -> bool:
    # Encryption with an empty password only asks readers not to print or copy; public authorities often use it.
    from pypdf.errors import DependencyError

    try:
        return bool(reader.decrypt(""))
    except DependencyError:  # AES needs a package that we do not ask for.
        return False


# --- DOCX ------------------------------------------------------------------------------------------------------------

_MAX_UNPACKED = 200_000_000
_MAX_RATIO = 100
_DOCX_BREAKS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
# Properties hold tab stops, not tabs; deleted and moved text is gone; boxes are read as paragraphs of their own.
_DOCX_NOT_TEXT = frozenset({"pPr", "rPr", "del", "moveFrom", "txbxContent", "Fallback"})


def read_docx(data: bytes) -> Parsed:
    """Paragraphs, lists and tables in the order of the body; heading styles become `#` lines.

    Raises: InputError for a file that unpacks to far more than it is, and for one without text.
    """
    _refuse_zip_bomb(data)
    import docx

    document = docx.Document(BytesIO(data))
    levels = _heading_levels(document)
    parts: list[str] = []
    was_item = False
    for element in _docx_elements(document.element.body):
        text, is_item = _docx_block(element, levels)
        if text:
            parts += ["\n" if is_item and was_item else "\n\n", text]
            was_item = is_item
    if not parts:
        raise InputError("no text")
    return Parsed("".join(parts[1:]))


def _refuse_zip_bomb(data: bytes) -> None:
    with zipfile.ZipFile(BytesIO(data)) as archive:
        members = archive.infolist()
    unpacked, packed = sum(m.file_size for m in members), sum(m.compress_size for m in members)
    if unpacked > _MAX_UNPACKED or unpacked > _MAX_RATIO * packed:
        raise InputError(
            f"unpacks from {packed} to {unpacked} bytes, more than {_MAX_UNPACKED} bytes or {_MAX_RATIO} times its size"
        )


def _local(element: BaseOxmlElement) -> str:
    return str(element.tag).rpartition("}")[2]


def _docx_elements(parent: BaseOxmlElement) -> Iterator[BaseOxmlElement]:
    """Paragraphs and tables in order, those in content controls and text boxes included."""
    for child in parent:
        name = _local(child)
        if name == "tbl":
            yield child
        elif name == "p":
            yield child
            for box in child.xpath('.//w:txbxContent[not(ancestor::*[local-name()="Fallback"])]'):
                yield from _docx_elements(box)
        elif name in ("sdt", "sdtContent", "ins", "customXml"):
            yield from _docx_elements(child)


def _docx_block(element: BaseOxmlElement, levels: Mapping[str, int]) -> tuple[str, bool]:
    """The text of a paragraph or table, and whether it is an item of a list."""
    if _local(element) == "tbl":
        rows = [[_docx_cell(cell) for cell in row.xpath("./w:tc | ./w:sdt//w:tc")] for row in element.xpath("./w:tr")]
        return "\n".join(" | ".join(cells) for cells in rows if any(cells)), False
    text = _docx_text(element).strip()
    style = "".join(element.xpath("./w:pPr/w:pStyle/@w:val"))
    if text and levels.get(style, 0) > 0:
        return f"{'#' * levels[style]} {' '.join(text.split())}", False
    is_item = bool(text) and (style in levels or bool(element.xpath("./w:pPr/w:numPr")))
    return f"- {text}" if is_item else text, is_item


def _docx_cell(cell: BaseOxmlElement) -> str:
    return " ".join(" ".join(_docx_text(paragraph) for paragraph in cell.xpath(".//w:p")).split())


def _docx_text(element: BaseOxmlElement) -> str:
    """Text of a paragraph with links, fields and tracked insertions, which python-docx's own `text` leaves out."""
    parts = []
    for child in element:
        name = _local(child)
        if name == "t":
            parts.append(child.text or "")
        elif name not in _DOCX_NOT_TEXT:
            parts.append(_DOCX_BREAKS.get(name) or _docx_text(child))
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


# --- all -------------------------------------------------------------------------------------------------------------

READERS: Mapping[str, Callable[[bytes], Parsed]] = {
    ".md": read_text,
    ".markdown": read_text,
    ".txt": read_text,
    ".text": read_text,
    ".rst": read_text,
    ".html": read_html,
    ".htm": read_html,
    ".pdf": read_pdf,
    ".docx": read_docx,
}


def clean(text: str) -> str:
    r"""Newlines as `\n`, no NULs, and no halves of UTF-16 pairs (PDF fonts yield them), so that UTF-8 can hold it."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
