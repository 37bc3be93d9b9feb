"""The training benchmark divides what it says, and its contenders learn the same from the same rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ragtune.generator.examples import TrainingRow
from ragtune.types import Message

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
MODULES = ("bench_training", "training_parts", "peer_trainer", "peer_trl", "generated")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def bench(scripts: None) -> ModuleType:
    return import_module("bench_training")


@pytest.fixture
def trainer(scripts: None) -> ModuleType:
    return import_module("peer_trainer")


@pytest.fixture
def parts(scripts: None) -> ModuleType:
    return import_module("training_parts")


@pytest.fixture
def trl(scripts: None) -> ModuleType:
    return import_module("peer_trl")


def contender(speed: float, loss: float, peak: int = 1, **more: Any) -> dict[str, Any]:
    figures = {"tokens_per_second": speed, "loss": loss, "peak_bytes": peak, "threads": 2, "versions": {"torch": "2"}}
    return figures | more


def a_case(bench: ModuleType, **contenders: dict[str, Any]) -> dict[str, Any]:
    facts = {"rows": 24, "tokens": 600.0, "batch": 4, "loss_before": 3.0}
    return facts | {"contenders": bench.with_speedups(contenders)}


# --- figures ---------------------------------------------------------------------------------------------------------


def test_speed_is_that_of_the_passes_after_the_first(bench: ModuleType) -> None:
    job = {"ids": [[0] * 10, [0] * 20, [0] * 30], "batch": 2, "passes": 3}
    # Two steps a pass; the first pass ends at second 4, the other two take 6 seconds for 60 tokens each.
    assert bench.speed(job, {"ends": [2.0, 4.0, 5.0, 6.0, 7.0, 10.0]}) == pytest.approx(120 / 6)
    with pytest.raises(SystemExit, match="expected 6 optimiser steps, but one contender made 5"):
        bench.speed(job, {"ends": [2.0, 4.0, 5.0, 6.0, 7.0]})


def test_figures_by_hand(bench: ModuleType) -> None:
    raft = a_case(bench, ours=contender(900, 1.00, 4), trainer=contender(300, 1.01, 10), trl=contender(450, 0.98, 8))
    nf4 = a_case(bench, ours=contender(800, 1.0), trainer=contender(200, 1.0))
    figures = bench.summarise({"raft": raft, "nf4": nf4})
    assert (figures["speedup_vs_trainer"], figures["speedup_vs_trl"]) == (3.0, 2.0)
    assert figures["nf4_speedup_vs_trainer"] == 4.0
    assert figures["loss_gap"] == pytest.approx(1 / 0.98 - 1)  # the larger one, whichever side it is on
    assert figures["peak_ratio"] == 0.5  # by the peer that needs less
    assert json.loads(json.dumps(figures)) == figures


def test_what_was_not_measured_is_null(bench: ModuleType) -> None:
    short = a_case(bench, ours=contender(900, 1.0), trainer=contender(300, 1.0))
    figures = bench.summarise({"short": short})
    names = ("speedup_vs_trainer", "speedup_vs_trl", "nf4_speedup_vs_trainer", "peak_ratio")
    assert [figures[name] for name in names] == [None] * 4
    assert figures["loss_gap"] == 0.0


def test_the_fastest_setting_of_trl_is_the_peer(bench: ModuleType) -> None:
    contenders = {"ours": contender(9, 1.0), "trl a": contender(4, 1.0, 7), "trl b": contender(5, 1.0, 8)}
    kept = bench.keep_best(contenders)
    assert kept.keys() == {"ours", "trl"}
    assert (kept["trl"]["peak_bytes"], kept["trl"]["tried"]) == (8, {"a": 4, "b": 5})
    assert bench.keep_best({"ours": contender(9, 1.0)}).keys() == {"ours"}


def test_a_run_asks_each_contender_in_a_process_of_its_own(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    called: list[tuple[str, ...]] = []
    monkeypatch.setattr(bench.peer_trl, "prepare", lambda folder: folder / "python")

    def call(python: Path | str, script: str, *arguments: object) -> None:
        said = [str(argument) for argument in arguments]
        called.append((Path(python).name, script, *[Path(a).name for a in said if not a.startswith("{")]))
        if said[0] == "rows":
            for name, case in json.loads(said[2])["cases"].items():
                job = {"ids": [[0] * 5] * 4, "batch": case["batch"], "passes": 2}
                Path(said[1], f"{name}.json").write_text(json.dumps(job), encoding="utf-8")
        elif said[0] == "losses":
            losses = {"base": 2.0} | {adapter: 1.0 for adapter in said[3:]}
            Path(said[2]).write_text(json.dumps(losses), encoding="utf-8")
        else:
            out = next(Path(a) for a in said if Path(a).is_dir())
            result = {"ends": [1.0, 3.0], "losses": [1.0], "peak_bytes": 5, "threads": 2, "versions": {}}
            (out / "result.json").write_text(json.dumps(result), encoding="utf-8")

    monkeypatch.setattr(bench, "call", call)
    figures = bench.run(["raft", "nf4"], 1, tmp_path, full=False)
    own, best = Path(sys.executable).name, bench.peer_trl.BEST["raft"]
    assert called[1:5] == [
        (own, "training_parts.py", "ours", "raft.json", "raft ours"),
        (own, "peer_trainer.py", "raft.json", "raft trainer"),
        ("python", "peer_trl.py", "train", "raft.json", f"raft trl {best}", best),
        (own, "training_parts.py", "losses", "raft.json", "raft losses.json", "adapter", "adapter", "adapter"),
    ]
    assert len(called) == 8  # TRL has no part in the case nf4
    assert figures["speedup_vs_trl"] == figures["nf4_speedup_vs_trainer"] == 1.0
    assert figures["cases"]["raft"]["contenders"]["trl"]["tokens_per_second"] == 10.0
    assert figures["cases"]["raft"]["loss_before"] == 2.0


def test_the_table_goes_between_its_own_markers(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated = bench.generated
    page = tmp_path / "page.md"
    begin, other = "<!-- generated by scripts/a.py -->", "<!-- generated by scripts/b.py -->"
    page.write_text(f"one\n{begin}\nold\n{generated.END}\ntwo\n{other}\nkept\n{generated.END}\n", encoding="utf-8")
    case = a_case(bench, ours=contender(900, 1.0, 2**30), trainer=contender(300, 1.01, 2**32))
    generated.fill(page, "a.py", bench.lines({"cases": {"raft": case}}))
    text = page.read_text(encoding="utf-8")
    assert "old" not in text
    assert "| raft: 24 of 600 tokens, 4 at a time | trainer | 300 | 3.0 x | 4.0 GB | 1.010 |" in text
    assert "| raft: 24 of 600 tokens, 4 at a time | nobody | | | | 3.000 |" in text
    assert text.endswith(f"{generated.END}\ntwo\n{other}\nkept\n{generated.END}\n")
    before = text
    with pytest.raises(SystemExit, match=r"one <!-- generated by scripts/c\.py -->"):
        generated.fill(page, "c.py", ["new"])
    assert page.read_text(encoding="utf-8") == before


# --- the contenders --------------------------------------------------------------------------------------------------


def rows(count: int) -> list[TrainingRow]:
    messages = [
        (Message("user", f"Who may bring {n} boats? " + "Answer from the passages. " * n),) for n in range(count)
    ]
    return [TrainingRow("facts", f"q{n}", "plain", messages[n], f"the {n} members") for n in range(count)]


@pytest.fixture
def job(parts: ModuleType, tiny_generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job of one case on the tiny model: two steps of two rows, twice."""
    tokenizer = parts.load_tokenizer(tiny_generator)
    encoded = [(row, *parts.encode_row(tokenizer, row)) for row in rows(6)]
    monkeypatch.setattr(parts, "encoded_rows", lambda: {"raft": encoded})
    monkeypatch.setattr(parts, "base_folder", lambda: tiny_generator)
    case = {"rows": "raft", "batch": 2, "nf4": False}
    parts.write_jobs(tmp_path, {"cases": {"raft": case}, "steps": 2, "passes": 2, "held_out": 2})
    return tmp_path / "raft.json"


