"""The sandbox: each attack is a file made here, and the file after it is still read."""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ragtune.config import IndexConfig
from ragtune.corpus.load import load_documents, stream_documents
from ragtune.corpus.sandbox import WORKER, Limits, Sandbox
from ragtune.errors import InputError
from ragtune.types import Document

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds all limits")

# What stands in a `.txt` file says what its reader shall do.
READER = """
import os, signal, sys, time
sys.path.append(sys.argv.pop(1))
import ragtune.corpus.readers as readers
from ragtune.corpus.sandbox import main

def read(data):
    what = data.decode()
    if what == "spin":
        while True: pass
    if what == "sleep": time.sleep(3600)
    if what == "eat": kept = [bytes(1 << 20) for _ in range(100_000)]
    if what == "grow": read.kept = bytearray(150 << 20)
    if what == "die": os.kill(os.getpid(), signal.SIGSEGV)
    if what == "exit": os._exit(3)
    if what == "recurse": read(data)
    if what == "print": print("{}"); os.write(1, b"{}" + bytes([10]))
    if what == "write": os.write(os.open(WHERE, os.O_CREAT | os.O_WRONLY), b"x")
    if what == "half":
        for pipe in range(3, 10):
            try: os.write(pipe, b"no end")
            except OSError: pass
        os._exit(0)
    return readers.Parsed(f"{what} {os.getpid()}")

readers.READERS[".txt"] = read
main()
"""


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    code = READER.replace("WHERE", repr(str(tmp_path / "written")))
    with Sandbox(Limits(seconds=1, memory_mb=256), (*WORKER[:4], code, WORKER[-1])) as opened:
        yield opened


def ask(sandbox: Sandbox, folder: Path, what: str) -> str:
    path = folder / "file.txt"
    path.write_text(what)
    return sandbox.read(path).text


@LINUX
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("spin", r"took more than (1 s of processor time|10 s) to read"),
        ("eat", "needs more than 256 MB of memory to read"),
        ("die", r"its parser crashed \(SIGSEGV\), as it may for want of memory \(the limit is 256 MB\)"),
        ("exit", r"its parser crashed \(exit status 3\)"),
        ("recurse", r"cannot be read \(RecursionError: "),
        ("write", r"cannot be read \(OSError: .*too large"),
        ("half", "its parser crashed"),
    ],
)
def test_an_attack_costs_its_own_file_only(sandbox: Sandbox, tmp_path: Path, what: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        ask(sandbox, tmp_path, what)
    assert ask(sandbox, tmp_path, "next").startswith("next ")
    assert not (tmp_path / "written").exists() or (tmp_path / "written").stat().st_size == 0


@LINUX
def test_the_clock_stops_what_takes_no_processor_time(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragtune.corpus.sandbox._PATIENCE", 1)
    started = time.perf_counter()
    with pytest.raises(InputError, match="took more than 1 s to read"):
        ask(sandbox, tmp_path, "sleep")
    assert time.perf_counter() - started < 6
    assert ask(sandbox, tmp_path, "next").startswith("next ")


def test_a_worker_reads_many_files(sandbox: Sandbox, tmp_path: Path) -> None:
    workers = {ask(sandbox, tmp_path, f"file{i}").split()[1] for i in range(20)}
    assert len(workers) == 1


def test_what_a_parser_prints_is_no_answer(sandbox: Sandbox, tmp_path: Path) -> None:
    assert ask(sandbox, tmp_path, "print").startswith("print ")
    assert ask(sandbox, tmp_path, "next").startswith("next ")


@LINUX
def test_a_worker_that_has_grown_is_replaced(sandbox: Sandbox, tmp_path: Path) -> None:
    first, second = (ask(sandbox, tmp_path, what).split()[1] for what in ("grow", "next"))
    assert first != second


@LINUX
def test_time_counts_from_each_file_on(tmp_path: Path) -> None:
    code = READER.replace('what = data.decode()', 'what = data.decode(); end = time.process_time() + 0.6\n'
                          '    while time.process_time() < end: pass')  # fmt: skip
    with Sandbox(Limits(seconds=1, memory_mb=256), (*WORKER[:4], code, WORKER[-1])) as opened:
        workers = {ask(opened, tmp_path, "x").split()[1] for _ in range(2)}
    assert len(workers) == 1


def test_threads_get_a_worker_each_and_closing_stops_busy_ones(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "sleep.txt").write_text("sleep")
    refusals: list[str] = []

    def read() -> None:
        try:
            sandbox.read(tmp_path / "sleep.txt")
        except InputError as error:
            refusals.append(str(error))

    thread = threading.Thread(target=read)
    thread.start()
    while not sandbox._alive:
        time.sleep(0.01)
    assert ask(sandbox, tmp_path, "other").startswith("other ")
    processes = [worker.process for worker in sandbox._alive]
    assert len(processes) == 2
    sandbox.__exit__(None, None, None)
    thread.join(timeout=5)
    assert refusals and all(process.poll() is not None for process in processes)
    with pytest.raises(InputError, match="closed"):
        ask(sandbox, tmp_path, "late")


def test_a_worker_loads_no_torch_and_sees_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "s3cret")
    code = READER.replace(
        "return readers.Parsed(",
        "import json; return readers.Parsed(json.dumps([sorted(sys.modules), dict(os.environ)]) or ",
    )
    with Sandbox(Limits(), (*WORKER[:4], code, WORKER[-1])) as opened:
        modules, environment = json.loads(ask(opened, tmp_path, "x"))
    assert not {"torch", "numpy", "transformers", "pydantic"} & set(modules)
    assert "SECRET_KEY" not in environment


def test_nothing_is_imported_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('taken over')")
    (tmp_path / "file.html").write_text("<p>text")
    monkeypatch.chdir(tmp_path)
    with Sandbox(Limits()) as opened:
        assert opened.read(tmp_path / "file.html").text == "text"


def test_limits_of_the_settings() -> None:
    assert Limits.from_config(IndexConfig()) == Limits()
    assert Limits.from_config(IndexConfig(max_file_mb=1, file_seconds=2, file_memory_mb=300)) == Limits(
        1_000_000, 2, 300
    )


# --- real files, small ones that grow --------------------------------------------------------------------------------


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), data)
    return buffer.getvalue()


