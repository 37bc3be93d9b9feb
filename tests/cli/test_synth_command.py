"""`ragtune synth` as somebody meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from ragtune.session import Session
from ragtune.testing import ScriptedGenerator

Cli = Callable[..., CompletedProcess[str]]


@pytest.fixture(autouse=True)
def writer(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reply(messages: object) -> str:
        statement, _, rest = messages[-1].content.partition("\n")  # type: ignore[index]
        words = statement.split(": ", 1)[1].replace("____", "").rstrip(".")
        return f"{rest.split(chr(34))[1]} is it that {words}?"

    monkeypatch.setattr(Session, "generator_for", lambda self, arm: ScriptedGenerator(reply))


def test_the_report(cli: Cli) -> None:
    assert cli("index").returncode == 0
    done = cli("synth", "--questions", "5", "--keep-rejected", "left.jsonl")
    assert done.returncode == 0, done.stderr
    first, second, *rest = done.stdout.splitlines()
    assert first.startswith("tasks/synthetic.jsonl: ") and first.endswith("; split by document, seed 17")
    assert second.split(" replies, ")[1].startswith("5 pairs kept, ")
    assert "Add this to ragtune.toml:" in rest
    assert "[tasks.synthetic]" in rest
    assert rest[-1].startswith("Next: read some of them")
    assert Path("left.jsonl").exists()


def test_json_and_add(cli: Cli) -> None:
    cli("index")
    done = cli("synth", "--questions", "5", "--per-passage", "3", "--shares", "100:0:0", "--add", "--json")
    value = json.loads(done.stdout)
    assert value["questions"] == {"train": 5, "dev": 0, "test": 0}
    assert value["replies"] == 5 + sum(value["rejected"].values())
    assert (value["task"], value["section"], value["shared_documents"]) == ("synthetic", "", 0)
    assert cli("check").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shares", "70"), "expected TRAIN:DEV:TEST"),
        (("--shares", "a:b:c"), "expected TRAIN:DEV:TEST"),
        (("--shares", "0:0:0"), "expected those of train, dev and test"),
        (("--filter", "good"), "is not one of"),
        (("--questions", "0"), "is not in the range"),
        (("--name", "facts"), "exists already"),
        (("--generator", "big"), "unknown generator 'big'"),
    ],
)
def test_what_is_refused(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    cli("index")
    done = cli("synth", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_without_an_index(cli: Cli) -> None:
    done = cli("synth")
    assert done.returncode == 1
    assert "there is no index" in done.stderr
