"""Readers of the further formats: files made here, with the text that they must give written out."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from datetime import datetime
from pathlib import Path

import openpyxl
import pptx
import pytest
from fpdf import FPDF
from pptx.util import Inches

from ragtune.corpus.markdown import blocks
from ragtune.corpus.pages import page_of
from ragtune.corpus.readers import READERS, Parsed, read_file
from ragtune.corpus.readers.data import read_ipynb, read_json, read_jsonl
from ragtune.corpus.readers.epub import read_epub
from ragtune.corpus.readers.html import read_html
from ragtune.corpus.readers.mail import read_eml
from ragtune.corpus.readers.pdf import read_pdf
from ragtune.corpus.readers.rst import read_rst
from ragtune.corpus.readers.sheets import read_csv, read_xlsx
from ragtune.corpus.readers.slides import read_pptx
from ragtune.corpus.readers.text import code_reader
from ragtune.corpus.readers.word import read_docx
from ragtune.errors import InputError

# --- reStructuredText ---

RST = b"""\
Ferry guide
===========

:Author: Anna Shore

.. A comment.
.. image:: boat.png

Boarding
--------

Dogs travel *free*, see :ref:`the rules <rules>` and :class:`~ferry.Deck`.

- lead
- muzzle

  - small

.. note:: Bring water.

.. versionadded:: 2.0
   Cats, too.

.. toctree::
   :maxdepth: 2

   other

+-------+------+
| Route | Fee  |
+=======+======+
| R1    | 5    |
+-------+------+

Code::

    # no heading
    x = 1

.. code-block:: python
   :linenos:

   y = 2

Deep
~~~~

end
"""

RST_TEXT = """\
# Ferry guide

Author: Anna Shore

## Boarding

Dogs travel free, see the rules and Deck.

- lead
- muzzle
  - small

Bring water.

2.0
Cats, too.

Route | Fee
R1 | 5

Code:

```
# no heading
x = 1
```

```python
y = 2
```

### Deep

