"""Runs that survive: killed anywhere and resumed, on a full disk, with damaged checkpoints, with other inputs."""

from __future__ import annotations

import multiprocessing
import random
import resource
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from crash_run import EVENTS, IN_A_CHECKPOINT, train_until
from safetensors.torch import load_file

from ragtune import store
from ragtune.config import TuneConfig
from ragtune.errors import MismatchError, StoreError
from ragtune.generator import generate, train
from ragtune.generator.adapters import trainable
from ragtune.generator.checkpoints import SUMS, damage, differences, newest_checkpoint, prepare_work_folder, seal
from ragtune.generator.examples import TrainingRow
from ragtune.generator.methods import METHODS
from ragtune.generator.train import Progress

CONFIG = TuneConfig(epochs=4, learning_rate=1e-2, batch_size=2, save_steps=2, rank=4, alpha=8, dropout=0.1)
"""Four rows: two steps an epoch, eight in all, in another order each time; with dropout."""
FILES = ("weights.safetensors", "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth")

# Killed


class Runs:
    """Training runs in processes forked from one that has the libraries loaded already."""

    def __init__(self, rows: Sequence[TrainingRow], base: Path) -> None:
        self.rows = rows
        self.base = base
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["peft", "ragtune.generator.train"])

    def start(self, work: Path, *death: Any) -> Any:
        process = self.context.Process(target=train_until, args=(self.rows, self.base, CONFIG, work, *death))
        process.start()
        return process

    def exit_code(self, work: Path, *death: Any) -> int | None:
        process = self.start(work, *death)
        process.join(120)
        code: int | None = process.exitcode
        return code


@pytest.fixture(scope="module")
def runs(facts: list[TrainingRow], tiny: Path) -> Runs:
    return Runs(facts, tiny)


