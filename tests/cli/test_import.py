"""`ragtune import` as somebody meets it: what it says, what it writes, what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from ragtune.config import load_config

Cli = Callable[..., CompletedProcess[str]]

ROWS = [
    {"id": "1", "split": "train", "question": "Price?", "answer": "£5", "context": "A boat costs £5."},
    {"id": "2", "split": "train", "question": "Tide?", "answer": "noon", "context": "The tide turns at noon."},
    {"id": "3", "split": "train", "question": "Tide?", "answer": "noon", "context": "The tide turns at noon."},
    {"id": "4", "split": "dev", "question": "Pier?", "answer": "long", "context": "The pier is long." + " Sea." * 700},
    {"id": "5", "split": "test", "question": "Fee?", "answer": "none", "context": "Dogs swim." + " Sea." * 700},
    {"id": "6", "split": "test", "question": "Age?", "answers": [], "context": "Nobody knows."},
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("lake.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def test_the_report(cli: Cli) -> None:
    done = cli("import", "lake.jsonl", "--into", "out")
    assert (done.returncode, done.stderr) == (0, "reading lake.jsonl\nchoosing documents\n")
    assert done.stdout == (
        "task lake written to out (read as jsonl)\n"
        "documents   5, 3 hold evidence\n"
        "questions   2 train, 1 dev, 2 test; split: the source's own\n"
        "            1 of them without an answer in the documents\n"
        "answers     short, judged by token_f1\n"
        "evidence    for 3 questions: 3 where an accepted answer stands first\n"
        "            1 answerable questions have none\n"
        "left out    1 x the same question as another one, with the same answers (first: lake.jsonl, line 3)\n"
        "note        1 x no evidence in a gold document over 3000 characters: it does not hold the answer "
        "(first: lake.jsonl, line 5)\n"
        "Next: ragtune check --config out\n"
    )
    assert cli("check", "--config", "out").returncode == 0


def test_json(cli: Cli, here: Path) -> None:
    done = cli("import", "lake.jsonl", "--into", "out", "--name", "t", "--documents", "4", "--test", "1", "--json")
    value = json.loads(done.stdout)
    assert value.pop("skipped") == [
        {"what": "the same question as another one, with the same answers", "count": 1, "first": "lake.jsonl, line 3"}
    ]
    assert {note["what"] for note in value.pop("notes")} <= {
        "no evidence in a gold document over 3000 characters: it does not hold the answer"
    }
    unanswerable = value.pop("unanswerable")
    assert value.pop("without_evidence") == 1 - unanswerable
    assert value == {
        "folder": str(here / "out"),
        "task": "t",
        "added": False,
        "source_format": "jsonl",
        "answer_format": "short",
        "metric": "token_f1",
        "labels": 0,
        "documents": 4,
        "gold": 3,
        "questions": {"train": 2, "dev": 1, "test": 1},
        "evidence": {"stated": 0, "answer": 3, "document": 0},
        "split_by": "the source's own",
        "shared_documents": 0,
    }


def test_without_documents_a_page_stands_in_and_a_second_task_needs_none(cli: Cli) -> None:
    Path("q.csv").write_text("question,answer\n" + "".join(f"What is {i}?,number {i}\n" for i in range(20)))
    done = cli("import", "q.csv", "--into", "out")
    assert "documents   none; documents/q/about.md stands in, to have something to index\n" in done.stdout
    done = cli("import", "q.csv", "--into", "out", "--name", "again")
    assert done.stdout.startswith("task again added to out (read as csv)\ndocuments   none\n")
    assert list(load_config("out").tasks) == ["q", "again"]
    assert cli("check", "--config", "out").returncode == 0, "the same seed splits the same questions in the same way"


def test_what_the_new_ragtune_toml_comments_out_is_accepted_too(cli: Cli) -> None:
    cli("import", "lake.jsonl", "--into", "out")
    text = Path("out/ragtune.toml").read_text()
    for line in ('exclude = ["drafts/*"]', "[evaluate]", "margin = 0.02", "[prices]", "prompt = 0.05", "output = 0.20"):
        assert f"\n# {line}" in text
        text = text.replace(f"# {line}", line)
    Path("out/ragtune.toml").write_text(text)
    assert load_config("out").index.exclude == ("drafts/*",)


def test_the_example_of_the_documentation(cli: Cli) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "import.md").read_text(encoding="utf-8")
    blocks = {name: text for name, text in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)}
    Path("boats.csv").write_text(blocks["csv"], encoding="utf-8")
    command, _, expected = blocks["text"].partition("\n")
    assert cli(*command.removeprefix("$ ragtune ").split()).stdout == expected
    assert cli("check", "--config", "lake").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gone.csv", "--into", "out"), "gone.csv does not exist"),
        (("lake.jsonl", "--into", "."), "is not empty and holds no ragtune.toml"),
        (("lake.jsonl", "--into", "lake.jsonl"), "is a file"),
        (("lake.jsonl", "--into", "out", "--name", "A b"), "task name 'A b' cannot be used"),
        (("lake.jsonl", "--into", "out", "--format", "squad"), "lake.jsonl, line 2: not valid JSON"),
        (("lake.jsonl", "--into", "out", "--format", "chat"), "lake.jsonl, line 1: no messages"),
        (("lake.jsonl", "--into", "out", "--format", "beir"), "lake.jsonl/qrels holds no judgements"),
        (("lake.jsonl", "--into", "out", "--format", "csv"), "lake.jsonl, line 1: columns are"),
        (("broken.jsonl", "--into", "out"), "broken.jsonl, line 2: not valid JSON"),
    ],
)
def test_what_is_refused(cli: Cli, here: Path, arguments: tuple[str, ...], message: str) -> None:
    Path("broken.jsonl").write_text('{"question": "a", "answer": "b"}\n{\n')
    before = sorted(here.rglob("*"))
    done = cli("import", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = (line for line in done.stderr.splitlines() if not line.startswith(("reading ", "choosing ")))
    assert line.startswith("error: ")
    assert message in line
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lake.jsonl",), "Missing option '--into'"),
        (("lake.jsonl", "--into", "out", "--train", "-1"), "-1 is not in the range x>=0"),
        (("lake.jsonl", "--into", "out", "--format", "xml"), "'xml' is not one of 'auto', 'jsonl'"),
    ],
)
def test_wrong_flags(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    done = cli("import", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
