"""reStructuredText, Sphinx's additions included, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ragtune.corpus.readers.parsed import Parsed, fence, one_line, table
from ragtune.corpus.readers.text import read_text

if TYPE_CHECKING:
    from docutils import nodes

_SETTINGS = {
    "_disable_config": True,
    "doctitle_xform": False,
    "docinfo_xform": False,
    "file_insertion_enabled": False,
    "halt_level": 5,
    "raw_enabled": False,
    "report_level": 5,
    "smart_quotes": False,
}
_DIRECTIVE = re.compile(r"^\s*\.\. (?:\|[^|\n]+\| )?([\w:.+-]+?)::(?:\s|$)", re.MULTILINE)
_ROLE = re.compile(r":([\w:.+-]+):`")
_CODE = {"code", "code-block", "sourcecode"}
_ONLY_CONTROL = {"automodule", "autoclass", "autofunction", "currentmodule", "index", "literalinclude", "toctree"}
_LEFT_OUT = ("comment", "substitution_definition", "target", "raw", "pending", "image", "meta")


def read_rst(data: bytes) -> Parsed:
    """Sections, paragraphs, lists, tables and code in order; comments and directives that only control are left out.

    No directive reads another file. Directives and roles that docutils does not know keep their text.
    """
    from docutils.core import publish_doctree

    parsed = read_text(data)
    _teach(parsed.text)
    tree = publish_doctree(parsed.text, settings_overrides=_SETTINGS)
    return Parsed("\n\n".join(_blocks(tree, 1)), metadata=parsed.metadata)


def _blocks(node: Any, level: int) -> Iterator[str]:
    """The blocks below a node; `level` is that of the headings of its sections."""
    for child in node.children:
        name = child.tagname
        if name in _LEFT_OUT or name == "#text":
            continue
        if name == "section":
            yield from _blocks(child, level + 1)
        elif name == "title" and node.tagname == "section":
            yield f"{'#' * min(6, level - 1)} {one_line(child.astext())}"
        elif name in ("literal_block", "doctest_block", "math_block"):
            yield fence(child.astext(), "".join(child.get("classes", [])[1:2]))
        elif name == "system_message":  # What docutils could not make sense of stands in it as it was written.
            yield from (part.astext() for part in child.children if part.tagname == "literal_block")
        elif name in _SHAPES:
            yield from filter(None, [_SHAPES[name](child, level)])
        elif name in _TEXTS:
            yield from filter(None, [child.astext().strip()])
        else:
            yield from _blocks(child, level)


def _list(node: Any, level: int) -> str:
    items = ("\n".join(_blocks(item, level)) for item in node.children)
    return "\n".join("- " + item.replace("\n", "\n  ") for item in items if item)


def _table(node: Any, level: int) -> str:
    rows = ([" ".join(_blocks(entry, level)) for entry in row.children] for row in node.findall(_is("row")))
    titles = [one_line(child.astext()) for child in node.children if child.tagname == "title"]
    return "\n\n".join(filter(None, [*titles, table(rows)]))


def _fields(node: Any, level: int) -> str:
    return "\n".join(": ".join(one_line(part.astext()) for part in field.children) for field in node.children)


def _is(name: str) -> Callable[[Any], bool]:
    return lambda node: getattr(node, "tagname", "") == name


_TEXTS = {"attribution", "caption", "paragraph", "rubric", "subtitle", "term", "title"}
_SHAPES: dict[str, Callable[[Any, int], str]] = {
    "bullet_list": _list,
    "enumerated_list": _list,
    "table": _table,
    "field_list": _fields,
    "option_list": _fields,
}

# --- what Sphinx adds ------------------------------------------------------------------------------------------------


def _teach(text: str) -> None:
    """Make known to docutils, in this process, the directives and roles of the text that it does not know."""
    from docutils import nodes
    from docutils.parsers.rst import Directive, directives, languages, roles
    from docutils.utils import Reporter

    class AnyOption(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            return directives.unchanged

    class Unknown(Directive):
        """A directive that we know nothing of: its argument and what stands in it, read as text."""

        has_content, optional_arguments, final_argument_whitespace = True, 1, True
        option_spec = AnyOption(name=directives.unchanged)

        def run(self) -> list[nodes.Node]:
            if self.name in _ONLY_CONTROL:
                return []
            if self.name in _CODE:
                return [nodes.literal_block("", "\n".join(self.content), classes=["code", *self.arguments])]
            block = nodes.container("", *(nodes.paragraph("", argument) for argument in self.arguments))
            self.state.nested_parse(self.content, self.content_offset, block)
            return [block]

    quiet, english = Reporter("", 5, 5), languages.get_language("en", None)
    for name in {name.lower() for name in _DIRECTIVE.findall(text)}:
        if name in _CODE or directives.directive(name, english, nodes.document({}, quiet))[0] is None:
            directives.register_directive(name, Unknown)
    for name in {name.lower() for name in _ROLE.findall(text)}:
        if roles.role(name, english, 0, quiet)[0] is None:
            roles.register_local_role(name, _shown)


def _shown(
    name: str, rawtext: str, text: str, *_: object, **__: object
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """A role's text: of `title <target>` the title, of `~package.name` the name."""
    from docutils import nodes

    shown = re.sub(r"\s*<[^<>]*>$", "", text) or text
    return [nodes.literal(rawtext, shown.rpartition(".")[2] if shown.startswith("~") else shown)], []
