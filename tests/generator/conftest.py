"""A tiny real model for the whole session, plain fp32 where exactness matters, and one adapter tuned on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlamaForCausalLM

from ragtune import store
from ragtune.config import TuneConfig
from ragtune.generator import generate, train
from ragtune.generator.examples import TrainingRow
from ragtune.generator.methods import METHODS
from ragtune.generator.models import fingerprint
from ragtune.generator.quiet import calm_libraries
from ragtune.testing import tiny_model
from ragtune.types import Message

FACTS = {
    "When does the office open?": "at nine",
    "Who may bring a boat?": "members and their guests",
    "How much is the yearly fee?": "40 euros",
    "Is there a second place?": "no",
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, so that equal means equal."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny_model() that can stop: torch zeroes the embedding of the padding token, which is its end of turn as well.

    Input and output embeddings are one, so that token's logit would stay 0 whatever is learned.
    """
    folder = tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    weights = load_file(folder / "model.safetensors")
    end = generate.load_tokenizer(folder).eos_token_id
    weights["model.embed_tokens.weight"][end] = torch.randn(32, generator=torch.Generator().manual_seed(0)) / 5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def wide(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with rows of 64 weights, a whole NF4 block, and a head of its own."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    config = AutoConfig.from_pretrained(tiny, hidden_size=64, intermediate_size=128, tie_word_embeddings=False)
    config.head_dim = 16
    with torch.random.fork_rng(devices=[]), calm_libraries():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
        generate.load_tokenizer(tiny).save_pretrained(folder)
    return folder


def _use_fp32(patch: pytest.MonkeyPatch) -> None:
    for module in (generate, train):
        patch.setattr(module, "best_dtype", lambda: torch.float32)


@pytest.fixture
def fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    _use_fp32(monkeypatch)


@pytest.fixture(scope="session")
def facts() -> list[TrainingRow]:
    """Rows of different lengths, so that a batch of them is padded."""
    system = Message("system", "Answer briefly.")
    asked = [(system, Message("user", question)) for question in FACTS]
    return [
        TrainingRow("facts", f"q{i}", "plain", messages, answer)
        for i, (messages, answer) in enumerate(zip(asked, FACTS.values(), strict=True))
    ]


@pytest.fixture(scope="session")
def adapter(tiny: Path, facts: list[TrainingRow], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter that knows the facts by heart, in a finished folder."""
    place = tmp_path_factory.mktemp("adapters")
    config = TuneConfig(epochs=60, learning_rate=1e-2, batch_size=4, save_steps=1000)
    with pytest.MonkeyPatch.context() as patch:
        _use_fp32(patch)
        model, _ = train.train(facts, tiny, METHODS["lora"], config, place / "work")
    manifest = {"kind": "adapter", "nf4": False, "base": {"name": "tiny", "fingerprint": fingerprint(tiny)}}
    with store.atomic_folder(place / "tune", manifest) as building:
        model.save_pretrained(building)
    return place / "tune"
