"""From an adapter to folders for others: what is in them, when they are refused, and what the commands say."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

import ragtune
from ragtune import store
from ragtune.config import ProjectConfig, load_config
from ragtune.errors import ConfigError, ModelError, StoreError
from ragtune.generator.chat_formats import read_rows
from ragtune.generator.models import check_folder
from ragtune.pipeline import Watch

NAME = "fenmere"
ADAPTER = Path("adapters") / NAME / "raft"


def settings(**export: Any) -> ProjectConfig:
    return load_config(Path(), {"export.probe_questions": 6} | {f"export.{key}": v for key, v in export.items()})


@pytest.fixture
def project(made_project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny project with everything made, in fp32, as the working folder."""
    monkeypatch.setattr("ragtune.generator.merge.best_dtype", lambda: torch.float32)
    return made_project


def edit_adapter(folder: Path, **changes: Any) -> None:
    """The adapter with other facts in its manifest."""
    manifest = store.read_manifest(folder, "adapter") | changes
    kept = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"}
    with store.atomic_folder(folder, manifest) as building:
        for name, data in kept.items():
            (building / name).write_bytes(data)


# merge


def test_a_merged_model_answers_like_the_adapter_and_is_a_model_at_once(project: Path) -> None:
    done = ragtune.merge(settings())
    assert (done.folder, done.failures, done.reused) == (Path("models") / NAME / "raft", (), False)
    assert done.parity is not None
    assert (done.parity.questions, done.parity.identical, done.parity.changes) == (6, 1.0, ())
    assert done.parity.logp_difference < 1e-4
    assert check_folder(done.folder) == done.folder
    manifest = store.open_folder(done.folder, "model")
    adapter = store.read_manifest(ADAPTER, "adapter")
    assert manifest["inputs"]["adapter"] == adapter["files"]
    assert manifest["index"] == adapter["inputs"]["index"]
    assert manifest["parity"]["failures"] == []
    merged = load_config(Path(), {"generator.model": str(done.folder)})
    probe = next(store.read_jsonl(done.folder / "probe.jsonl"))
    question = probe["messages"][-1]["content"].rpartition("\n")[2]
    answer = ragtune.ask(merged, question, arm="retrieve", task=probe["task"])
    assert answer.reply.text == probe["reference"]


def test_what_is_there_is_reused_until_the_adapter_changes(project: Path) -> None:
    first = ragtune.merge(settings(), into=Path("served"))
    again = ragtune.merge(settings(), into=Path("served"))
    assert again == replace(first, reused=True)
    edit_adapter(ADAPTER, rows=3)  # the same weights: nothing to do
    assert ragtune.merge(settings(), into=Path("served")).reused
    (Path("served") / "config.json").write_text("{}", encoding="utf-8")
    assert not ragtune.merge(settings(), into=Path("served")).reused


def test_the_probe_is_the_same_each_time(project: Path) -> None:
    ragtune.merge(settings(), into=Path("one"))
    ragtune.merge(settings(), into=Path("two"))
    assert Path("one/probe.jsonl").read_bytes() == Path("two/probe.jsonl").read_bytes()
    assert len(list(store.read_jsonl(Path("one/probe.jsonl")))) == 6


def test_a_method_that_cannot_be_merged_is_refused_before_any_work(project: Path) -> None:
    edit_adapter(ADAPTER, method="prompt")
    said: list[str] = []
    with pytest.raises(ConfigError, match="method prompt cannot be merged"):
        ragtune.merge(settings(), watch=Watch(say=said.append))
    with pytest.raises(ConfigError, match="method prompt cannot be merged"):
        ragtune.export(settings(), "gguf", watch=Watch(say=said.append))
    assert said == []
    assert not Path("models").exists()


def test_without_an_adapter(project: Path) -> None:
    shutil.rmtree(ADAPTER)
    with pytest.raises(StoreError, match="there is no adapter at"):
        ragtune.merge(settings())
    with pytest.raises(ConfigError, match="arm 'oracle' has no adapter of its own"):
        ragtune.merge(settings(), "oracle")


# export --to gguf


def test_a_gguf_file_with_all_that_a_server_needs(project: Path) -> None:
    done = ragtune.export(settings(quantise="f16"), "gguf")
    assert done.folder == Path("exports") / NAME / "raft-f16"
    assert done.failures == ()
    files = {path.name for path in done.folder.iterdir()}
    assert files == {f"{NAME}-raft-f16.gguf", "Modelfile", "README.md", "probe.jsonl", "manifest.json"}
    assert (done.folder / "Modelfile").read_text(encoding="utf-8").startswith(f"FROM ./{NAME}-raft-f16.gguf\nTEMPLATE")
    fields = gguf.GGUFReader(done.folder / f"{NAME}-raft-f16.gguf").fields
    assert fields["general.name"].contents() == f"{NAME}-raft"
    assert store.open_folder(done.folder, "gguf")["quantise"] == "f16"


def test_a_file_that_drifts_is_not_put_in_place_and_its_questions_are_shown(project: Path) -> None:
    """Four bits are too few for random weights."""
    said: list[str] = []
    with pytest.raises(ModelError, match=r"not the model that was trained: .* nats a token.*nothing was put in place"):
        ragtune.export(settings(quantise="q4_1"), "gguf", watch=Watch(say=said.append))
    place = Path("exports") / NAME
    assert [path.name for path in place.iterdir() if not path.name.endswith(".lock")] == []
    assert any(" became " in line for line in said)