def laughs(name: str) -> bytes:
    """Billion laughs: 9 levels of entities, ten times the level below each."""
    levels = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
    return f'<?xml version="1.0"?><!DOCTYPE {name} [<!ENTITY l0 "lol">{levels}]><{name}>&l9;</{name}>'.encode()


def pdf_of_pages_in_a_loop() -> bytes:
    """A page tree whose node is its own child, with a claim of a billion pages."""
    return (
        b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
        b"2 0 obj<</Type/Pages/Count 1000000000/Kids[2 0 R 2 0 R]>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF"
    )


def pdf_of_forms_in_a_loop() -> bytes:
    """Two form objects that draw each other twice: 2 ** depth steps for who follows them."""
    draw = b"/X Do /X Do"
    head = b"<</Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</X %d 0 R>>>>/Length %d>>"
    form = head + b"stream\n%s\nendstream"
    return (
        b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Count 1/Kids[3 0 R]>>endobj\n"
        b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Resources<</XObject<</X 4 0 R>>>>/Contents 6 0 R>>endobj\n"
        b"4 0 obj" + form % (5, len(draw), draw) + b"endobj\n5 0 obj" + form % (4, len(draw), draw) + b"endobj\n"
        b"6 0 obj<</Length %d>>stream\n%s\nendstream endobj\ntrailer<</Root 1 0 R>>\n%%%%EOF" % (len(draw), draw)
    )


