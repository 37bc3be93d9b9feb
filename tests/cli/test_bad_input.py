"""Whatever is wrong with input, machine or timing: one line says so, the exit code is not 0, and nothing made before
is lost."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from ragtune import store
from ragtune.session import Session
from ragtune.testing import HashEmbedder, ScriptedGenerator, tiny_model

Cli = Callable[..., CompletedProcess[str]]
REAL_EMBEDDER = Session.__dict__["embedder"]
QUESTION = "Who measures the ice?"
WRITTEN = ("indexes", "adapters", "runs", "reports")


def snapshot() -> dict[str, str]:
    """Every file below the folders that ragtune writes, but for locks, with its hash."""
    files = (path for place in WRITTEN for path in Path(place).rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def complaint(done: CompletedProcess[str]) -> str:
    """The one line that says what is wrong."""
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def no_half_folders() -> bool:
    return not [path for place in WRITTEN for path in Path(place).rglob("*") if path.suffix in (".building", ".part")]


# --- what the commands refuse: everything made before stands as it was -----------------------------------------------


def nothing() -> None:
    pass


def replacing(path: str, old: str, new: str, count: int = 1) -> Callable[[], None]:
    def spoil() -> None:
        text = Path(path).read_text(encoding="utf-8")
        assert old in text
        Path(path).write_text(text.replace(old, new, count), encoding="utf-8")

    return spoil


def removing(*paths: str) -> Callable[[], None]:
    def spoil() -> None:
        for path in map(Path, paths):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def file_at(path: str, text: str = "in the way\n") -> Callable[[], None]:
    def spoil() -> None:
        shutil.rmtree(path, ignore_errors=True)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")

    return spoil


def flipping_a_bit(path: str) -> Callable[[], None]:
    def spoil() -> None:
        data = bytearray(Path(path).read_bytes())
        data[len(data) // 2] ^= 1
        Path(path).write_bytes(data)

    return spoil


def empty_documents() -> None:
    shutil.rmtree("documents")
    Path("documents").mkdir()


def other_base() -> None:
    tiny_model(Path("other"), seed=1)
    text = Path("ragtune.toml").read_text(encoding="utf-8")
    Path("ragtune.toml").write_text(re.sub(r'model = ".*"', 'model = "other"', text), encoding="utf-8")


def model_with_a_pickle() -> None:
    other_base()
    Path("other/pytorch_model.bin").touch()


def model_that_is(name: str) -> Callable[[], None]:
    def spoil() -> None:
        text = Path("ragtune.toml").read_text(encoding="utf-8")
        Path("ragtune.toml").write_text(re.sub(r'model = ".*"', f'model = "{name}"', text), encoding="utf-8")

    return spoil


def interrupted_run() -> None:
    store.write_json(Path("adapters/fenmere/.tune.training/inputs.json"), {"rows": "others"})


def trained_on_the_test() -> None:
    replacing("tasks/facts.jsonl", "What does a year cost?", QUESTION)()
    removing("adapters")()


FACTS = "tasks/facts.jsonl"
BROKEN = replacing(FACTS, '"split": "train"', '"split": train')
FORMAT = (f'"format_version": {store.FORMAT_VERSION}', '"format_version": 99')

REFUSALS: dict[str, tuple[Callable[[], None], tuple[str, ...], int, str]] = {
    # documents
    "no documents": (removing("documents"), ("index",), 2, r"documents does not exist; expected a folder of documents"),
    "a file of documents": (file_at("documents"), ("index",), 2, r"documents is a file; expected a folder"),
    "empty documents": (empty_documents, ("index",), 2, r"documents holds no document that can be loaded .*\.md"),
    "check without documents": (removing("documents"), ("check",), 2, r"documents does not exist"),
    # questions
    "broken line, check": (BROKEN, ("check",), 2, r"tasks/facts\.jsonl, line 1: not valid JSON"),
    "broken line, tune": (BROKEN, ("tune",), 2, r"tasks/facts\.jsonl, line 1: not valid JSON"),
    "broken line, evaluate": (BROKEN, ("evaluate",), 2, r"tasks/facts\.jsonl, line 1: not valid JSON"),
    "broken line, ask": (BROKEN, ("ask", QUESTION, "--task", "facts"), 2, r"tasks/facts\.jsonl, line 1: not valid"),
    "no question file": (removing(FACTS), ("evaluate",), 2, r"tasks/facts\.jsonl cannot be read \(No such file"),
    "empty question file": (file_at(FACTS, ""), ("evaluate",), 2, r"tasks/facts\.jsonl holds no questions"),
    "unknown key": (replacing(FACTS, '"answers"', '"answer"'), ("check",), 2, r"line 1: (missing|unknown) key"),
    "unknown label": (
        replacing(
            "tasks/routing.jsonl", 'oven, please", "answers": ["Kitchen"]', 'oven, please", "answers": ["Garden"]'
        ),
        ("evaluate",),
        2,
        r"tasks/routing\.jsonl, line \d+: 'Garden' is no label of the task, expected one of 'Kitchen'",
    ),
    "answers that are no JSON": (
        replacing("tasks/record.jsonl", r"{\"boats\"", r"{boats"),
        ("check",),
        2,
        r"tasks/record\.jsonl, line 1: answer '{boats.*' is not JSON",
    ),
    "answers that are no record": (
        replacing("tasks/record.jsonl", r"{\"boats\": 2, \"day\": \"Monday\"}", "[2]"),
        ("check",),
        2,
        r"tasks/record\.jsonl, line 1: answer '\[2\]' is a JSON list, field_match expects an object",
    ),
    "an id of two tasks": (
        replacing("tasks/record.jsonl", '"id": "record-1"', '"id": "facts-1"'),
        ("check",),
        2,
        r"id 'facts-1' stands in task 'facts' and in task 'record'; make it unique, e\.g\. 'record-facts-1'",
    ),
    "duplicate ids": (
        replacing(FACTS, '"id": "facts-7"', '"id": "facts-3"'),
        ("check",),
        2,
        r"facts\.jsonl, line 7: id 'facts-3' is already that of line 3; make it unique",
    ),
    "evidence that is nowhere, tune": (
        replacing(FACTS, "Pupils pay half", "Pupils pay a half"),
        ("tune",),
        2,
        r"question 'facts-6', document 'rules/fees\.md': the quote 'Pupils pay a half of the fee\.' does not occur",
    ),
    "evidence that is nowhere, evaluate": (
        replacing(FACTS, "Pupils pay half", "Pupils pay a half"),
        ("evaluate",),
        2,
        r"question 'facts-6'.* does not occur",
    ),
    "evidence in no document": (
        replacing(FACTS, "rules/fees.md", "rules/fines.md"),
        ("evaluate",),
        2,
        r"question 'facts-5', document 'rules/fines\.md': there is no such document",
    ),
    "trained on the test": (
        trained_on_the_test,
        ("tune",),
        1,
        r"lint found 1 errors in 36 training rows: facts-5: this",
    ),
    # settings and flags
    "no config": (removing("ragtune.toml"), ("index",), 2, r"there is no ragtune\.toml; write one with: ragtune init"),
    "no such config": (nothing, ("ask", QUESTION, "-c", "elsewhere"), 2, r"there is no elsewhere; write one with"),
    "unknown setting": (
        replacing("ragtune.toml", "passage_tokens", "passage_size"),
        ("index",),
        2,
        r"ragtune\.toml: unknown key index\.passage_size; expected one of: embedder,",
    ),
    "no TOML": (replacing("ragtune.toml", "[index]", "[index"), ("evaluate",), 2, r"ragtune\.toml is not valid TOML"),
    "value out of range": (nothing, ("tune", "--epochs", "-1"), 2, r"tune\.epochs = -1\.0: .* greater than 0"),
    "value without end": (nothing, ("tune", "--epochs", "inf"), 2, r"tune\.epochs = inf: .* finite"),
    "no passages": (nothing, ("search", QUESTION, "-k", "0"), 2, r"k = 0: at least one passage must be asked for"),
    "no passages for ask": (nothing, ("ask", QUESTION, "-k", "0"), 2, r"retrieval\.k = 0: "),
    "unknown method": (
        removing("adapters"),
        ("tune", "--method", "magic"),
        2,
        r"unknown method 'magic'; expected auto",
    ),
    "unknown language": (
        replacing("ragtune.toml", "[index]\n", '[index]\nlanguage = "elvish"\n'),
        ("index",),
        2,
        r"index\.language = 'elvish' is unknown; expected none or one of: ",
    ),
    "unknown metric": (
        replacing("ragtune.toml", "[tasks.facts]\n", '[tasks.facts]\nmetric = "charm"\n'),
        ("evaluate",),
        2,
        r"tasks\.facts: metric 'charm' does not fit format 'short'; expected one of: token_f1, exact_match, rouge_l",
    ),
    "metric that does not fit": (
        replacing("ragtune.toml", "[tasks.routing]\n", '[tasks.routing]\nmetric = "token_f1"\n'),
        ("index",),
        2,
        r"tasks\.routing: metric 'token_f1' does not fit format 'label'; expected one of: accuracy",
    ),
    "prices in two units": (
        replacing("ragtune.toml", "[tune]\n", "[prices]\nprompt = 0.15\noutput = 0.0000006\n\n[tune]\n"),
        ("evaluate",),
        2,
        r"prices: an output token costs 4e-06 times a prompt token; give both prices per 1,000 tokens",
    ),
    "a price with its unit": (
        replacing("ragtune.toml", "[tune]\n", '[prices]\nprompt = "0.15 USD"\n\n[tune]\n'),
        ("evaluate",),
        2,
        r"prices\.prompt = '0\.15 USD': Input should be a valid number",
    ),
    "no arm that can win": (
        nothing,
        ("evaluate", "--arm", "oracle"),
        2,
        r"none of the arms oracle can win task 'facts'; add one that can",
    ),
    "no test questions": (
        replacing(FACTS, '"split": "test"', '"split": "dev"', 12),
        ("evaluate", "--task", "facts"),
        2,
        r"task 'facts' has no test questions; add some to its question file",
    ),
    "unknown task, tune": (nothing, ("tune", "--task", "poems"), 2, r"unknown task 'poems'; tasks are: facts, routing"),
    "unknown task, evaluate": (nothing, ("evaluate", "--task", "poems"), 2, r"unknown task 'poems'; tasks are: facts"),
    "unknown task, ask": (nothing, ("ask", QUESTION, "--task", "poems"), 2, r"unknown task 'poems'; tasks are: facts"),
    "unknown arm, ask": (nothing, ("ask", QUESTION, "--arm", "magic"), 2, r"unknown arm 'magic'; expected one of: "),
    "unknown arm, evaluate": (nothing, ("evaluate", "--arm", "magic"), 2, r"unknown arm 'magic'; expected one of: "),
    "oracle": (nothing, ("ask", QUESTION, "--arm", "oracle"), 2, r"the oracle arm needs gold evidence"),
    "empty question": (nothing, ("ask", ""), 2, r"the question is empty"),
    "blank question": (nothing, ("ask", " \n"), 2, r"the question is empty"),
    "no question": (nothing, ("ask",), 2, r"no question given; write it as an argument"),
    "empty query": (nothing, ("search", ""), 2, r"the query is empty"),
    "endless query": (nothing, ("search", "boat " * 300), 2, r"a text of 302 tokens is longer than hash reads"),
    "init over a config": (nothing, ("init", "documents"), 2, r"ragtune\.toml exists already; .* --force"),
    "init without documents": (nothing, ("init", "nowhere", "--force"), 2, r"nowhere is not a folder"),
    # what has to be made first
    "search without index": (removing("indexes"), ("search", QUESTION), 1, r"there is no index at .*: ragtune index"),
    "ask without index": (
        removing("indexes", "runs"),
        ("ask", QUESTION),
        1,
        r"there is no index at indexes/fenmere; make one with: ragtune index",
    ),
    "tune without index": (removing("indexes"), ("tune",), 1, r"there is no index at .*: ragtune index"),
    "evaluate without index": (removing("indexes"), ("evaluate",), 1, r"there is no index at .*: ragtune index"),
    "report without run": (removing("runs"), ("report",), 1, r"no finished run at runs/fenmere; .*: ragtune evaluate"),
    "ask without adapter": (
        removing("adapters/fenmere/raft"),
        ("ask", QUESTION, "--arm", "raft"),
        1,
        r"there is no adapter at adapters/fenmere/raft; make it with: ragtune tune --arm raft",
    ),
    "evaluate without adapter": (
        removing("adapters/fenmere/raft"),
        ("evaluate", "--arm", "raft"),
        2,
        r"arm raft needs an adapter; make it with: ragtune tune --arm raft",
    ),
    # what does not belong together
    "adapter for another base": (
        other_base,
        ("ask", QUESTION, "--arm", "tune"),
        1,
        r"adapters/fenmere/tune was trained on .* \(fingerprint \w{12}\), the base at hand has \w{12}; tune again",
    ),
    "resuming another run": (
        interrupted_run,
        ("tune", "--arm", "tune", "--epochs", "2", "--resume"),
        1,
        r"holds an interrupted run with other inputs: base was not set, now .* tune without --resume",
    ),
    "index of another version": (
        replacing("indexes/fenmere/manifest.json", *FORMAT),
        ("search", QUESTION),
        1,
        r"indexes/fenmere has format version 99, this ragtune reads \d; make the index again",
    ),
    "adapter of another version": (
        replacing("adapters/fenmere/raft/manifest.json", *FORMAT),
        ("ask", QUESTION, "--arm", "raft"),
        1,
        r"adapters/fenmere/raft has format version 99, this ragtune reads \d; make the adapter again",
    ),
    "run of another version": (
        replacing("runs/fenmere/manifest.json", *FORMAT),
        ("report",),
        1,
        r"runs/fenmere has format version 99, this ragtune reads \d; make the run again",
    ),
    # damage
    "damaged vectors": (
        flipping_a_bit("indexes/fenmere/vectors.faiss"),
        ("search", QUESTION),
        1,
        r"indexes/fenmere: vectors\.faiss is damaged .*; make the index again",
    ),
    "damaged adapter, ask": (
        flipping_a_bit("adapters/fenmere/raft/adapter_model.safetensors"),
        ("ask", QUESTION, "--arm", "raft"),
        1,
        r"adapters/fenmere/raft: adapter_model\.safetensors is damaged .*; make the adapter again",
    ),
    "damaged adapter, evaluate": (
        flipping_a_bit("adapters/fenmere/raft/adapter_model.safetensors"),
        ("evaluate", "--margin", "0.1"),
        1,
        r"adapters/fenmere/raft: adapter_model\.safetensors is damaged .*; make the adapter again",
    ),
    "damaged run, report": (flipping_a_bit("runs/fenmere/rows.jsonl"), ("report",), 1, r"rows\.jsonl is damaged"),
    "damaged run, ask": (flipping_a_bit("runs/fenmere/router.npz"), ("ask", QUESTION), 1, r"router\.npz is damaged"),
    "file lost from index": (
        removing("indexes/fenmere/passages.jsonl"),
        ("ask", QUESTION, "--arm", "retrieve"),
        1,
        r"indexes/fenmere: passages\.jsonl is missing; make the index again",
    ),
    "manifest lost": (removing("indexes/fenmere/manifest.json"), ("search", QUESTION), 1, r"has no manifest\.json"),
    "manifest edited": (
        replacing("indexes/fenmere/manifest.json", '"documents": 6', '"documents": 7'),
        ("search", QUESTION),
        1,
        r"manifest\.json is damaged or was edited; make the index again",
    ),
    "manifest cut": (file_at("runs/fenmere/manifest.json", "{"), ("report",), 1, r"manifest\.json is not valid JSON"),
    # models
    "unknown model, show": (
        nothing,
        ("models", "show", "gpt"),
        1,
        r"unknown model 'gpt': expected one of smollm2-135m",
    ),
    "unknown model, prepare": (nothing, ("models", "prepare", "gpt"), 1, r"unknown model 'gpt': expected one of "),
    "unknown model, ask": (model_that_is("gpt"), ("ask", QUESTION), 1, r"unknown model 'gpt': expected one of smollm2"),
    "unknown model, tune": (model_that_is("gpt"), ("tune",), 1, r"unknown model 'gpt': expected one of smollm2"),
    "unknown model, evaluate": (
        model_that_is("gpt"),
        ("evaluate",),
        1,
        r"unknown model 'gpt': expected one of smollm2",
    ),
    "folder without model": (model_that_is("tasks"), ("ask", QUESTION), 1, r"tasks is not a model folder"),
    "model with a pickle": (
        model_with_a_pickle,
        ("ask", QUESTION),
        1,
        r"other holds pytorch_model\.bin, which could run",
    ),
    # places that cannot be written
    "a file for all indexes": (file_at("indexes"), ("index",), 1, r"cannot write indexes/fenmere: "),
    "a file for the index": (file_at("indexes/fenmere"), ("index",), 1, r"indexes/fenmere is a file; ragtune writes a"),
    "a file for all adapters": (file_at("adapters"), ("tune",), 1, r"cannot write adapters/fenmere/\.raft\.training: "),
    "a file for all runs": (file_at("runs"), ("evaluate",), 1, r"cannot write runs/fenmere"),
    "a file for all reports": (file_at("reports"), ("report",), 1, r"cannot write reports/fenmere: "),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_one_line_says_what_is_wrong(cli: Cli, made_project: Path, case: str) -> None:
    spoil, arguments, code, message = REFUSALS[case]
    spoil()
    before = snapshot()
    done = cli(*arguments)
    assert re.search(message, complaint(done)), done.stderr
    assert (done.returncode, done.stdout) == (code, "")
    assert snapshot() == before
    assert no_half_folders()


@pytest.mark.parametrize(
    "arguments", [("search", QUESTION), ("ask", QUESTION, "--arm", "retrieve", "--task", "facts"), ("tune",)]
)
def test_an_index_of_another_embedder(
    cli: Cli, made_project: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr(Session, "embedder", property(lambda _: HashEmbedder(name="other")))
    before = snapshot()
    done = cli(*arguments)
    assert done.returncode == 1
    assert re.search(r"was built with embedder hash \(\w+\), the one at hand is other \(\w+\); index", complaint(done))
    assert snapshot() == before


def test_an_unknown_embedder(cli: Cli, made_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "embedder", REAL_EMBEDDER)
    before = snapshot()
    done = cli("index", "--embedder", "gpt")
    assert done.returncode == 1
    assert "unknown model 'gpt': expected one of smollm2-135m-instruct, all-minilm-l6-v2" in complaint(done)
    assert snapshot() == before


def test_a_folder_of_somebody_else_is_left_alone(cli: Cli, project: Path) -> None:
    file_at("indexes/fenmere/letter.txt", "Dear all")()
    done = cli("index")
    assert done.returncode == 1
    assert "indexes/fenmere exists and is not a folder that ragtune wrote" in complaint(done)
    assert Path("indexes/fenmere/letter.txt").read_text() == "Dear all"
    assert no_half_folders()


@pytest.mark.parametrize("command", ["index", "evaluate", "report"])
def test_a_read_only_place(cli: Cli, made_project: Path, command: str) -> None:
    place = Path({"index": "indexes", "evaluate": "runs", "report": "reports"}[command])
    removing(str(place / "fenmere"))()
    place.chmod(0o555)
    if os.access(place, os.W_OK):
        pytest.skip("this user may write anywhere")
    try:
        done = cli(command)
    finally:
        place.chmod(0o755)
    assert done.returncode == 1
    assert "Permission denied" in complaint(done)


def test_damage_is_mended_by_making_it_again(cli: Cli, made_project: Path) -> None:
    flipping_a_bit("indexes/fenmere/vectors.faiss")()
    assert "written" in cli("index").stdout
    assert cli("search", QUESTION).returncode == 0
    flipping_a_bit("runs/fenmere/rows.jsonl")()
    assert "written" in cli("evaluate").stdout
    assert cli("report").returncode == 0


# --- documents that cannot be used -----------------------------------------------------------------------------------


def encrypted_pdf() -> bytes:
    from pypdf import PdfWriter

    writer = PdfWriter()
    writer.add_blank_page(100, 100)
    writer.encrypt("password", algorithm="RC4-128")
    file = BytesIO()
    writer.write(file)
    return file.getvalue()


UNUSABLE: dict[str, tuple[Callable[[], bytes], str]] = {
    "binary.md": (lambda: b"\0\1\2 a program", "binary"),
    "nothing.txt": (lambda: b"", "empty"),
    "blank.md": (lambda: b" \n\n", "empty"),
    "line.txt": (lambda: b"word " * 250_000, "a line of 1250000 characters, more than the limit of 1000000"),
    "odd.txt": (lambda: b"\xff\xfeh\0a\0l", "cannot be read (UnicodeDecodeError"),
    "secret.pdf": (encrypted_pdf, "encrypted"),
    "broken.pdf": (lambda: b"%PDF-1.7\n%%EOF", "cannot be read"),
    "broken.docx": (lambda: b"PK\3\4", "cannot be read (BadZipFile"),
    "bare.html": (lambda: b"<html><body><script>x()</script></body></html>", "no text"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_document_is_named(cli: Cli, made_project: Path, name: str) -> None:
    make, reason = UNUSABLE[name]
    before = snapshot()
    Path("documents", name).write_bytes(make())
    strict = cli("index", "--strict")
    assert strict.returncode == 2
    assert complaint(strict).startswith(f"error: documents: 1 skipped: {name}: {reason}")
    assert snapshot() == before

    lenient = cli("index")
    assert lenient.returncode == 0
    (warning,) = [line for line in lenient.stderr.splitlines() if line.startswith("warning:")]
    assert warning.startswith(f"warning: skipped {name}: {reason}")
    assert "6 documents" in lenient.stdout
    assert snapshot() == before  # the documents that can be used are those of before


def test_several_unusable_documents_have_a_warning_each(cli: Cli, project: Path) -> None:
    for name, (make, _) in UNUSABLE.items():
        Path("documents", name).write_bytes(make())
    Path("documents/a\nb.md").touch()
    Path("documents/link.md").symlink_to(project / "ragtune.toml")
    done = cli("index", "--json")
    assert done.returncode == 0
    assert done.stderr.count("warning: skipped ") == len(UNUSABLE) + 2
    assert all(line.startswith("warning: skipped ") for line in done.stderr.splitlines() if "skipped" in line)
    assert [line for line in done.stderr.splitlines() if line.startswith("b.md")] == []
    skipped = {item["path"]: item["reason"] for item in json.loads(done.stdout)["skipped"]}
    assert skipped.keys() == {*UNUSABLE, "a\nb.md", "link.md"}
    assert skipped["link.md"] == "a symlink out of the folder, not followed"


def test_an_unreadable_document_is_named(cli: Cli, project: Path) -> None:
    Path("documents/rules/fees.md").chmod(0)
    if os.access("documents/rules/fees.md", os.R_OK):
        pytest.skip("this user may read anything")
    assert "rules/fees.md: cannot be read" in complaint(cli("index", "--strict"))
    assert "warning: skipped rules/fees.md: cannot be read" in cli("index").stderr


# --- others at work, and commands that are stopped -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "arguments"),
    [
        ("indexes/fenmere", ("index", "--passage-tokens", "64")),
        ("adapters/fenmere/.raft.training", ("tune", "--epochs", "2")),
        ("runs/fenmere.answers", ("evaluate", "--margin", "0.1")),
    ],
)
def test_another_process_is_writing(cli: Cli, made_project: Path, place: str, arguments: tuple[str, ...]) -> None:
    before = snapshot()
    with store.locked(Path(place)):
        done = cli(*arguments)
    assert done.returncode == 1
    assert f"another ragtune process is writing {place}; wait until it ends" in complaint(done)
    assert snapshot() == before


START = """\
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
from ragtune.session import Session
from ragtune.testing import HashEmbedder, ScriptedGenerator
Session.embedder = property(lambda self: HashEmbedder())