end"""


def test_rst() -> None:
    parsed = read_rst(RST)
    assert parsed.text == RST_TEXT


def test_rst_reads_no_other_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("SECRET")
    ways = (f".. include:: {secret}", f".. csv-table::\n   :file: {secret}", f".. raw:: html\n   :file: {secret}",
            f".. literalinclude:: {secret}")  # fmt: skip
    assert "SECRET" not in read_rst(("text\n\n" + "\n\n".join(ways)).encode()).text


# --- HTML ---


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("<div role=navigation>Home</div><div role=main><p>body</p></div><p>other</p>", "body"),
        ("<div role=banner>Site</div><p>body</p><div role=contentinfo>Imprint</div>", "body"),
        ("<p>body</p><p hidden>secret</p>", "body"),
        ("<div class=site-menu><a href=a>One</a> <a href=b>Two</a></div><p>body</p>", "body"),
        ("<div class=menu><p>Soup of the day; <a href=x>more</a></p></div>", "Soup of the day; more"),
        ("<ul><li><a href=a>One</a></ul><p>body</p>", "- One\n\nbody"),
        ("<h2>Head<span class=mw-editsection>[edit]</span><a class=headerlink href=#h>¶</a></h2>x", "## Head\n\nx"),
    ],
)  # fmt: skip
def test_html_without_its_menus(body: str, text: str) -> None:
    assert read_html(f"<html><body>{body}".encode()).text == text


def test_html_metadata() -> None:
    page = (
        '<html lang=de><meta name=author content="A. Shore"><meta property="article:published_time" '
        'content="2024-05-06"><meta property="article:modified_time" content="2024-06-07"><p>x'
    )
    assert read_html(page.encode()).metadata == {
        "author": "A. Shore", "created": "2024-05-06", "modified": "2024-06-07", "language": "de",
    }  # fmt: skip


# --- PDF ---


def columns_line_by_line(rows: list[tuple[str, ...]], width: float) -> FPDF:
    """A page that draws the first line of every column, then the second of every column, and so on."""
    made = FPDF()
    made.add_page()
    made.set_font("Helvetica", size=10)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            made.text(20 + j * width, 30 + 6 * i, cell)
    return made


def test_pdf_columns_that_are_drawn_line_by_line() -> None:
    left = [f"The left column goes on in line number {i:02}" for i in range(20)]
    right = [f"Another story at the right has line {i:02} too" for i in range(20)]
    made = columns_line_by_line(list(zip(left, right, strict=True)), 90)
    made.set_font("Helvetica", size=20)
    made.text(20, 20, "One title that stands over both of the columns")
    parsed = read_pdf(bytes(made.output()))
    assert parsed.text.split("\n") == ["One title that stands over both of the columns", *left, *right]


def test_pdf_table_keeps_its_rows() -> None:
    rows = [("Route", "Fee", "Days")] + [(f"R{i}", f"{5 * i} pounds", "daily") for i in range(20)]
    text = read_pdf(bytes(columns_line_by_line(rows, 50).output())).text
    assert text.split("\n") == [" ".join(row) for row in rows]


def test_pdf_metadata_and_warning() -> None:
    made = FPDF()
    made.set_title("Report \n 7")
    made.set_author("A. Shore")
    made.set_creation_date(datetime.fromisoformat("2024-05-06T07:08:09+02:00"))
    made.set_font("Helvetica")
    for text in ("one", "", "three"):
        made.add_page()
        if text:
            made.cell(text=text)
    parsed = read_pdf(bytes(made.output()))
    assert parsed.title == "Report 7"
    assert json.loads(parsed.metadata["pages"]) == [0, 5, 7]
    assert parsed.metadata["author"] == "A. Shore"
    assert parsed.metadata["created"] == "2024-05-06T07:08:09+02:00"
    assert parsed.metadata["warning"] == "no text on 1 of 3 pages (2); scans need text recognition"


# --- slides ---


def test_pptx() -> None:
    deck = pptx.Presentation()
    deck.core_properties.title = "Deck"
    one = deck.slides.add_slide(deck.slide_layouts[1])
    one.shapes.title.text = "Fees"
    one.placeholders[1].text = "Dogs are free\nCats pay"
    table = one.shapes.add_table(2, 2, Inches(1), Inches(5), Inches(4), Inches(1)).table
    for cell, text in zip(table.iter_cells(), ["Route", "Fee", "R1", "5"], strict=True):
        cell.text = text
    one.notes_slide.notes_text_frame.text = "Smile."
    two = deck.slides.add_slide(deck.slide_layouts[6])
    below = two.shapes.add_textbox(Inches(1), Inches(3), Inches(2), Inches(1))
    below.text_frame.text = "below"
    group = two.shapes.add_group_shape()
    group.shapes.add_textbox(Inches(1), Inches(1), Inches(2), Inches(1)).text_frame.text = "above"
    deck.slides.add_slide(deck.slide_layouts[6])
    buffer = io.BytesIO()
    deck.save(buffer)
    parsed = read_pptx(buffer.getvalue())
    first = "## Fees\n\nDogs are free\nCats pay\n\nRoute | Fee\nR1 | 5\n\nNotes: Smile."
    second = "## Slide 2\n\nabove\n\nbelow"
    assert parsed.text == f"{first}\n\n{second}\n\n"
    assert parsed.title == "Deck"
    assert json.loads(parsed.metadata["pages"]) == [0, len(first) + 2, len(first) + len(second) + 4]


# --- tables ---


def test_xlsx() -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Fees 2025"
    rows = [["Route", "Fee", "From"], ["R1", 0.1 + 0.2, datetime(2024, 5, 6)], ["R2", None, datetime(2024, 5, 6, 7)]]
    for row in [*rows, [], [None, None, "two\nlines"], [None, None, True]]:
        sheet.append(row)
    book.create_sheet("Empty")
    hidden = book.create_sheet("Hidden")
    hidden["A1"] = "secret"
    hidden.sheet_state = "hidden"
    buffer = io.BytesIO()
    book.save(buffer)
    assert read_xlsx(buffer.getvalue()).text == (
        "## Fees 2025\n\nRoute | Fee | From\nR1 | 0.3 | 2024-05-06\nR2 |  | 2024-05-06T07:00:00\n\ntwo lines\nTrue"
    )


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_delimiters(delimiter: str) -> None:
    rows = [["Route", "Note"], ["R1", 'say "a, b; c"\nd'], ["", ""], ["R2", ""]]
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter).writerows(rows)
    assert read_csv(buffer.getvalue().encode()).text == 'Route | Note\nR1 | say "a, b; c" d\nR2 | '


def test_csv_of_one_column_and_with_long_cells() -> None:
    assert read_csv(b"name\nanna\nbert\n").text == "name\nanna\nbert"
    assert len(read_csv(b"a,b\n" + b"x" * 200_000 + b",y\n").text) == 200_000 + 4 + 6


# --- books ---


def book(chapters: dict[str, str], spine: list[str]) -> bytes:
    items = "".join(
        f'<item id="i{i}" href="{name}" media-type="application/xhtml+xml"/>' for i, name in enumerate(chapters)
    )
    references = "".join(f'<itemref idref="i{list(chapters).index(name)}"/>' for name in spine)
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">'
        "<dc:title>Tides</dc:title><dc:creator>A. Shore</dc:creator><dc:date>2024</dc:date></metadata>"
        f"<manifest>{items}</manifest><spine>{references}</spine></package>"
    )
    container = '<container><rootfiles><rootfile full-path="OEBPS/content.opf"/></rootfiles></container>'
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("META-INF/container.xml", container)
        archive.writestr("OEBPS/content.opf", package)
        for name, text in chapters.items():
            if text:
                archive.writestr(f"OEBPS/{name.replace('%20', ' ')}", f"<html><body>{text}</body></html>")
    return buffer.getvalue()


def test_epub_in_the_order_of_the_spine() -> None:
    chapters = {
        "b.xhtml": "<h1>Two</h1>b",
        "a%20x.xhtml": "<h1>One</h1>a",
        "cover.xhtml": "<img/>",
        "unused.xhtml": "no",
    }
    parsed = read_epub(book(chapters, ["cover.xhtml", "a%20x.xhtml", "b.xhtml"]))
    assert parsed == Parsed("# One\n\na\n\n# Two\n\nb", "Tides", {"author": "A. Shore", "created": "2024"})


def test_epub_that_is_broken() -> None:
    with pytest.raises(InputError, match=r"its chapter OEBPS/a\.xhtml is missing"):
        read_epub(book({"a.xhtml": ""}, ["a.xhtml"]))
    with pytest.raises(InputError, match=r"no META-INF/container\.xml in it, so it is no EPUB book"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("x", "y")
        read_epub(buffer.getvalue())


# --- mail ---


def test_eml() -> None:
    letter = (
        "From: =?utf-8?q?Zo=C3=AB?= <z@example.org>\nTo: b@example.org\nDate: Mon, 6 May 2024 07:08:09 +0200\n"
        "Subject: Trip to\n R1\nMIME-Version: 1.0\nContent-Type: multipart/alternative; boundary=b\n\n--b\n"
        "Content-Type: text/html\n\n<p>no</p>\n--b\nContent-Type: text/plain; charset=utf-8\n"
        "Content-Transfer-Encoding: quoted-printable\n\nSee you =E2=82=AC5.\n--b--\n"
    )
    parsed = read_eml(letter.encode())
    assert parsed.text == (
        "# Trip to R1\n\nFrom: Zoë <z@example.org>\nTo: b@example.org\nDate: Mon, 06 May 2024 07:08:09 +0200\n\n"
        "See you €5."
    )
    assert parsed.metadata == {"author": "Zoë <z@example.org>", "created": "2024-05-06T07:08:09+02:00"}


def test_eml_of_html_only() -> None:
    assert read_eml(b"Subject: S\nContent-Type: text/html\n\n<h2>Head</h2><p>text").text == "# S\n\n## Head\n\ntext"
    with pytest.raises(InputError, match="no subject and no text"):
        read_eml(b"\n\n")


# --- JSON, notebooks, code ---


def test_json_records() -> None:
    value = [{"name": "R1", "fee": {"adult": 5, "dog": None}, "days": ["Mo", "Tu"], "text": "one\ntwo"}, {"name": "R2"}]
    text = "name: R1\nfee.adult: 5\ndays: Mo, Tu\n\ntext:\n\none\ntwo\n\nname: R2"
    assert read_json(json.dumps(value).encode()).text == text
    assert read_jsonl("\n".join(map(json.dumps, value)).encode()).text == text
    assert read_json(b'{"stops": [{"at": "A"}, {"at": "B"}]}').text == "stops.1.at: A\nstops.2.at: B"
    assert read_json(b'"plain"').text == "plain"


def test_broken_json_is_named() -> None:
    with pytest.raises(InputError, match="line 2 is not JSON"):
        read_jsonl(b'{"a": 1}\n{"a": \n')
    with pytest.raises(InputError, match="file is not JSON"):
        read_json(b"{")


def test_notebook() -> None:
    notebook = {
        "nbformat": 4, "metadata": {"language_info": {"name": "python"}},
        "cells": [
            {"cell_type": "markdown", "source": ["# Head\n", "text"]},
            {"cell_type": "code", "source": "# no heading\nx = 1", "outputs": [{"text": "no"}]},
            {"cell_type": "code", "source": []},
        ],
    }  # fmt: skip
    assert read_ipynb(json.dumps(notebook).encode()).text == "# Head\ntext\n\n```python\n# no heading\nx = 1\n```"
    with pytest.raises(InputError, match="no notebook of format 4"):
        read_ipynb(b'{"worksheets": []}')


def test_code_is_one_block_without_headings() -> None:
    code = "# comment\n\ndef f():\n    return '```'\n"
    text = code_reader("python")(code.encode()).text
    assert text == f"````python\n{code.strip()}\n````"
    assert [block.kind for block in blocks(text)] == ["code"]


def test_every_promised_type_has_a_reader() -> None:
    promised = (
        ".md .markdown .txt .text .rst .html .htm .xhtml .pdf .docx .docm .pptx .xlsx .csv .tsv .epub .eml .ipynb "
        ".json .jsonl .ndjson .py .js .ts .java .c .h .cpp .cs .go .rs .rb .php .swift .kt .scala .sh .sql .r .toml "
        ".yaml .yml"
    )
    assert set(promised.split()) <= set(READERS)


def test_files_are_read_no_further_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("x" * 11)
    assert read_file(path, 11).text == "x" * 11
    with pytest.raises(InputError, match="more than the limit of 10 bytes"):
        read_file(path, 10)


@pytest.mark.parametrize(("offset", "page"), [(0, 1), (10, 1), (11, 1), (13, 2), (15, 3), (99, 3)])
def test_page_of_an_offset(offset: int, page: int) -> None:
    # "First page." ends at 11, the empty second page stands at 13.
    assert page_of({"pages": "[0, 13, 15]"}, offset) == page


def test_no_page_where_there_are_none() -> None:
    assert page_of({}, 7) is None


def test_strict_word_files_are_named() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("_rels/.rels", '<Relationship Type="http://purl.oclc.org/ooxml/officeDocument"/>')
    with pytest.raises(InputError, match="Strict Open XML"):
        read_docx(buffer.getvalue())


@pytest.mark.parametrize(("stated", "title"), [("Fees 2025", "Fees 2025"), ("fees.docx", ""), ("(anonymous)", "")])
def test_pdf_titles_that_are_none(stated: str, title: str) -> None:
    made = FPDF()
    made.set_title(stated)
    made.set_font("Helvetica")
    made.add_page()
    made.cell(text="x")
    assert read_pdf(bytes(made.output())).title == title
