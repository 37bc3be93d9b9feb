"""When layers are compiled, that it changes nothing but the time, and that answering takes the plain code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ragtune.config import TuneConfig
from ragtune.generator import compiled, train
from ragtune.generator.examples import TrainingRow
from ragtune.generator.methods import METHODS

MANY = 10_000_000


def test_what_was_asked_for_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_compiler", lambda: None)
    assert compiled.decide(TuneConfig(compile="on"), 1) == (True, "compile = on, as asked")
    assert compiled.decide(TuneConfig(compile="off"), MANY) == (False, "compile = off, as asked")


@pytest.mark.parametrize(
    ("tokens", "compiler", "gpu", "expected", "reason"),
    [
        (MANY, "/usr/bin/g++", False, True, "10 to 40 seconds"),
        (1_000, "/usr/bin/g++", False, False, "1,000 tokens are too few"),
        (MANY, None, False, False, "no C++ compiler"),
        (MANY, "/usr/bin/g++", True, False, "GPU"),
    ],
)
def test_auto_compiles_where_it_pays(
    monkeypatch: pytest.MonkeyPatch, tokens: int, compiler: str | None, gpu: bool, expected: bool, reason: str
) -> None:
    monkeypatch.setattr(compiled, "_compiler", lambda: compiler)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    answer, why = compiled.decide(TuneConfig(), tokens)
    assert answer is expected
    assert reason in why


def test_checkpointing_is_not_compiled() -> None:
    answer, why = compiled.decide(TuneConfig(checkpointing=True), MANY)
    assert answer is False
    assert "checkpointing" in why


def test_the_compiler_that_the_user_names_is_looked_for_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "own-c++"
    own.write_text("")
    own.chmod(0o755)
    monkeypatch.setenv("CXX", str(own))
    assert compiled._compiler() == str(own)
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", "")
    assert compiled._compiler() is None


@pytest.mark.skipif(compiled._compiler() is None, reason="torch compiles with a C++ compiler")
@pytest.mark.usefixtures("fp32")
@pytest.mark.filterwarnings("ignore")  # torch.compile's own, of things that it deprecates in itself
def test_a_compiled_run_learns_the_same(tiny: Path, facts: list[TrainingRow], tmp_path: Path) -> None:
    config = TuneConfig(epochs=2, learning_rate=1e-2, batch_size=2, rank=4, compile="off")
    _, plain = train.train(facts, tiny, METHODS["lora"], config, tmp_path / "plain")
    on = config.model_copy(update={"compile": "on"})
    model, fast = train.train(facts, tiny, METHODS["lora"], on, tmp_path / "fast")
    assert fast.losses == pytest.approx(plain.losses, rel=1e-3)
    assert fast.losses[-1] < fast.losses[0]
    assert all(layer._compiled_call_impl is None for layer in model.modules())
