"""Merging against its own arithmetic, for every method that can be merged, in fp32 and in bf16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, Qwen2ForCausalLM

from ragtune import store
from ragtune.config import TuneConfig
from ragtune.errors import ConfigError, MismatchError, ModelError
from ragtune.generator import merge
from ragtune.generator.adapters import attach_adapter, put_on, save
from ragtune.generator.generate import LocalGenerator, load_tokenizer, load_weights
from ragtune.generator.merge import check_mergeable, merge_adapter, save_merged, stored_dtype
from ragtune.generator.methods import METHODS
from ragtune.generator.models import check_folder, fingerprint
from ragtune.generator.nf4 import round_to_nf4
from ragtune.generator.quiet import calm_libraries
from ragtune.types import Message

CONFIG = TuneConfig(rank=4, alpha=8, dequantise="once")
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
IDS = torch.randint(3, 380, (3, 17), generator=torch.Generator().manual_seed(5))
MERGEABLE = [name for name, method in METHODS.items() if method.family not in ("bottleneck", "soft prompt")]
APART = [name for name in METHODS if name not in MERGEABLE]


@pytest.fixture(autouse=True)
def in_fp32(monkeypatch: pytest.MonkeyPatch, fp32: None) -> None:
    monkeypatch.setattr(merge, "best_dtype", lambda: torch.float32)


@pytest.fixture(scope="module")
def biased(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with biases, which two of the methods need, in bf16 files."""
    folder = tmp_path_factory.mktemp("models") / "biased"
    config = AutoConfig.for_model(
        "qwen2", **{k: getattr(AutoConfig.from_pretrained(tiny), k) for k in SHAPE}, tie_word_embeddings=True
    )
    with torch.random.fork_rng(devices=[]), calm_libraries():
        torch.manual_seed(0)
        Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        load_tokenizer(tiny).save_pretrained(folder)
    return folder


SHAPE = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "max_position_embeddings", "initializer_range", "eos_token_id", "pad_token_id"),
)


@pytest.fixture
def tuned(tmp_path: Path) -> Callable[..., Path]:
    """`tuned(base, method)`: an adapter whose every trained number was moved at random."""

    def make(base: Path, name: str, spread: float = 0.05) -> Path:
        method = METHODS[name]
        model = put_on(load_weights(base, torch.float32), method, CONFIG)
        numbers = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for value in model.parameters():
                if value.requires_grad:
                    value += spread * torch.randn(value.shape, generator=numbers)
        folder = tmp_path / name
        manifest = {
            "kind": "adapter",
            "method": name,
            "nf4": method.nf4,
            "base": {"name": "tiny", "fingerprint": fingerprint(base)},
        }
        with store.atomic_folder(folder, manifest) as building:
            save(model, method, building)
        return folder

    return make


def update(adapter: Path) -> torch.Tensor:
    """s B A of the first q_proj, from the file's numbers."""
    weights = load_file(adapter / "adapter_model.safetensors")
    (a,) = (w for name, w in weights.items() if "layers.0.self_attn.q_proj.lora_A" in name)
    (b,) = (w for name, w in weights.items() if "layers.0.self_attn.q_proj.lora_B" in name)
    return CONFIG.alpha / CONFIG.rank * (b.double() @ a.double())


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MERGEABLE)
def test_merged_weights_compute_what_base_and_adapter_do(biased: Path, tuned: Callable[..., Path], name: str) -> None:
    adapter = tuned(biased, name)
    expected = logits(attach_adapter(load_weights(biased, torch.float32), adapter, fingerprint(biased)))
    merged = merge_adapter(biased, fingerprint(biased), adapter)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    assert (logits(load_weights(biased, torch.float32)) - expected).abs().max() > 0.01
    assert not any("lora" in key or "ia3" in key for key in merged.state_dict())


def test_lora_is_merged_by_hand(tiny: Path, tuned: Callable[..., Path]) -> None:
    adapter = tuned(tiny, "lora")
    merged = merge_adapter(tiny, fingerprint(tiny), adapter).state_dict()[Q_PROJ]
    expected = load_file(tiny / "model.safetensors")[Q_PROJ].double() + update(adapter)
    torch.testing.assert_close(merged.double(), expected, rtol=0, atol=1e-6)