@pytest.fixture(scope="module")
def whole(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of a run that nothing happened to."""
    work = tmp_path_factory.mktemp("runs") / "whole"
    assert runs.exit_code(work) == 0
    return work


def check_same_end(work: Path, whole: Path) -> None:
    """Weights and losses bit by bit; equal losses at each step mean the same rows in the same order."""
    weights, expected = load_file(work / "final.safetensors"), load_file(whole / "final.safetensors")
    assert weights.keys() == expected.keys() and weights
    assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())
    assert store.read_json(work / "losses.json") == store.read_json(whole / "losses.json")
    assert len(set(store.read_json(whole / "losses.json"))) == 8


def deaths() -> list[tuple[str, int]]:
    """Places and steps drawn by seed: three in a step, three while a checkpoint is written."""
    draw = random.Random(4)
    return [(draw.choice(EVENTS), draw.randint(1, 7)) for _ in range(3)] + [
        (place, draw.choice((4, 6, 8))) for place in IN_A_CHECKPOINT
    ]


@pytest.mark.parametrize(("place", "step"), deaths())
def test_killed_and_resumed_it_ends_as_if_nothing_had_happened(
    runs: Runs, whole: Path, tmp_path: Path, place: str, step: int
) -> None:
    assert runs.exit_code(tmp_path, place, step) == -signal.SIGKILL
    assert not (tmp_path / "final.safetensors").exists()
    before = (step - 1) // 2 * 2  # the last checkpoint that was whole by then, at least
    found = newest_checkpoint(tmp_path)
    assert (0 if found is None else int(found.rpartition("-")[2])) >= before
    assert runs.exit_code(tmp_path) == 0
    check_same_end(tmp_path, whole)


def test_killed_twice_from_outside(runs: Runs, whole: Path, tmp_path: Path) -> None:
    """As soon as a checkpoint's folder appears, so most likely while it is written."""
    for name in ("checkpoint-2", "checkpoint-6"):
        process = runs.start(tmp_path)
        deadline = time.monotonic() + 120
        while not (tmp_path / name).exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        process.kill()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
    assert runs.exit_code(tmp_path) == 0
    check_same_end(tmp_path, whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_numbers_that_were_trained_in_stay(
    tiny: Path, facts: list[TrainingRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """peft casts an adapter that it loads into a model to fp32."""
    for module in (generate, train):
        monkeypatch.setattr(module, "best_dtype", lambda: dtype)
    expected, result = train.train(facts, tiny, METHODS["lora"], CONFIG, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train.train(facts, tiny, METHODS["lora"], CONFIG, tmp_path / "cut", interrupt_at(5))
    model, resumed = train.train(facts, tiny, METHODS["lora"], CONFIG, tmp_path / "cut")
    assert {weight.dtype for weight in trainable(model).values()} == {dtype}
    assert resumed.losses == result.losses
    assert all(torch.equal(weight, trainable(expected)[name]) for name, weight in trainable(model).items())


# Damaged or unfinished checkpoints


def interrupt_at(step: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return report


def checkpoint(work: Path, step: int, without: str = "", weights: str = FILES[0]) -> Path:
    folder = work / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in (weights, *FILES[1:]):
        if name != without:
            (folder / name).write_bytes(b"some bytes")
    seal(folder)
    return folder


def test_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for step in (2, 9, 10):
        checkpoint(tmp_path, step)
    said: list[str] = []
    assert newest_checkpoint(tmp_path, said.append) == str(tmp_path / "checkpoint-10")
    assert said == []


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "model.safetensors", "weights.safetensors"])
def test_weights_of_any_method_will_do(tmp_path: Path, weights: str) -> None:
    checkpoint(tmp_path, 3, weights=weights)
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_that_misses_a_file_is_passed_over(tmp_path: Path, name: str) -> None:
    """The Trainer itself would go on with a fresh optimizer and say nothing."""
    checkpoint(tmp_path, 1)
    checkpoint(tmp_path, 2, without=name)
    (checkpoint(tmp_path, 3) / name).unlink()
    said: list[str] = []
    assert newest_checkpoint(tmp_path, said.append) == str(tmp_path / "checkpoint-1")
    what = "a file of weights" if name == FILES[0] else name
    assert said == [
        f"checkpoint-3 is passed over: {name} is missing",
        f"checkpoint-2 is passed over: {what} missing",
    ]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["bit", "cut", "empty"])
def test_a_damaged_file_is_noticed(tmp_path: Path, name: str, harm: str) -> None:
    checkpoint(tmp_path, 1)
    file = checkpoint(tmp_path, 2) / name
    data = file.read_bytes()
    file.write_bytes({"bit": data[:-1] + bytes([data[-1] ^ 1]), "cut": data[:-1], "empty": b""}[harm])
    said: list[str] = []
    assert newest_checkpoint(tmp_path, said.append) == str(tmp_path / "checkpoint-1")
    assert said == [f"checkpoint-2 is passed over: {name} is damaged (its sha256 differs)"]


@pytest.mark.parametrize("sums", [None, "", "{", '{"optimizer.pt": "00"}'])
def test_a_checkpoint_that_was_not_sealed(tmp_path: Path, sums: str | None) -> None:
    folder = checkpoint(tmp_path, 2)
    (folder / SUMS).unlink()
    if sums is not None:
        (folder / SUMS).write_text(sums)
    assert "damaged" in damage(folder)
    assert newest_checkpoint(tmp_path) is None


@pytest.mark.usefixtures("fp32")
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    tiny: Path, facts: list[TrainingRow], tmp_path: Path
) -> None:
    """safetensors and torch read on past a flipped bit in a weight."""
    expected, result = train.train(facts, tiny, METHODS["lora"], CONFIG, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train.train(facts, tiny, METHODS["lora"], CONFIG, tmp_path / "cut", interrupt_at(7))
    file = tmp_path / "cut" / "checkpoint-6" / FILES[0]
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    assert load_file(file)
    seen: list[Progress] = []
    model, resumed = train.train(facts, tiny, METHODS["lora"], CONFIG, tmp_path / "cut", seen.append)
    assert seen[0].step == 5
    assert resumed.losses == result.losses
    assert all(torch.equal(weight, trainable(expected)[name]) for name, weight in trainable(model).items())
    assert newest_checkpoint(tmp_path / "cut") == str(tmp_path / "cut" / "checkpoint-8")


@pytest.mark.usefixtures("fp32")
def test_a_disk_that_fills_up_leaves_the_checkpoint_before(
    tiny: Path, facts: list[TrainingRow], tmp_path: Path
) -> None:
    """Files of fewer bytes than each of a checkpoint's can be written, from the second checkpoint on."""
    train.train(facts, tiny, METHODS["lora"], CONFIG, tmp_path / "whole")
    sizes = {name: (tmp_path / "whole" / "checkpoint-8" / name).stat().st_size for name in FILES}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name, size in sizes.items():
        work = tmp_path / name

        def fill(progress: Progress, size: int = size) -> None:
            if progress.step == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, before[1]))

        try:
            with pytest.raises(StoreError, match=f"cannot write {work}"):
                train.train(facts, tiny, METHODS["lora"], CONFIG, work, fill)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert newest_checkpoint(work) == str(work / "checkpoint-2")


# Runs with other inputs

INPUTS = {"rows": "a", "base": "b", "config": {"epochs": 1.0, "tasks": ["x"]}}


def test_only_a_run_with_the_same_inputs_goes_on(tmp_path: Path) -> None:
    work = tmp_path / "deep" / "work"
    prepare_work_folder(work, INPUTS, resume=True)
    checkpoint(work, 4)
    prepare_work_folder(work, INPUTS, resume=True)
    assert newest_checkpoint(work) is not None
    other = {**INPUTS, "rows": "changed", "index": "new", "config": {"epochs": 2.0, "tasks": ["x"]}}
    with pytest.raises(MismatchError) as error:
        prepare_work_folder(work, other, resume=True)
    assert str(error.value) == (
        f"{work} holds an interrupted run with other inputs: config.epochs was 1.0, now 2.0; index was not set, "
        "now new; rows was a, now changed; tune without --resume to start afresh, or restore what it was started with"
    )
    assert newest_checkpoint(work) is not None


def test_differences_are_shown() -> None:
    before = {"rows": "5" * 64, "gone": None, "config": {"rate": None, "tasks": ["x"], "same": 1}, "note": "old"}
    now = {"rows": "7" * 64, "config": {"rate": 0.1, "tasks": ["x", "y"], "same": 1}, "note": ""}
    assert differences(before, now) == [
        "config.rate was None, now 0.1",
        "config.tasks was ['x'], now ['x', 'y']",
        "gone was None, now not set",
        "note was old, now empty",
        "rows was 555555555555…, now 777777777777…",
    ]
    assert differences(before, before) == []


def test_long_values_that_begin_alike_are_told_apart() -> None:
    path = "a/very/long/path/to/some/folder/of/instructions/"
    (line,) = differences({"file": path + "one.jsonl"}, {"file": path + "two.jsonl"})
    assert "one.jsonl" in line and "two.jsonl" in line


def test_without_resume_a_run_starts_afresh(tmp_path: Path) -> None:
    work = tmp_path / "work"
    prepare_work_folder(work, INPUTS, resume=False)
    checkpoint(work, 4)
    other = {**INPUTS, "rows": "changed"}
    prepare_work_folder(work, other, resume=False)
    assert [p.name for p in work.iterdir()] == ["inputs.json"]
    prepare_work_folder(work, other, resume=True)
    with pytest.raises(MismatchError):
        prepare_work_folder(work, INPUTS, resume=True)


def test_checkpoints_whose_inputs_are_unknown_are_not_continued(tmp_path: Path) -> None:
    checkpoint(tmp_path / "work", 4)
    prepare_work_folder(tmp_path / "work", INPUTS, resume=True)
    assert newest_checkpoint(tmp_path / "work") is None