def test_force_puts_it_there_and_says_so_for_good(project: Path) -> None:
    done = ragtune.export(settings(quantise="q4_1"), "gguf", force=True)
    assert done.parity is not None
    assert len(done.failures) >= 1
    manifest = store.open_folder(done.folder, "gguf")
    assert manifest["parity"]["failures"] == list(done.failures)
    assert "**No.**" in (done.folder / "README.md").read_text(encoding="utf-8")
    assert ragtune.export(settings(quantise="q4_1"), "gguf", force=True) == replace(done, reused=True)
    with pytest.raises(ModelError, match="nothing was put in place"):
        ragtune.export(settings(quantise="q4_1"), "gguf")
    assert store.open_folder(done.folder, "gguf") == manifest


def test_bounds_come_from_the_settings(project: Path) -> None:
    bounds = {"min_agreement": 0.0, "max_logp_difference": 100.0}
    assert ragtune.export(settings(quantise="q4_1", **bounds), "gguf").failures == ()


def test_an_architecture_that_is_not_mapped(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragtune.generator.gguf_export.ARCHITECTURES", {"qwen2": gguf.MODEL_ARCH.QWEN2})
    with pytest.raises(ConfigError, match="models of type llama cannot be exported to GGUF yet; these can: qwen2"):
        ragtune.export(settings(), "gguf")


def test_an_unknown_format(project: Path) -> None:
    with pytest.raises(ConfigError, match="unknown format 'onnx'; expected one of: gguf, openai"):
        ragtune.export(settings(), "onnx")


# export --to openai


def test_rows_as_openai_chats(project: Path) -> None:
    done = ragtune.export(settings(), "openai")
    assert (done.folder, done.parity) == (Path("exports") / NAME / "raft-openai", None)
    chats = list(store.read_jsonl(done.folder / "train.jsonl"))
    rows = read_rows(ADAPTER / "rows.jsonl")
    assert len(chats) == len(rows) == 36
    for chat, row in zip(chats, rows, strict=True):
        assert list(chat) == ["messages"]
        assert [turn["role"] for turn in chat["messages"]] == ["system", "user", "assistant"]
        assert chat["messages"][-1]["content"] == row.target
        assert [turn["content"] for turn in chat["messages"][:-1]] == [message.content for message in row.messages]
    assert store.open_folder(done.folder, "dataset")["rows"] == 36
    assert ragtune.export(settings(), "openai").reused


def test_too_few_rows_for_openai_are_said(project: Path) -> None:
    rows = (ADAPTER / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (ADAPTER / "rows.jsonl").write_text("".join(rows[:9]), encoding="utf-8")
    edit_adapter(ADAPTER)
    said: list[str] = []
    ragtune.export(settings(), "openai", watch=Watch(say=said.append))
    assert said[-1] == "9 rows are fewer than the 10 that OpenAI's fine-tuning takes"


# Cards


def test_the_card_says_what_it_was_made_of(project: Path) -> None:
    shutil.rmtree("runs")
    done = ragtune.merge(settings(), into=Path("served"))
    card = (done.folder / "README.md").read_text(encoding="utf-8")
    adapter = store.read_manifest(ADAPTER, "adapter")
    for said in (
        f"| index | fingerprint `{adapter['inputs']['index'][:16]}` |",
        f"fingerprint `{adapter['base']['fingerprint'][:16]}`",
        "| method | lora |",
        "36 rows of the tasks facts, record, routing, from 6 documents",
        "It was asked 6 questions",
        "100.0% of the answers are the same",
        'model = "served"',
        "No run had measured the adapter",
    ):
        assert said in card


def test_scores_come_from_a_run_of_this_very_adapter(project: Path) -> None:
    ragtune.merge(settings(), into=Path("served"))
    verdicts = json.loads((Path("runs") / NAME / "verdicts.json").read_text(encoding="utf-8"))
    expected = [
        (verdict["task"], arm["arm"], arm["score"]["mean"], arm["n"])
        for verdict in verdicts
        for arm in verdict["arms"]
        if arm["arm"] == "raft"
    ]
    scores = store.read_manifest(Path("served"), "model")["scores"]
    assert [(s["task"], s["arm"], s["mean"], s["n"]) for s in scores] == expected
    assert len(expected) == 3
    assert "| facts | `raft` | token_f1 | " in Path("served/README.md").read_text(encoding="utf-8")


def test_a_run_of_another_adapter_gives_no_scores(project: Path) -> None:
    (ADAPTER / "extra.txt").write_text("x", encoding="utf-8")
    edit_adapter(ADAPTER)
    said: list[str] = []
    ragtune.merge(settings(), into=Path("served"), watch=Watch(say=said.append))
    assert store.read_manifest(Path("served"), "model")["scores"] == []
    assert "measured another adapter" in said[0]


def test_a_damaged_run_gives_no_scores(project: Path) -> None:
    (Path("runs") / NAME / "verdicts.json").write_text("[]", encoding="utf-8")
    said: list[str] = []
    ragtune.export(settings(), "openai", watch=Watch(say=said.append))
    assert "the card gets no scores: " in said[0]
    assert "verdicts.json is damaged" in said[0]
