"""Readers: real files made here, with the text that they must give written out."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import docx
import pytest
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls
from fpdf import FPDF
from pypdf import PdfReader, PdfWriter

from ragtune.corpus.readers import clean, read_text
from ragtune.corpus.readers.html import read_html
from ragtune.corpus.readers.pdf import read_pdf
from ragtune.corpus.readers.word import read_docx
from ragtune.errors import InputError


def pdf(*pages: str) -> bytes:
    made = FPDF()
    made.set_font("Helvetica", size=12)
    for page in pages:
        made.add_page()
        if page:
            made.multi_cell(0, text=page)
    return bytes(made.output())


def encrypted(data: bytes, password: str) -> bytes:
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(data)))
    writer.encrypt(password, owner_password="owner", algorithm="RC4-128")
    return saved(writer.write)


def saved(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def html(body: str) -> str:
    return read_html(f"<html><body>{body}</body></html>".encode()).text


# --- text ---


@pytest.mark.parametrize(
    ("data", "text", "encoding"),
    [
        ("Café £5".encode(), "Café £5", None),
        (b"\xef\xbb\xbfwith mark", "with mark", None),
        ("naïve, 日本".encode("utf-16"), "naïve, 日本", "utf-16"),
        ("naïve".encode("utf-16-be").join([b"\xfe\xff", b""]), "naïve", "utf-16"),
        ("Prices — from £5 “each” in the café".encode("cp1252"), "Prices — from £5 “each” in the café", "cp1252"),
        ("Привет, как дела? Это обычный русский текст.".encode("cp1251"), None, "cp1251"),
        ("これは日本語の文章です。東京は大きい都市です。".encode("shift_jis"), None, "cp932"),
    ],
)
def test_encodings(data: bytes, text: str | None, encoding: str | None) -> None:
    parsed = read_text(data)
    assert parsed.text == (text or data.decode(str(encoding)))
    assert parsed.metadata.get("encoding") == encoding


@pytest.mark.parametrize("data", [b"a\0b", bytes(range(256)) * 4])
def test_binary_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="NUL bytes"):
        read_text(data)


def test_clean() -> None:
    assert clean("a\r\nb\rc\0\ud800d\ud83d\ude00") == "a\nb\nc\ufffdd\U0001f600"


# --- HTML ---

PAGE = """<!DOCTYPE html><html><head><title>Pets &amp; rules</title><style>p {color: red}</style></head><body>
<header>Banner</header><nav><a href="/">Home</a></nav>
<main>
  <h1>Pets <em>on board</em></h1><!-- a comment -->
  <p>Dogs&nbsp;travel
     <b>free</b>, cats &lt; 5&nbsp;kg too.<br>Ask us.</p>
  <ul><li>lead</li><li>muzzle <ul><li>small</li></ul></li></ul>
  <h2>Fees</h2>
  <table><tr><th>Route</th><th>Fee</th></tr><tr><td>R1</td><td>&pound;5<br>return</td></tr><tr><td></td></tr></table>
  <pre># not a heading
  kept  as it is</pre>
  <script>var x = "no";</script><form>Search</form><aside>Advert</aside>
</main><footer>Footer</footer></body></html>"""

PAGE_TEXT = """# Pets on board

Dogs travel free, cats < 5 kg too.
Ask us.

- lead
- muzzle
  - small

## Fees

Route | Fee
R1 | £5 return

