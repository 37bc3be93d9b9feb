"""HTML: the main text of a page, without its menus."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ragtune.corpus.readers.parsed import Parsed, fence, one_line, stated, table
from ragtune.corpus.readers.text import WIDE_MARKS
from ragtune.errors import InputError

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag
    from bs4.element import PageElement

_DROPPED = {"head", "script", "style", "nav", "header", "footer", "aside", "form", "noscript", "template", "svg"}
_HEADINGS = ["h1", "h2", "h3", "h4", "h5", "h6"]
_BLOCKS = _HEADINGS + re.findall(
    r"\w+",
    "address article blockquote body caption center dd details dialog div dl dt fieldset figcaption figure header "
    "hr html legend li main menu ol p pre section summary table tbody td tfoot th thead tr ul",
)
_OTHER_ROLES = {"navigation", "banner", "contentinfo", "complementary", "search", "menu", "menubar", "toolbar"}
"""ARIA landmark roles that stand for <nav>, <header>, <footer>, <aside> and forms."""

_MENU_NAMES = {"nav", "navbar", "navbox", "navigation", "menu", "sidebar", "breadcrumb", "breadcrumbs", "toc", "footer"}
_EDIT_LINKS = {"mw-editsection", "headerlink"}
"""Marks beside headings in MediaWiki's and Sphinx's pages: `[edit]` and a pilcrow."""

_DATES = {"created": "article:published_time date dc.date dcterms.created", "modified": "article:modified_time"}


def read_html(data: bytes) -> Parsed:
    """The text of <main>, or of the only <article>, or of <body>, without navigation, scripts and forms.

    Raises: InputError when no text is left.
    """
    soup = _parse(data)
    articles = [tag for tag in soup.find_all("article") if tag.find_parent("article") is None]
    main = soup.find("main") or soup.find(None, {"role": "main"})
    root = main or (articles[0] if len(articles) == 1 else soup.body) or soup
    text = "\n\n".join(_blocks(root))
    if not text.strip():
        raise InputError("no text in its main, article or body element")
    return Parsed(text, one_line(soup.title.get_text()) if soup.title else "", _metadata(soup))


def _parse(data: bytes) -> BeautifulSoup:
    from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning, XMLParsedAsHTMLWarning

    try:
        source: str | bytes = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        if b"\0" in data and not data.startswith(WIDE_MARKS):
            raise InputError("binary (it holds NUL bytes)") from None
        source = data  # The parser follows the encoding that the file declares.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)
        warnings.simplefilter("ignore", XMLParsedAsHTMLWarning)
        return BeautifulSoup(source, "lxml")


def _metadata(soup: BeautifulSoup) -> dict[str, str]:
    found: dict[str, str] = {}
    for tag in soup.find_all("meta", content=True):
        name = str(tag.get("name") or tag.get("property") or "").lower()
        found.setdefault(name, str(tag["content"]))
    dates = {key: next((found[n] for n in names.split() if n in found), "") for key, names in _DATES.items()}
    return stated(author=found.get("author"), language=soup.html.get("lang") if soup.html else "", **dates)


def _blocks(tag: Tag) -> Iterator[str]:
    """The blocks inside a tag: what stands between two block elements is one paragraph."""
    from bs4 import Tag

    inline: list[str] = []
    for child in tag.children:
        if isinstance(child, Tag) and (child.name in _BLOCKS or child.find(_BLOCKS) is not None):
            yield from _paragraph(inline)
            inline = []
            yield from _block(child)
        else:
            inline.append(_inline(child))
    yield from _paragraph(inline)


def _block(tag: Tag) -> Iterator[str]:
    # Headings inside a list or a table, and tables inside tables, mean that it lays out a page rather than holds data.
    if tag.name == "header" and tag.find_parent(["main", "article", "section"]):
        for heading in tag.find_all(_HEADINGS):
            yield from _block(heading)
    elif _is_dropped(tag) or _is_menu(tag):
        return
    elif tag.name in _HEADINGS:
        title = one_line(_inline(tag))
        yield from [f"{'#' * int(tag.name[1])} {title}"] if title else []
    elif tag.name == "pre":
        code = tag.get_text().strip("\r\n")
        yield from [fence(code)] if code.strip() else []
    elif tag.name in ("ul", "ol", "menu") and not tag.find(_HEADINGS):
        yield from _list(tag)
    elif tag.name == "table" and not tag.find([*_HEADINGS, "table", "pre"]):
        yield from _table(tag)
    else:
        yield from _blocks(tag)


def _is_dropped(tag: Tag) -> bool:
    return (
        tag.name in _DROPPED
        or tag.get("role") in _OTHER_ROLES
        or tag.has_attr("hidden")
        or not _EDIT_LINKS.isdisjoint(tag.get_attribute_list("class"))
    )


def _is_menu(tag: Tag) -> bool:
    """A block that is named like a menu, and most of whose text stands in links."""
    names = {str(name).lower() for key in ("id", "class") for name in tag.get_attribute_list(key) if name}
    if _MENU_NAMES.isdisjoint(part for name in names for part in re.split(r"[-_]+", name)):
        return False
    linked = sum(len(one_line(link.get_text())) for link in tag.find_all("a"))
    return 2 * linked > len(one_line(tag.get_text()))


def _list(tag: Tag) -> Iterator[str]:
    from bs4 import Tag

    items = []
    for child in tag.children:
        body = "\n".join(_block(child) if isinstance(child, Tag) else _paragraph([_inline(child)]))
        if body:
            is_item = isinstance(child, Tag) and child.name == "li"
            items.append(("- " if is_item else "  ") + body.replace("\n", "\n  "))
    yield from ["\n".join(items)] if items else []


def _table(tag: Tag) -> Iterator[str]:
    for caption in tag.find_all("caption"):
        yield from _paragraph([_inline(caption)])
    rows = table([_inline(cell) for cell in row.find_all(["td", "th"])] for row in tag.find_all("tr"))
    yield from [rows] if rows else []


def _inline(node: PageElement) -> str:
    """Text of a node with runs of whitespace as one space; only <br> breaks a line."""
    from bs4 import Tag
    from bs4.element import NavigableString, PreformattedString

    if isinstance(node, Tag):
        if _is_dropped(node):
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
