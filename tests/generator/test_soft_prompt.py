"""Soft prompts: training, answering and a plain reading of the virtual tokens are one computation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, MistralConfig, MistralForCausalLM

from ragtune import store
from ragtune.config import TuneConfig
from ragtune.errors import ConfigError, ModelError
from ragtune.generator import shared_prefix, soft_prompt
from ragtune.generator.adapters import put_on, save, trainable
from ragtune.generator.generate import LocalGenerator, load_tokenizer, load_weights
from ragtune.generator.methods import METHODS
from ragtune.generator.models import fingerprint
from ragtune.generator.quiet import calm_libraries
from ragtune.types import Message

SOFT = [name for name, method in METHODS.items() if method.family == "soft prompt"]
VIRTUAL = 5
CONFIG = TuneConfig(virtual_tokens=VIRTUAL)
IDS = torch.randint(3, 250, (3, 17), generator=torch.Generator().manual_seed(1))

Prompt = tuple[Message, ...]
LONG = "Answer the question from the passages, in one short sentence. The documents do not say everything. " * 2
ASKED = ("When does the office open?", "Who may bring a boat, and when?", "Why?", "How much is the yearly fee?")
SHARED = tuple((Message("system", LONG), Message("user", asked)) for asked in ASKED)
APART = tuple((Message("system", f"{i}. Be brief"), Message("user", asked)) for i, asked in enumerate(ASKED))
LABELS = ("yes", "no", "no one", "40 euros")


def prompted(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model whose soft prompt is no longer as it started: the encoders of some start by giving zeros."""
    model = put_on(load_weights(folder, dtype), METHODS[name], CONFIG)
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in trainable(model).values():
            weight.add_(torch.randn_like(weight) / 4)
    return model