def test_held_out_rows_are_never_trained_on(parts: ModuleType, job: Path, tmp_path: Path) -> None:
    written = parts.read_job(job)
    assert [len(written[key]) for key in ("ids", "prompt_lengths", "rows", "held_out")] == [4, 4, 4, 2]
    assert not [ids for ids, _ in written["held_out"] if ids in written["ids"]]
    sizes = {"cases": {"raft": {"rows": "raft", "batch": 2, "nf4": False}}, "steps": 2, "passes": 2, "held_out": 3}
    with pytest.raises(SystemExit, match="gives 6 rows for raft, too few"):
        parts.write_jobs(tmp_path, sizes)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_both_contenders_train_and_are_compared_on_held_out_rows(
    bench: ModuleType, parts: ModuleType, trainer: ModuleType, job: Path, tmp_path: Path
) -> None:
    outs = [tmp_path / "ours", tmp_path / "trainer"]
    for out in outs:
        out.mkdir()
    parts.main(["ours", str(job), str(outs[0])])
    trainer.main(str(job), str(outs[1]))
    written = parts.read_job(job)
    for out in outs:
        result = json.loads((out / "result.json").read_text(encoding="utf-8"))
        assert len(result["ends"]) == len(result["losses"]) == 4
        assert result["ends"] == sorted(result["ends"])
        assert bench.speed(written, result) > 0
        assert result["versions"]["peft"] == version("peft")
    found = parts.losses(written, [out / "adapter" for out in outs])
    before, ours, theirs = found.values()
    assert ours < before
    assert theirs < before


