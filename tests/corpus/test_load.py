"""Loading folders: what is taken, what is skipped and why. The readers have tests of their own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docx
import openpyxl
import pptx
import pytest
from fpdf import FPDF
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragtune.corpus.load import LoadResult, Skipped, load_documents
from ragtune.corpus.sandbox import Limits, Sandbox
from ragtune.errors import InputError


def fill(root: Path, **files: str | bytes) -> Path:
    """`a__b_md="..."` writes root/a/b.md."""
    for key, content in files.items():
        path = root / ".".join(key.replace("__", "/").rsplit("_", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def ids(result: LoadResult) -> list[str]:
    return [document.id for document in result.documents]


def reasons(result: LoadResult) -> dict[str, str]:
    return {file.path: file.reason for file in result.skipped}


def test_documents_are_sorted_and_named_by_path(tmp_path: Path) -> None:
    result = load_documents(fill(tmp_path, b_md="# B", a__z_txt="z", a__c_MD="# C\r\ntext\rend"))
    assert ids(result) == ["a/c.MD", "a/z.txt", "b.md"]
    assert result.documents[0].text == "# C\ntext\nend"
    assert result.skipped == ()
    assert load_documents(tmp_path) == result


def test_titles(tmp_path: Path) -> None:
    root = fill(
        tmp_path,
        a_md="intro\n\n## First *heading*\n# Second",
        b_html="<title>T</title><h1>Head</h1>x",
        c_html="<title>T &amp; U</title><p>x",
        d_txt="plain",
    )
    assert [d.title for d in load_documents(root).documents] == ["First *heading*", "Head", "T & U", "d"]


def test_fingerprint_changes_with_text_and_title_only(tmp_path: Path) -> None:
    pages = ["<title>A</title>x", "<title>A</title><p>x</p>", "<title>B</title>x", "<title>A</title>y"]
    one, same, title, text = (load_documents(fill(tmp_path, p_html=page)).documents[0].sha256 for page in pages)
    assert one == same and len({one, title, text}) == 3


def test_unknown_types_are_counted_and_hidden_files_are_not(tmp_path: Path) -> None:
    root = fill(tmp_path, a_md="a", b_xyz="b", sub__tar_gz="c")
    (root / "Makefile").write_text("all:")
    fill(root / ".git", config_md="hidden")
    (root / ".hidden.md").write_text("hidden")
    (root / "~$open.docx").write_text("lock")
    result = load_documents(root)
    assert ids(result) == ["a.md"]
    assert result.skipped == (
        Skipped("Makefile", "unknown type (no suffix)"),
        Skipped("b.xyz", "unknown type .xyz"),
        Skipped("sub/tar.gz", "unknown type .gz"),
    )
    assert load_documents(root, strict=True) == result


def test_useless_files_are_skipped_with_the_reason(tmp_path: Path) -> None:
    root = fill(
        tmp_path,
        good_md="good",
        empty_txt="",
        blank_md=" \n\t\n",
        binary_txt=b"a\0b",
        large_md="x" * 1001,
        not__zip_docx=b"no zip",
        not__pdf_pdf=b"no pdf",
        nothing_html="<nav>x</nav>",
    )
    result = load_documents(root, limits=Limits(max_bytes=1000))
    assert ids(result) == ["good.md"]
    found = reasons(result)
    assert found["empty.txt"] == "empty"
    assert found["blank.md"] == "empty (nothing but whitespace)"
    assert found["binary.txt"] == "binary (it holds NUL bytes)"
    assert found["large.md"] == "1001 bytes, more than the limit of 1000"
    assert found["not/zip.docx"] == "cannot be read (BadZipFile: File is not a zip file)"
    assert found["not/pdf.pdf"].startswith("cannot be read (PdfiumError")
    assert found["nothing.html"].startswith("no text")
    assert len(found) == 7


def test_very_long_line(tmp_path: Path) -> None:
    root = fill(tmp_path, a_md="x" * 1_000_000 + "\nb", b_md="x\n" + "y" * 1_000_001)
    result = load_documents(root)
    assert ids(result) == ["a.md"]
    assert reasons(result) == {"b.md": "a line of 1000001 characters, more than the limit of 1000000"}


def test_strict_names_the_files(tmp_path: Path) -> None:
    root = fill(tmp_path, a_md="a", b_txt=b"\0", c_xyz="c", **{f"e{i}_md": "" for i in range(6)})
    with pytest.raises(InputError, match=r"7 skipped: b\.txt: binary .*; e0\.md: empty; .*; \.\.\.; mend or exclude"):
        load_documents(root, strict=True)
    assert ids(load_documents(root, strict=True, exclude=["e?.md", "b.txt"])) == ["a.md"]


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["*.md"], [], ["a.md", "x/b.md", "x/y/c.md"]),
        (["**/*.md"], [], ["a.md", "x/b.md", "x/y/c.md"]),
        (["x"], [], ["x/b.md", "x/d.txt", "x/y/c.md"]),
        (["x/"], ["x/y/"], ["x/b.md", "x/d.txt"]),
        (["x/*.md"], ["*/c.md"], ["x/b.md"]),
        ([], ["*.md"], ["x/d.txt"]),
        (["a.md", "*.txt"], [], ["a.md", "x/d.txt"]),
    ],
)
def test_include_and_exclude(tmp_path: Path, include: list[str], exclude: list[str], expected: list[str]) -> None:
    root = fill(tmp_path, a_md="a", x__b_md="b", x__y__c_md="c", x__d_txt="d")
    assert ids(load_documents(root, include=include, exclude=exclude)) == expected


def test_links_stay_inside_and_loops_end(tmp_path: Path) -> None:
    outside = fill(tmp_path / "outside", secret_md="secret")
    root = fill(tmp_path / "root", a_md="a", sub__b_md="b", **{"target_md": "t"})
    (root / ".store").mkdir()
    fill(root / ".store", c_md="c")
    (root / "out.md").symlink_to(outside / "secret.md")
    (root / "out").symlink_to(outside)
    (root / "loop").symlink_to(root)
    (root / "sub" / "up").symlink_to("..")
    (root / "self.md").symlink_to("self.md")
    (root / "gone.md").symlink_to("nowhere.md")
    (root / "alias.md").symlink_to("a.md")
    (root / "store").symlink_to(".store")
    (tmp_path / "link").symlink_to(root)
    for top in (root, tmp_path / "link"):
        result = load_documents(top)
        assert ids(result) == ["a.md", "store/c.md", "sub/b.md", "target.md"]
        assert reasons(result) == {
            "out": "a symlink out of the folder, not followed",
            "out.md": "a symlink out of the folder, not followed",
            "loop": "symlink to ., loaded by that name",
            "sub/up": "symlink to ., loaded by that name",
            "self.md": "a broken symlink",
            "gone.md": "a broken symlink",
            "alias.md": "symlink to a.md, loaded by that name",
        }
    with pytest.raises(InputError, match=r"4 skipped: gone\.md"):
        load_documents(root, strict=True)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_odd_directory_entries(tmp_path: Path) -> None:
    root = fill(tmp_path, a_md="a")
    (root / os.fsdecode(b"caf\xe9.md")).write_text("x")
    (root / "日本 #1.md").write_text("y")
    os.mkfifo(root / "pipe.md")  # opening it would wait for ever
    result = load_documents(root)
    assert ids(result) == ["a.md", "日本 #1.md"]
    assert reasons(result) == {r"caf\udce9.md": "its name is not valid UTF-8", "pipe.md": "not a regular file"}


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path, a_md="a", locked__b_md="b")
    listing = Path.iterdir

    def iterdir(self: Path) -> object:
        if self.name == "locked":
            raise PermissionError(13, "Permission denied")
        return listing(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert reasons(load_documents(root)) == {"locked": "cannot be read (Permission denied)"}


def test_no_usable_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; expected a folder"):
        load_documents(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is a file; expected a folder"):
        load_documents(fill(tmp_path, a_md="a") / "a.md")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"no document that can be loaded \(0 skipped\); expected files of type \.md"):
        load_documents(tmp_path / "none")
    with pytest.raises(InputError, match=r"1 skipped: b\.xyz: unknown type"):
        load_documents(fill(tmp_path / "none", b_xyz="b"))


def sample(suffix: str) -> bytes:
    buffer = io.BytesIO()
    if suffix == ".docx":
        made = docx.Document()
        made.add_heading("Head", 1)
        made.add_table(1, 2).cell(0, 0).text = "cell"
        made.save(buffer)
    elif suffix == ".pdf":
        page = FPDF()
        page.add_page()
        page.set_font("Helvetica")
        page.cell(text="Some text.")
        buffer.write(page.output())
    elif suffix == ".pptx":
        deck = pptx.Presentation()
        deck.slides.add_slide(deck.slide_layouts[0]).shapes.title.text = "Head"
        deck.save(buffer)
    elif suffix == ".xlsx":
        book = openpyxl.Workbook()
        book.worksheets[0].append(["a", 1, 2.5])
        book.save(buffer)
    else:
        buffer.write(b"<h1>Head</h1><table><tr><td>a<td>b</table><ul><li>x<ul><li>y</ul></ul>&eacute;&#55296;")
    return buffer.getvalue()


SUFFIXES = (".html", ".pdf", ".docx", ".pptx", ".xlsx", ".csv", ".eml", ".rst", ".md")
SAMPLES = {suffix: sample(suffix) for suffix in SUFFIXES}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(Limits()) as opened:
        yield opened


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=6)), max_size=8), cut=st.floats(0.2, 1.6)
)
def test_damaged_files_never_crash(
    sandbox: Sandbox, tmp_path: Path, suffix: str, edits: list[tuple[float, bytes]], cut: float
) -> None:
    data = bytearray(SAMPLES[suffix])
    for place, noise in edits:
        at = int(place * len(data))
        data[at : at + len(noise)] = noise
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(data[: int(cut * len(data))])
    try:
        text = sandbox.read(path).text
    except InputError as refusal:
        assert str(refusal)
    else:
        assert text.encode("utf-8") and "\r" not in text and "\0" not in text


def test_importing_loads_no_parser_and_no_torch() -> None:
    modules = ["load", "readers", "sandbox", "split", "questions", "check", "markdown"]
    heavy = ["torch", "transformers", "bs4", "lxml", "pypdfium2", "docx", "charset_normalizer", "numpy"]
    heavy += ["pptx", "openpyxl", "docutils", "pydantic"]
    imports = "; ".join(f"import ragtune.corpus.{module}" for module in modules)
    code = f"import sys; {imports}; print(set({heavy}) & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def test_formats_and_warnings(tmp_path: Path) -> None:
    letter = "Subject: Trip\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\nSee the list.\n"
    letter += "--b\nContent-Disposition: attachment; filename=list.pdf\n\nx\n--b--\n"
    result = load_documents(fill(tmp_path, a_md="a", b_MD="b", c_csv="x,y\n1,2\n", d_eml=letter, e_xyz="e"))
    assert dict(result.formats) == {".md": 2, ".csv": 1, ".eml": 1}
    assert next(iter(result.formats)) == ".md"
    assert result.summary == "2 .md, 1 .csv, 1 .eml; left out 1"
    assert result.warnings == (Skipped("d.eml", "attachments are not read: list.pdf; save them beside the message"),)


def test_small_plain_text_and_the_sandbox_read_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path, a_md="\ufeff# A\r\nb", b_py="# c\n\n\nx = 1\n", c_txt="caf\xe9 and so on".encode("cp1252"))
    here = load_documents(root)
    monkeypatch.setattr("ragtune.corpus.load._LARGE", 0)
    assert load_documents(root) == here
    assert [d.text for d in here.documents] == ["# A\nb", "```python\n# c\n\n\nx = 1\n```", "café and so on"]
    assert [d.title for d in here.documents] == ["A", "b", "c"]