```
# not a heading
  kept  as it is
```"""


def test_html_page() -> None:
    parsed = read_html(PAGE.encode())
    assert parsed.text == PAGE_TEXT
    assert parsed.title == "Pets & rules"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("<article>one</article><p>other</p>", "one"),
        ("<article>one</article><article>two</article>", "one\n\ntwo"),
        ("<article>one<article>reply</article></article><p>other</p>", "one\n\nreply"),
        ("<article><header><h1>Name</h1>by X</header>body</article>", "# Name\n\nbody"),
        ("<header><h1>Site</h1></header><p>body</p>", "body"),
        ("text<div>block</div>tail<span>!</span>", "text\n\nblock\n\ntail!"),
        ("<a href=x><div>in a link</div></a>", "in a link"),
        ("<h2>  </h2><p></p>x", "x"),
        ("<ul>loose<li><p>a</p><p>b</p></li><ul><li>c</li></ul></ul>", "  loose\n- a\n  b\n  - c"),
        ("<ul><li><h3>Card</h3>text</li></ul>", "### Card\n\ntext"),
        ("<ol><li><pre>a\nb</pre></li></ol>", "- ```\n  a\n  b\n  ```"),
        ("<pre>a ``` b</pre>", "````\na ``` b\n````"),
        ("<table><caption>Fees</caption><tr><td>a<p>b</p></td><td></td><td>c</td></tr></table>", "Fees\n\na b |  | c"),
        ("<table><tr><td><h2>Left</h2>x</td><td><table><tr><td>1</td><td>2</td></tr></table></td></tr></table>",
         "## Left\n\nx\n\n1 | 2"),
        ("H<sub>2</sub>O &copy; &#8364;5 &#xe9;", "H2O © €5 é"),
        ("a<br><br><br><br>b", "a\n\nb"),
        ("a <![CDATA[x]]> <?php y ?> b", "a b"),
        ("<dl><dt>R1</dt><dd>daily</dd></dl>", "R1\n\ndaily"),
    ],
)  # fmt: skip
def test_html_structure(body: str, text: str) -> None:
    assert html(body) == text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("<meta charset=iso-8859-1><p>caf\xe9".encode("latin-1"), "café"),
        ("<meta charset=iso-8859-1><p>caf\xe9".encode(), "café"),  # says Latin-1, is UTF-8
        ("<p>naïve".encode("utf-16"), "naïve"),
        (
            b'<?xml version="1.0" encoding="UTF-8"?><html xmlns="http://www.w3.org/1999/xhtml"><body>x</body></html>',
            "x",
        ),
        (b"just.a.name", "just.a.name"),
    ],
)
def test_html_encodings_and_oddities(data: bytes, text: str) -> None:
    assert read_html(data).text == text


@pytest.mark.parametrize("data", [b"", b"<html></html>", b"<nav>only</nav>", b"<title>T</title>"])
def test_html_without_text(data: bytes) -> None:
    with pytest.raises(InputError, match="no text"):
        read_html(data)


# --- PDF ---


def test_pdf_pages() -> None:
    parsed = read_pdf(pdf("First page.", "", "Third page\nwith two lines."))
    assert parsed.text == "First page.\n\n\n\nThird page\nwith two lines."
    assert json.loads(parsed.metadata["pages"]) == [0, 13, 15]
    assert [parsed.text[start:][:5] for start in (0, 15)] == ["First", "Third"]


def test_pdf_without_text_layer() -> None:
    with pytest.raises(InputError, match="no text layer"):
        read_pdf(pdf("", ""))


def test_pdf_that_needs_a_password() -> None:
    with pytest.raises(InputError, match="encrypted; save a copy"):
        read_pdf(encrypted(pdf("secret"), "password"))


def test_pdf_that_opens_without_a_password() -> None:
    assert read_pdf(encrypted(pdf("Public report."), "")).text == "Public report."


# --- DOCX ---


def test_docx_in_body_order() -> None:
    made = docx.Document()
    made.add_heading("Goods", 1)
    made.add_paragraph("Before the table.")
    table = made.add_table(rows=2, cols=2)
    for cell, text in zip(
        [c for row in table.rows for c in row.cells], ["Item", "Limit", "Gas", "two\nlitres"], strict=True
    ):
        cell.text = text
    made.add_heading("Care  taken", 2)
    made.add_paragraph("gloves", style="List Bullet")
    made.add_paragraph("mask", style="List Number")
    made.add_paragraph("")
    made.add_paragraph("After\tit.")
    assert read_docx(saved(made.save)).text == (
        "# Goods\n\nBefore the table.\n\nItem | Limit\nGas | two litres\n\n"
        "## Care taken\n\n- gloves\n- mask\n\nAfter\tit."
    )


def test_docx_headings_stand_below_a_title() -> None:
    made = docx.Document()
    made.add_heading("Name", 0)
    made.add_heading("Part", 1)
    own = made.styles.add_style("House style", 1)
    own.base_style = made.styles["Heading 2"]
    made.add_paragraph("Detail", style="House style")
    assert read_docx(saved(made.save)).text == "# Name\n\n## Part\n\n### Detail"


def test_docx_styles_in_a_loop_do_no_harm() -> None:
    made = docx.Document()
    one, two = made.styles.add_style("One", 1), made.styles.add_style("Two", 1)
    one.base_style, two.base_style = two, one
    made.add_paragraph("text", style="One")
    assert read_docx(saved(made.save)).text == "text"


def test_docx_keeps_what_stands_in_controls_links_insertions_and_boxes() -> None:
    made = docx.Document()
    ns = nsdecls("w")
    paragraph = (
        f'<w:p {ns}><w:pPr><w:tabs><w:tab w:val="left" w:pos="9"/></w:tabs></w:pPr>'
        '<w:r><w:t xml:space="preserve">Pay </w:t></w:r><w:hyperlink><w:r><w:t>here</w:t></w:r></w:hyperlink>'
        '<w:ins w:id="1" w:author="a"><w:r><w:t xml:space="preserve"> now</w:t></w:r></w:ins>'
        '<w:del w:id="2" w:author="a"><w:r><w:delText>later</w:delText></w:r></w:del>'
        "<w:r><w:pict><w:txbxContent><w:p><w:r><w:t>Boxed</w:t></w:r></w:p></w:txbxContent></w:pict></w:r></w:p>"
    )
    control = f"<w:sdt {ns}><w:sdtContent><w:p><w:r><w:t>Controlled</w:t></w:r></w:p></w:sdtContent></w:sdt>"
    for xml in (control, paragraph):
        made.element.body.insert(0, parse_xml(xml))
    assert read_docx(saved(made.save)).text == "Pay here now\n\nBoxed\n\nControlled"


def test_docx_merged_cells_are_read_once() -> None:
    made = docx.Document()
    table = made.add_table(rows=1, cols=3)
    table.cell(0, 0).merge(table.cell(0, 1)).text = "wide"
    table.cell(0, 2).text = "last"
    assert read_docx(saved(made.save)).text == "wide | last"


def test_docx_without_text() -> None:
    with pytest.raises(InputError, match="no text"):
        read_docx(saved(docx.Document().save))


def test_docx_bombs_are_refused_before_they_are_unpacked() -> None:
    with pytest.raises(InputError, match="unpacks from"):
        read_docx(zipped(bomb=bytes(3_000_000)))  # zeros shrink about a thousandfold
    big = zipped(part=b"x")
    huge = bytearray(big)
    at = huge.rindex(b"PK\x01\x02") + 20  # compressed and full size in the directory
    huge[at : at + 8] = (3_000_000).to_bytes(4, "little") + (200_000_001).to_bytes(4, "little")
    with pytest.raises(InputError, match="200000001 bytes"):
        read_docx(bytes(huge))


def test_docx_reads_no_file_through_an_entity(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("SECRET")
    made = docx.Document()
    made.add_paragraph("MARK")
    source = saved(made.save)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(source)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "word/document.xml":
                doctype = f'<!DOCTYPE w:document [<!ENTITY x SYSTEM "{secret.as_uri()}">]>'.encode()
                data = data.replace(b"?>", b"?>" + doctype, 1).replace(b"MARK", b"MARK&x;")
            new.writestr(name, data)
    assert "SECRET" not in read_docx(buffer.getvalue()).text