def test_held_out_loss_is_that_of_transformers(parts: ModuleType, tiny_generator: Path) -> None:
    model = parts.load_weights(tiny_generator, torch.float32)
    pairs = [([3, 4, 5, 6, 7], 2), ([9, 8, 7], 1)]
    sums = []
    for ids, prompt in pairs:
        labels = torch.tensor([[-100] * prompt + ids[prompt:]])
        with torch.no_grad():
            sums.append(float(model(input_ids=torch.tensor([ids]), labels=labels).loss) * (len(ids) - prompt))
    assert parts.held_out_loss(model, pairs) == pytest.approx(sum(sums) / 5, rel=1e-5)


def test_rows_are_padded_behind_with_labels_on_answers(trainer: ModuleType) -> None:
    data = trainer.labelled({"ids": [[1, 2, 3], [4, 5]], "prompt_lengths": [2, 1]})
    batch = {name: value.tolist() for name, value in trainer.pad_right(data, 9).items()}
    assert batch == {
        "input_ids": [[1, 2, 3], [4, 5, 9]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [[-100, -100, 3], [-100, 5, -100]],
    }


def test_peak_memory_counts_what_was_held(trainer: ModuleType) -> None:
    before = trainer.peak_bytes()
    held = bytearray(before + 2**26)  # more than ever before
    assert trainer.peak_bytes() >= len(held)


# --- TRL's environment -----------------------------------------------------------------------------------------------


def test_every_package_of_the_peer_is_pinned(trl: ModuleType) -> None:
    names = [line.split("==")[0] for line in trl.packages()]
    assert names == ["torch", "transformers", "peft", "accelerate", "trl", "datasets"]
    assert all(line.count("==") == 1 and line.split("==")[1] for line in trl.packages())
    assert f"transformers=={version('transformers')}" in trl.packages()
    assert set(trl.BEST.values()) <= trl.SETTINGS.keys()


def test_the_environment_is_made_once_and_anew_when_its_packages_change(
    trl: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[Sequence[str]] = []
    monkeypatch.setattr(trl.venv, "create", lambda folder, with_pip: (folder / "bin").mkdir(parents=True))
    monkeypatch.setattr(trl.subprocess, "run", lambda command, **_: commands.append(command))
    for _ in range(2):
        assert trl.prepare(tmp_path) == tmp_path / "env" / "bin" / "python"
    assert len(commands) == 1
    assert commands[0][-6:] == trl.packages()
    (tmp_path / "env" / ".ready").write_text("trl==0.1", encoding="utf-8")
    trl.prepare(tmp_path)
    assert len(commands) == 2