def attacks() -> dict[str, bytes]:
    part = b"Content-Type: multipart/mixed; boundary=b\n\n"
    mimetype = b'<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>'
    container = b'<container><rootfiles><rootfile full-path="../../../etc/passwd"/></rootfiles></container>'
    return {
        "zeros.docx": zipped(bomb=bytes(3_000_000)),
        "zeros.xlsx": zipped(xl__workbook_xml=bytes(3_000_000)),
        "laughs.docx": zipped(word__document_xml=laughs("x"), _Content_Types__xml=mimetype),
        "laughs.epub": zipped(**{"META-INF__container_xml": laughs("container")}),
        "path.epub": zipped(**{"META-INF__container_xml": container}),
        "pages.pdf": pdf_of_pages_in_a_loop(),
        "forms.pdf": pdf_of_forms_in_a_loop(),
        "deep.json": b"[" * 100_000,
        "deep.html": b"<div>" * 50_000 + b"x",
        "deep.ipynb": b'{"cells": [' + b"[" * 100_000,
        "include.rst": b".. include:: /etc/passwd\n\n.. csv-table::\n   :file: /etc/passwd\n",
        "parts.eml": part + (b"--b\n" + part) * 5_000,
        "line.csv": b"x" * 2_000_000,
    }


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("attacked")
    for name, data in attacks().items():
        (root / name).write_bytes(data)
        (root / f"{name}.next.csv").write_text("a,b\n1,2\n")
    with (root / "huge.txt").open("wb") as file:
        file.truncate(1_000_000_000)  # one line of a gigabyte; it takes no room on the disk
    return root


def test_hostile_files_are_refused_and_all_others_read(attacked: Path) -> None:
    started = time.perf_counter()
    result = load_documents(attacked, limits=Limits(seconds=3, memory_mb=512))
    seconds = time.perf_counter() - started
    read = {document.id for document in result.documents}
    assert {f"{name}.next.csv" for name in attacks()} <= read
    refused = {file.path: file.reason for file in result.skipped}
    assert refused["huge.txt"] == "1000000000 bytes, more than the limit of 20000000"
    assert {"zeros.docx", "zeros.xlsx", "laughs.docx", "laughs.epub", "path.epub", "deep.json", "line.csv"} <= set(
        refused
    )
    assert "unpacks from" in refused["zeros.docx"] and "unpacks from" in refused["zeros.xlsx"]
    assert "a line of 2000000 characters" in refused["line.csv"]
    assert all("root:" not in document.text for document in result.documents), "a file was read through another"
    assert seconds < 40, refused


@LINUX
def test_a_gigabyte_in_one_line_does_not_fill_the_memory(tmp_path: Path) -> None:
    with (tmp_path / "huge.txt").open("wb") as file:
        file.truncate(1_000_000_000)
    (tmp_path / "next.txt").write_text("next")
    result = load_documents(tmp_path, limits=Limits(max_bytes=2_000_000_000, memory_mb=256))
    assert [file.reason for file in result.skipped] == ["needs more than 256 MB of memory to read"]
    assert [document.id for document in result.documents] == ["next.txt"]


# --- many files ------------------------------------------------------------------------------------------------------


def held_documents() -> int:
    return sum(type(thing) is Document for thing in gc.get_objects())


def test_many_files_stream_in_order_and_few_are_held(tmp_path: Path) -> None:
    for i in range(600):
        (tmp_path / f"{i:04}.{'csv' if i % 3 else 'md'}").write_text(f"a,b\n{i},text\n")
    names, most = [], 0
    for number, found in enumerate(stream_documents(tmp_path)):
        assert isinstance(found, Document) and str(number) in found.text
        names.append(found.id)
        if number % 50 == 0:
            most = max(most, held_documents())
    assert names == sorted(names) and len(names) == 600
    assert most <= 40 * (os.cpu_count() or 1)


def test_leaving_a_stream_early_ends_its_workers(tmp_path: Path) -> None:
    for i in range(200):
        (tmp_path / f"{i}.csv").write_text("a,b\n")
    code = (
        "import sys; from pathlib import Path; from ragtune.corpus.load import stream_documents\n"
        "for found in stream_documents(Path(sys.argv[1])): break\n"
        "del found; import gc; gc.collect()\n"
        "import subprocess; print(subprocess.run(['ps', '--ppid', str(__import__('os').getpid()), '-o', 'args='], "
        "capture_output=True, text=True).stdout.count('sandbox'))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("0", 0), done.stderr