def wait():
    print("ready", flush=True)
    time.sleep(60)
"""
SCRIPTED = """
generator = ScriptedGenerator(lambda messages: "yes")
Session.generator = lambda self, weights, keep_others=True: generator
"""
FLOAT32 = """
import torch
from ragtune.generator import generate, train
generate.best_dtype = train.best_dtype = lambda: torch.float32
"""
MAIN = """
from ragtune.cli import main
sys.argv[0] = "ragtune"
main()
"""
WAIT_INDEX = """
class Slow(HashEmbedder):
    def embed(self, texts):
        wait()
Session.embedder = property(lambda self: Slow())
"""
WAIT_EVALUATE = """
class Slow(ScriptedGenerator):
    def generate(self, prompts, most):
        if len(self.prompts) > 60:
            wait()
        return super().generate(prompts, most)
generator.__class__ = Slow
"""
WAIT_TUNE = """
from ragtune.cli import output
output._Lines.training = lambda self, step: wait() if step.step == 3 else None
"""


def interrupt(code: str, *arguments: str) -> CompletedProcess[str]:
    """Start the command in a process of its own and send it Ctrl-C when it is in the middle of its work."""
    command = [sys.executable, "-c", START + code + MAIN, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert ready == "ready\n", err
        return CompletedProcess(arguments, process.returncode, out, err)


def test_ctrl_c_while_indexing(cli: Cli, project: Path) -> None:
    done = interrupt(WAIT_INDEX, "index")
    assert done.returncode == 130
    assert complaint(done).startswith("error: interrupted; finished work is kept")
    assert not Path("indexes/fenmere").exists()
    assert no_half_folders()
    assert "written: 6 documents" in cli("index").stdout

    before = snapshot()
    assert interrupt(WAIT_INDEX, "index", "--passage-tokens", "64").returncode == 130
    assert snapshot() == before
    assert cli("search", QUESTION).returncode == 0


def test_ctrl_c_while_evaluating(cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("index").returncode == 0
    done = interrupt(SCRIPTED + WAIT_EVALUATE, "evaluate")
    assert done.returncode == 130
    complaint(done)
    assert not Path("runs/fenmere").exists()
    assert no_half_folders()
    log = Path("runs/fenmere.answers.jsonl")
    answered = log.read_text().splitlines()
    assert answered
    generator = ScriptedGenerator(lambda _: "yes")
    monkeypatch.setattr(Session, "generator", lambda self, weights, keep_others=True: generator)
    assert cli("evaluate").returncode == 0
    assert log.read_text().splitlines()[: len(answered)] == answered
    keys = [row["key"] for row in store.read_jsonl(log)]
    assert len(set(keys)) == len(keys) > len(answered)


def test_ctrl_c_while_tuning(cli: Cli, project: Path, made: Path, fp32: None) -> None:
    assert cli("index").returncode == 0
    done = interrupt(FLOAT32 + WAIT_TUNE, "tune", "--arm", "tune")
    assert done.returncode == 130
    complaint(done)
    assert not Path("adapters/fenmere/tune").exists()
    assert no_half_folders()
    resumed = json.loads(cli("tune", "--arm", "tune", "--resume", "--json").stdout)
    never_stopped = store.read_manifest(made / "adapters/fenmere/tune", "adapter")
    assert resumed["losses"] == never_stopped["losses"]
    ours = store.open_folder(Path("adapters/fenmere/tune"), "adapter")["files"]
    assert ours["adapter_model.safetensors"] == never_stopped["files"]["adapter_model.safetensors"]


def on_a_full_disk(code: str, *arguments: str) -> CompletedProcess[str]:
    """No file of the command can grow beyond 4,000 bytes."""
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
    command = [sys.executable, "-c", START + code + limit + MAIN, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("", ("index", "--passage-tokens", "64")),
        (SCRIPTED, ("evaluate", "--arm", "prompt", "--arm", "retrieve")),
        (FLOAT32, ("tune", "--arm", "tune", "--epochs", "2")),
        ("", ("report",)),
    ],
    ids=["index", "evaluate", "tune", "report"],
)
def test_a_full_disk(cli: Cli, made_project: Path, code: str, arguments: tuple[str, ...]) -> None:
    if arguments == ("report",):
        removing("reports")()
    before = {path: digest for path, digest in snapshot().items() if "answers" not in path}
    log = Path("runs/fenmere.answers.jsonl").read_text()
    done = on_a_full_disk(code, *arguments)
    assert done.returncode == 1
    assert "cannot write " in complaint(done)
    after = snapshot()
    assert {path: after.get(path) for path in before} == before
    assert no_half_folders()
    assert Path("runs/fenmere.answers.jsonl").read_text() == log