def reference(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of rows' own positions, plainly: the virtual tokens before each row, through the base model as it is.

    Embeddings are set before the row's own; keys and values are given as a cache of what went before.
    """
    base, rows = model.get_base_model(), len(ids)
    virtual = model.get_prompt(batch_size=rows)
    base.set_attn_implementation("eager")
    try:
        if isinstance(virtual, DynamicCache):
            mask = torch.ones(rows, VIRTUAL + ids.shape[1], dtype=torch.long)
            return base(input_ids=ids, past_key_values=virtual, attention_mask=mask).logits  # type: ignore[no-any-return]
        embeddings = torch.cat([virtual, base.get_input_embeddings()(ids)], 1)
        return base(inputs_embeds=embeddings).logits[:, VIRTUAL:]  # type: ignore[no-any-return]
    finally:
        base.set_attn_implementation("sdpa")
        shared_prefix.enable(base)


def loss_of(logits: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


@pytest.fixture
def answering(tiny: Path, tmp_path: Path, request: pytest.FixtureRequest, fp32: None) -> tuple[Any, LocalGenerator]:
    """The model as trained, and the generator that loads what was saved of it."""
    name = request.param
    model = prompted(tiny, name)
    manifest = {"kind": "adapter", "nf4": False, "base": {"name": "tiny", "fingerprint": fingerprint(tiny)}}
    with store.atomic_folder(tmp_path / name, manifest) as building:
        save(model, METHODS[name], building)
    return model, LocalGenerator.from_folder(tiny, "tiny", fingerprint(tiny), tmp_path / name)


@pytest.mark.parametrize("name", SOFT)
def test_training_reads_the_virtual_tokens_before_each_row(tiny: Path, name: str) -> None:
    model = prompted(tiny, name).train()
    found = model(input_ids=IDS, use_cache=False).logits
    assert found.shape[:2] == IDS.shape
    torch.testing.assert_close(found, reference(model, IDS), atol=1e-4, rtol=0)
    plain = load_weights(tiny, torch.float32)(input_ids=IDS).logits
    assert (found - plain).abs().max() > 0.5


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_is_that_of_the_plain_reading(tiny: Path, name: str, checkpointing: bool) -> None:
    model = prompted(tiny, name).train()
    weights = list(trainable(model).values())
    expected = torch.autograd.grad(loss_of(reference(model, IDS)), weights)
    if checkpointing:
        with calm_libraries():
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    found = torch.autograd.grad(loss_of(model(input_ids=IDS, use_cache=False).logits), weights)
    assert max(gradient.abs().max().item() for gradient in found) > 1e-3
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("name", SOFT)
def test_padding_behind_is_not_seen(tiny: Path, name: str) -> None:
    model = prompted(tiny, name)
    padded = torch.nn.functional.pad(IDS[:, :9], (0, 8), value=2)
    with torch.enable_grad():
        whole, cut = model(input_ids=IDS[:, :9]).logits, model(input_ids=padded).logits
    torch.testing.assert_close(whole, cut[:, :9], atol=1e-5, rtol=0)


@pytest.mark.parametrize("answering", SOFT, indirect=True)
def test_answering_computes_what_training_computed(answering: tuple[Any, LocalGenerator]) -> None:
    model, generator = answering
    trained = model.train()(input_ids=IDS, use_cache=False).logits.detach()
    assert generator.beginning.length == VIRTUAL
    for rows in (IDS[:, :9], IDS):
        read = generator._read(rows.tolist(), generator.beginning)
        torch.testing.assert_close(read.logits, trained[:, rows.shape[1] - 1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("answering", SOFT, indirect=True)
@pytest.mark.parametrize("prompts", [SHARED, APART, SHARED[:1]], ids=["shared beginning", "nothing shared", "alone"])
def test_greedy_answers_are_those_of_the_plain_reading(
    answering: tuple[Any, LocalGenerator], prompts: Sequence[Prompt]
) -> None:
    model, generator = answering
    replies = generator.generate(prompts, 12)
    for prompt, reply in zip(prompts, replies, strict=True):
        ids = generator.encode(prompt)
        assert reply.prompt_tokens == len(ids)
        tokens: list[int] = []
        with torch.no_grad():
            while len(tokens) < 12 and generator.tokenizer.eos_token_id not in tokens:
                tokens.append(int(reference(model, torch.tensor([[*ids, *tokens]]))[0, -1].argmax()))
        assert reply.text == generator._text(tokens)
        assert "".join(generator.stream(prompt, 12)).strip() == reply.text


@pytest.mark.parametrize("answering", ["prompt", "prefix"], indirect=True)
def test_labels_are_scored_after_the_virtual_tokens(answering: tuple[Any, LocalGenerator]) -> None:
    model, generator = answering
    for prompt, reply in zip(SHARED, generator.choose(SHARED, LABELS, 3), strict=True):
        ids = generator.encode(prompt)
        for label in LABELS:
            ending = generator._label_ids(label)
            with torch.no_grad():
                logp = reference(model, torch.tensor([[*ids, *ending]]))[0].log_softmax(-1)
            by_hand = sum(logp[len(ids) - 1 + i, token].item() for i, token in enumerate(ending))
            assert reply.label_scores[label] == pytest.approx(by_hand, abs=1e-3)


@pytest.mark.parametrize("answering", ["p-tuning-v2"], indirect=True)
def test_virtual_tokens_take_room_in_the_context(
    answering: tuple[Any, LocalGenerator], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, generator = answering
    tokens = len(generator.encode(APART[0]))
    monkeypatch.setattr(generator.model.config, "max_position_embeddings", tokens + VIRTUAL + 4)
    assert generator.generate(APART[:1], 4)[0].prompt_tokens == tokens
    with pytest.raises(ModelError, match=f"a prompt of {tokens} tokens leaves no room for 5 answer tokens"):
        generator.generate(APART[:1], 5)


@pytest.mark.parametrize("name", SOFT)
def test_virtual_tokens_start_as_real_ones(tiny: Path, name: str) -> None:
    """The model starts as the base model does that has read tokens drawn at random."""
    model = put_on(load_weights(tiny, torch.float32), METHODS[name], CONFIG)
    base, alone, drawn_read = load_weights(tiny, torch.float32), DynamicCache(), DynamicCache()
    states = soft_prompt.states(model)
    with torch.no_grad():
        # The first layer's values depend on their own token alone: they tell which tokens were drawn.
        base(input_ids=torch.arange(base.config.vocab_size)[:, None], past_key_values=alone, use_cache=True)
        drawn = torch.cdist(states[0][1][0, 0], alone.layers[0].values[:, 0, 0]).argmin(-1)
        base(input_ids=drawn[None], past_key_values=drawn_read, use_cache=True)
    assert len(set(drawn.tolist())) > 1
    for (keys, values), layer in zip(states, drawn_read.layers, strict=True):
        torch.testing.assert_close((keys, values), (layer.keys, layer.values), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SOFT)
def test_models_that_see_through_a_window_are_refused(tiny: Path, name: str) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    vocabulary = len(load_tokenizer(tiny))
    windowed = MistralForCausalLM(
        MistralConfig(vocab_size=vocabulary, num_key_value_heads=2, **sizes, sliding_window=9)
    )
    with pytest.raises(ConfigError, match=r"attention that sees the whole past.*this mistral model's.*use lora"):
        put_on(windowed, METHODS[name], CONFIG)


def test_an_attention_that_would_not_see_the_prompt_is_refused(tiny: Path) -> None:
    model = prompted(tiny, "prompt")
    model.get_base_model().set_attn_implementation("eager")
    with pytest.raises(ValueError, match="it would not be seen"):
        model(input_ids=IDS)


def test_in_bf16_training_and_answering_agree(tiny: Path) -> None:
    """To bf16's precision: the two paths join their parts in another order."""
    model = prompted(tiny, "prefix", torch.bfloat16)
    joined = model(input_ids=IDS).logits.detach()
    with torch.inference_mode():
        parts = model(input_ids=IDS).logits
    assert joined.dtype == torch.bfloat16
    assert (joined.float() - parts.float()).abs().max() < 0.05 * joined.float().abs().max()