def test_qlora_is_merged_into_the_rounded_weights_never_into_the_base(tiny: Path, tuned: Callable[..., Path]) -> None:
    adapter = tuned(tiny, "qlora")
    merged = merge_adapter(tiny, fingerprint(tiny), adapter).state_dict()[Q_PROJ].double()
    rounded = load_weights(tiny, torch.float32)
    round_to_nf4(rounded)
    torch.testing.assert_close(merged, rounded.state_dict()[Q_PROJ].double() + update(adapter), rtol=0, atol=1e-6)
    onto_the_base = load_file(tiny / "model.safetensors")[Q_PROJ].double() + update(adapter)
    assert (merged - onto_the_base).abs().max() > 0.01


def test_nf4_values_are_those_that_answer_in_bf16(
    tiny: Path, tuned: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """bf16 rounds what NF4 unpacks to once more; training and answering saw those numbers."""
    monkeypatch.setattr(merge, "best_dtype", lambda: torch.bfloat16)
    adapter = tuned(tiny, "qlora", spread=0.0)
    merged = merge_adapter(tiny, fingerprint(tiny), adapter).state_dict()[Q_PROJ]
    answering = load_weights(tiny, torch.bfloat16)
    round_to_nf4(answering)
    assert merged.dtype == torch.float32
    assert torch.equal(merged, answering.state_dict()[Q_PROJ].float())


def test_a_bf16_base_is_rounded_once(biased: Path, tuned: Callable[..., Path], tmp_path: Path) -> None:
    adapter = tuned(biased, "lora")
    save_merged(merge_adapter(biased, fingerprint(biased), adapter), biased, tmp_path / "merged")
    written = load_file(tmp_path / "merged" / "model.safetensors")[Q_PROJ]
    before = load_file(biased / "model.safetensors")[Q_PROJ]
    assert (written.dtype, before.dtype, stored_dtype(biased)) == (torch.bfloat16,) * 3
    assert torch.equal(written, (before.double() + update(adapter)).float().bfloat16())


def test_a_merged_folder_is_a_model_with_the_bases_own_tokenizer(
    tiny: Path, tuned: Callable[..., Path], tmp_path: Path
) -> None:
    base, target = tmp_path / "base", tmp_path / "merged"
    base.mkdir()
    for path in tiny.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    (base / "LICENSE").write_text("as you like", encoding="utf-8")
    (base / "manifest.json").write_text("{}", encoding="utf-8")
    save_merged(merge_adapter(base, fingerprint(base), tuned(base, "lora")), base, target)
    assert check_folder(target) == target
    copied = {path.name for path in base.iterdir()} - {"config.json", "manifest.json", "model.safetensors"}
    assert {"LICENSE", "tokenizer.json", "chat_template.jinja", "generation_config.json"} <= copied
    assert all((target / name).read_bytes() == (base / name).read_bytes() for name in copied)
    assert not (target / "manifest.json").exists()
    generator = LocalGenerator.from_folder(target, "merged", fingerprint(target))
    assert generator.generate([[Message("user", "Who?")]], 3)[0].output_tokens > 0


@pytest.mark.parametrize("name", APART)
def test_what_cannot_be_merged_is_refused_with_what_can(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"method {name} cannot be merged: .*; these can: full, lora, .*ia3, ln$"):
        check_mergeable(name)


def test_each_method_is_one_or_the_other() -> None:
    assert APART == ["adapter-houlsby", "adapter-pfeiffer", "prefix", "prompt", "p-tuning", "p-tuning-v2"]
    for name in MERGEABLE:
        check_mergeable(name)


def test_another_base_is_refused(tiny: Path, wide: Path, tuned: Callable[..., Path]) -> None:
    with pytest.raises(MismatchError, match="was trained on tiny"):
        merge_adapter(wide, fingerprint(wide), tuned(tiny, "lora"))


def test_weights_that_are_no_numbers_are_refused(tiny: Path, tuned: Callable[..., Path]) -> None:
    adapter = tuned(tiny, "lora")
    broken = {name: value * float("nan") for name, value in load_file(adapter / "adapter_model.safetensors").items()}
    manifest = {k: v for k, v in store.read_manifest(adapter, "adapter").items() if k in ("kind", "nf4", "base")}
    settings = (adapter / "adapter_config.json").read_bytes()
    with store.atomic_folder(adapter, manifest) as building:
        (building / "adapter_config.json").write_bytes(settings)
        save_file(broken, building / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"cannot be merged .*tune again"):
        merge_adapter(tiny, fingerprint(tiny), adapter)
