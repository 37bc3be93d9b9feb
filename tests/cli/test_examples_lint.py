"""`ragtune examples`, `ragtune lint` and `ragtune tune --rows` as a user meets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

import ragtune
from ragtune import load_config

Cli = Callable[..., CompletedProcess[str]]
ROWS = Path("adapters/fenmere/raft.rows.jsonl")


@pytest.fixture
def indexed(project: Path) -> Path:
    ragtune.index(load_config(project))
    return project


def test_rows_are_written_once_and_for_all(cli: Cli, indexed: Path) -> None:
    done = cli("examples")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{ROWS} written: 36 rows: ")
    before = ROWS.read_bytes()
    assert cli("examples").returncode == 0
    assert ROWS.read_bytes() == before
    assert [json.loads(line)["question_id"] for line in before.splitlines()][:3] == ["facts-1", "facts-2", "facts-3"]


def test_rows_are_shown_as_one_reads_them(cli: Cli, indexed: Path) -> None:
    shown = cli("examples", "--show", "2").stdout
    assert shown.count("\n\n") == 2
    assert "row 1: facts/facts-1, raft\n  system    Answer in a few words." in shown
    assert "row 19: routing/" in shown
    assert "How many boats can one member keep?\n  target    [" in shown
    row = json.loads(ROWS.read_text(encoding="utf-8").splitlines()[0])
    gold = row["gold"][0]
    assert f"  [{gold + 1}]       {row['passage_ids'][gold]} (gold)\n" in shown
    assert f" (rank {row['distractor_ranks'][0]}, score {row['distractor_scores'][0]:.4f})\n" in shown
    assert cli("examples", "--show", "99").stdout.count("\n  target ") == 36


def test_counts_for_machines(cli: Cli, indexed: Path) -> None:
    done = cli("examples", "--arm", "tune", "--task", "facts", "--format", "openai", "-o", "out/chats.jsonl", "--json")
    assert json.loads(done.stdout) == {
        "file": "out/chats.jsonl",
        "format": "openai",
        "rows": 12,
        "kinds": {"plain": 10, "abstain": 2},
        "shortened": 0,
        "left_out": [],
    }
    (chat,) = (json.loads(line) for line in Path("out/chats.jsonl").read_text(encoding="utf-8").splitlines()[:1])
    assert [message["role"] for message in chat["messages"]] == ["system", "user", "assistant"]


def test_what_is_left_out_is_said(cli: Cli, indexed: Path) -> None:
    text = (indexed / "ragtune.toml").read_text(encoding="utf-8")
    (indexed / "ragtune.toml").write_text(text.replace("k = 3", "k = 3\ncontext_tokens = 64"), encoding="utf-8")
    done = cli("examples", "--json")
    left_out = json.loads(done.stdout)["left_out"]
    assert left_out[0]["reason"].endswith("more than retrieval.context_tokens = 64")
    assert f"{len(left_out)} rows are left out, e.g. facts/{left_out[0]['question']}: " in done.stderr


def test_one_format_becomes_another(cli: Cli, indexed: Path) -> None:
    Path("alpaca.json").write_text('[{"instruction": "Add.", "input": "1 2", "output": "3"}]', encoding="utf-8")
    assert cli("examples", "--rows", "alpaca.json", "--format", "sharegpt", "-o", "chats.jsonl").returncode == 0
    assert json.loads(Path("chats.jsonl").read_text(encoding="utf-8")) == {
        "conversations": [{"from": "human", "value": "Add.\n1 2"}, {"from": "gpt", "value": "3"}]
    }


def test_sound_rows(cli: Cli, indexed: Path) -> None:
    done = cli("lint")
    assert (done.returncode, done.stdout) == (0, "0 errors, 0 warnings in 36 rows\n")


def test_faulty_rows_are_shown_and_stop_lint_and_training(cli: Cli, indexed: Path) -> None:
    """Rows whose targets somebody emptied: seen by `lint`, refused by `tune`, and no adapter is made."""
    assert cli("examples").returncode == 0
    rows = [json.loads(line) | {"target": " "} for line in ROWS.read_text(encoding="utf-8").splitlines()[:5]]
    Path("edited.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = cli("lint", "edited.jsonl")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0] == "error empty-target: row 1 (facts-1): the target is empty"
    assert lines[1].endswith('How many boats can one member keep?" -> ""')
    assert lines[-2] == "error empty-target: 2 more; see them all with --json"
    assert lines[-1].startswith("5 errors, ")
    found = json.loads(cli("lint", "edited.jsonl", "--json").stdout)
    assert (found["rows"], found["errors"], [f["number"] for f in found["findings"][:5]]) == (5, 5, [1, 2, 3, 4, 5])
    refused = cli("tune", "--rows", "edited.jsonl")
    assert refused.returncode == 1
    assert "error: lint found 5 errors in 5 training rows: facts-1: the target is empty; facts-2" in refused.stderr
    assert not Path("adapters/fenmere/raft").exists()


def test_a_broken_line_is_named(cli: Cli, indexed: Path) -> None:
    Path("rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a"}\n', encoding="utf-8")
    for command in (("lint", "rows.jsonl"), ("tune", "--rows", "rows.jsonl"), ("examples", "--rows", "rows.jsonl")):
        done = cli(*command)
        assert done.returncode == 2
        expected = "error: rows.jsonl, line 2: no output; expected instruction and output (Alpaca)\n"
        assert done.stderr.endswith(expected)


def test_a_base_without_a_chat_template(cli: Cli, indexed: Path, tiny_generator: Path) -> None:
    from transformers import AutoTokenizer

    bare = indexed / "bare"
    bare.mkdir()
    for path in tiny_generator.iterdir():
        (bare / path.name).write_bytes(path.read_bytes())
    (bare / "chat_template.jinja").unlink()
    assert not AutoTokenizer.from_pretrained(bare).chat_template
    text = (indexed / "ragtune.toml").read_text(encoding="utf-8")
    (indexed / "ragtune.toml").write_text(text.replace(str(tiny_generator), str(bare)), encoding="utf-8")
    for command in ("examples", "lint", "tune"):
        done = cli(command)
        assert done.returncode == 1
        assert "the tokenizer has no chat template; use an instruction-tuned model" in done.stderr
