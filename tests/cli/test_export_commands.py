"""`ragtune merge` and `ragtune export` as somebody meets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

Cli = Callable[..., CompletedProcess[str]]
NAME = "fenmere"


@pytest.fixture(autouse=True)
def project(made_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny project with everything made, in fp32, and a short probe."""
    monkeypatch.setattr("ragtune.generator.merge.best_dtype", lambda: torch.float32)
    with (made_project / "ragtune.toml").open("a", encoding="utf-8") as file:
        file.write("\n[export]\nprobe_questions = 6\n")


def test_merge_says_how_it_compares(cli: Cli) -> None:
    done = cli("merge")
    assert done.returncode == 0, done.stderr
    assert f"models/{NAME}/raft written" in done.stdout
    assert "6 probe questions: 100.0% of the answers are the adapter's word for word" in done.stdout
    shown = json.loads(cli("merge", "--json").stdout)
    assert (shown["reused"], shown["parity"]["agreement"], shown["failures"]) == (True, 1.0, [])


def test_export_exits_with_1_when_it_drifts_and_with_0_when_forced(cli: Cli) -> None:
    done = cli("export", "--to", "gguf", "--quantise", "q4_1")
    assert done.returncode == 1
    assert "error: what was written is not the model that was trained" in done.stderr
    assert "' became '" in done.stderr
    assert not Path("exports", NAME, "raft-q4_1").exists()
    forced = cli("export", "--to", "gguf", "--quantise", "q4_1", "--force")
    assert forced.returncode == 0
    assert "warning: " in forced.stderr
    assert Path("exports", NAME, "raft-q4_1", "manifest.json").exists()


def test_a_dataset_needs_no_probe(cli: Cli) -> None:
    shown = json.loads(cli("export", "--to", "openai", "--into", "rows", "--json").stdout)
    assert shown == {"folder": "rows", "parity": None, "failures": [], "reused": False}
    assert "is up to date" in cli("export", "--to", "openai", "--into", "rows").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export",), "Missing option '--to'"),
        (("export", "--to", "onnx"), "'onnx' is not one of 'gguf', 'openai'"),
        (("export", "--to", "gguf", "--quantise", "q2"), "export.quantise = 'q2'"),
        (("merge", "--arm", "oracle"), "'oracle' is not one of 'raft', 'tune'"),
    ],
)
def test_wrong_usage(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    done = cli(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
