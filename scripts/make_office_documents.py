"""`python scripts/make_office_documents.py corpora/harbourline` makes the office documents.

Turn every Markdown file under CORPUS/sources/ into a Word or PDF document of
the same path under CORPUS/documents/. The first line of a source says which:
`<!-- docx -->` or `<!-- pdf -->`.

The sources use only a small part of Markdown: `#` and `##` headings,
paragraphs, `- ` bullets and simple tables. The output is the same on every
run: all dates inside the files are fixed.
"""

from __future__ import annotations

import argparse
import re
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from docx import Document
from docx.shared import Cm, Pt
from fpdf import FPDF
from fpdf.fonts import FontFace

FIXED_DATE = datetime(2025, 10, 1, 9, 0, tzinfo=UTC)
AUTHOR = "Harbourline Ferries"
ZIP_DATE = (2025, 10, 1, 9, 0, 0)

PDF_ENCODING = "cp1252"  # what the core PDF fonts can show: £ and dashes, but few other signs
MARKS = {"# ": "title", "## ": "heading", "- ": "bullet"}


@dataclass
class Block:
    """One piece of a source: kind is title, heading, paragraph, bullet or table."""

    kind: str
    text: str = ""
    rows: list[list[str]] = field(default_factory=list)


def parse(markdown: str) -> list[Block]:
    """Split a source into blocks; lines of one paragraph are joined."""
    blocks: list[Block] = []
    last = ""  # kind of the line before, "" after an empty line
    for line in map(str.strip, markdown.splitlines()):
        mark = next((mark for mark in MARKS if line.startswith(mark)), None)
        if not line:
            kind = ""
        elif mark:
            kind = MARKS[mark]
            blocks.append(Block(kind, line.removeprefix(mark)))
        elif line.startswith("|"):
            kind = "table"
            add_row(blocks, line, new=last != "table")
        else:
            kind = "paragraph"
            if last == "paragraph":
                blocks[-1].text += " " + line
            else:
                blocks.append(Block(kind, line))
        last = kind
    return blocks


def add_row(blocks: list[Block], line: str, *, new: bool) -> None:
    """Add a table line to the last block, or to a new table; the rule under the head is dropped."""
    if new:
        blocks.append(Block("table"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
        blocks[-1].rows.append(cells)


def plain(text: str) -> str:
    """Take the emphasis and code marks out of a text."""
    return re.sub(r"\*\*(.+?)\*\*|\*(.+?)\*|`(.+?)`", lambda m: m[1] or m[2] or m[3], text)


def write_docx(blocks: list[Block], path: Path) -> None:
    document = Document()
    section = document.sections[0]
    section.page_width, section.page_height = Cm(21), Cm(29.7)
    document.styles["Normal"].font.name = "Calibri"
    document.styles["Normal"].font.size = Pt(11)
    properties = document.core_properties
    properties.author = properties.last_modified_by = AUTHOR
    properties.created = properties.modified = FIXED_DATE
    properties.last_printed = FIXED_DATE
    properties.revision = 1
    properties.comments = ""
    for block in blocks:
        text = plain(block.text)
        if block.kind == "title":
            document.add_heading(text, level=1)
            properties.title = text
        elif block.kind == "heading":
            document.add_heading(text, level=2)
        elif block.kind == "bullet":
            document.add_paragraph(text, style="List Bullet")
        elif block.kind == "table":
            table = document.add_table(rows=0, cols=len(block.rows[0]), style="Table Grid")
            for number, row in enumerate(block.rows):
                for cell, value in zip(table.add_row().cells, row, strict=True):
                    cell.paragraphs[0].add_run(plain(value)).bold = number == 0
        else:
            document.add_paragraph(text)
    document.save(str(path))
    fix_zip_dates(path)


def fix_zip_dates(path: Path) -> None:
    """Write the archive again with a fixed date on every member."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name, ZIP_DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)


def pdf_text(text: str) -> str:
    """Return the plain text, or fail if the core PDF fonts cannot show it."""
    text = plain(text).replace("\u2212", "-")
    text.encode(PDF_ENCODING)
    return text


def write_pdf(blocks: list[Block], path: Path) -> None:
    pdf = FPDF(format="A4")
    pdf.core_fonts_encoding = PDF_ENCODING
    pdf.set_creation_date(FIXED_DATE)
    pdf.set_author(AUTHOR)
    pdf.set_margin(22)
    pdf.set_auto_page_break(True, margin=20)
    pdf.add_page()

    def lines(text: str, size: float, height: float, *, bold: bool = False, indent: float = 0) -> None:
        pdf.set_font("Helvetica", "B" if bold else "", size)
        width = pdf.epw - indent
        needed = cast(float, pdf.multi_cell(width, height, text, align="L", dry_run=True, output="HEIGHT"))
        if pdf.will_page_break(needed):  # a paragraph stays on one page
            pdf.add_page()
        pdf.set_x(pdf.l_margin + indent)
        pdf.multi_cell(width, height, text, align="L", new_x="LMARGIN", new_y="NEXT")

    for block in blocks:
        text = pdf_text(block.text)
        if block.kind == "title":
            pdf.set_title(text)
            lines(text, 18, 9, bold=True)
            pdf.ln(3)
        elif block.kind == "heading":
            if pdf.will_page_break(30):  # no heading alone at the foot of a page
                pdf.add_page()
            pdf.ln(3)
            lines(text, 13, 7, bold=True)
            pdf.ln(1)
        elif block.kind == "bullet":
            lines("• " + text, 10.5, 5.5, indent=4)
            pdf.ln(0.5)
        elif block.kind == "table":
            pdf.set_font("Helvetica", "", 10)
            with pdf.table(text_align="LEFT", headings_style=FontFace(emphasis="BOLD"), line_height=5.5) as table:
                for row in block.rows:
                    table.row([pdf_text(cell) for cell in row])
            pdf.ln(3)
        else:
            lines(text, 10.5, 5.5)
            pdf.ln(2.5)
    pdf.output(str(path))


WRITERS: dict[str, Callable[[list[Block], Path], None]] = {"docx": write_docx, "pdf": write_pdf}


def convert(source: Path, corpus: Path) -> Path:
    first, _, body = source.read_text(encoding="utf-8").partition("\n")
    mark = re.fullmatch(r"<!--\s*(\w+)\s*-->", first.strip())
    if mark is None or mark[1] not in WRITERS:
        raise ValueError(f"{source}: the first line must be one of " + ", ".join(f"<!-- {k} -->" for k in WRITERS))
    kind = mark[1]
    target = corpus / "documents" / source.relative_to(corpus / "sources").with_suffix(f".{kind}")
    target.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[kind](parse(body), target)
    return target


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 2)[2].strip())
    parser.add_argument("corpus", type=Path, help="folder with sources/ and documents/")
    corpus: Path = parser.parse_args(arguments).corpus
    sources = sorted((corpus / "sources").rglob("*.md"))
    if not sources:
        print(f"no sources under {corpus / 'sources'}", file=sys.stderr)
        return 1
    try:
        for source in sources:
            print(convert(source, corpus))
    except (OSError, UnicodeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
