"""Answers do not depend on company: batched or alone, with a shared beginning or without, whole or in pieces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from ragtune.errors import ModelError
from ragtune.generator import generate, machine
from ragtune.generator.generate import LocalGenerator, load_tokenizer
from ragtune.generator.models import fingerprint
from ragtune.types import Generator, Message, Reply

Prompt = tuple[Message, ...]

LONG = "Answer the question from the passages, in one short sentence. The documents do not say everything. " * 2
ASKED = (
    "When does the office open?",
    "Who may bring a boat, and when?",
    "Why?",
    "How much is the yearly fee for a second place, and is there a second place at all? " * 3,
    "When does the office open?",
)
SHARED = tuple((Message("system", LONG), Message("user", asked)) for asked in ASKED)
APART = tuple((Message("system", f"{i}. Be brief"), Message("user", asked)) for i, asked in enumerate(ASKED))
SAME = (SHARED[0],) * 3
COMPANIES = {"shared beginning": SHARED, "nothing shared": APART, "one prompt thrice": SAME, "alone": SHARED[:1]}
LABELS = ("yes", "no", "no one", "members and their guests", "40 euros")


def windowed(folder: Path) -> LocalGenerator:
    """A model that sees 16 tokens back, with the tokenizer of a folder."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokenizer = load_tokenizer(folder)
    config = MistralConfig(vocab_size=len(tokenizer), num_key_value_heads=2, sliding_window=16, **sizes)
    return LocalGenerator("windowed", "windowed", MistralForCausalLM(config).eval(), tokenizer)


@pytest.fixture(scope="module", params=["base", "tuned", "windowed"])
def generator(request: pytest.FixtureRequest, tiny: Path, adapter: Path) -> LocalGenerator:
    if request.param == "windowed":
        return windowed(tiny)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "best_dtype", lambda: torch.float32)
        on_top = adapter if request.param == "tuned" else None
        return LocalGenerator.from_folder(tiny, "tiny", fingerprint(tiny), on_top)


@pytest.fixture(params=COMPANIES)
def prompts(request: pytest.FixtureRequest) -> Sequence[Prompt]:
    return COMPANIES[request.param]


def told(replies: Sequence[Reply]) -> list[tuple[str, int, int]]:
    return [(reply.text, reply.prompt_tokens, reply.output_tokens) for reply in replies]


def plain_forward(generator: LocalGenerator, prompt: Prompt, label: str) -> float:
    """log p(label, end of turn | prompt) in nats, from one forward pass over the whole text."""
    begin = generator.encode(prompt)
    ending = [*generator.tokenizer(label)["input_ids"], generator.tokenizer.eos_token_id]
    with torch.no_grad():
        logp = generator.model(torch.tensor([[*begin, *ending]])).logits[0].double().log_softmax(-1)
    return math.fsum(logp[len(begin) - 1 + i, token].item() for i, token in enumerate(ending))


# Company


def test_the_prompts_share_what_they_are_said_to(generator: LocalGenerator) -> None:
    split = {name: generator._split([generator.encode(p) for p in prompts]) for name, prompts in COMPANIES.items()}
    lengths = {name: shared.length for name, (shared, _) in split.items()}
    if generator.name == "windowed":
        assert set(lengths.values()) == {0}
        return
    assert lengths["shared beginning"] > 20
    assert [len(ids) for ids in split["shared beginning"][1]] == [
        len(generator.encode(p)) - lengths["shared beginning"] for p in COMPANIES["shared beginning"]
    ]
    assert lengths["nothing shared"] == lengths["alone"] == 0
    assert lengths["one prompt thrice"] == len(generator.encode(SHARED[0])) - 1


@pytest.mark.parametrize("batch_tokens", [generate._BATCH_TOKENS, 400, 1])
def test_batched_answers_are_those_given_one_by_one(
    generator: LocalGenerator, prompts: Sequence[Prompt], batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [generator.generate([prompt], 12)[0] for prompt in prompts]
    monkeypatch.setattr(generate, "_BATCH_TOKENS", batch_tokens)
    together = generator.generate(prompts, 12)
    assert told(together) == told(alone)
    assert all(reply.seconds > 0 and not reply.label_scores for reply in together)


@pytest.mark.parametrize("batch_tokens", [generate._BATCH_TOKENS, 400, 1])
def test_batched_choices_are_those_made_one_by_one(
    generator: LocalGenerator, prompts: Sequence[Prompt], batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [generator.choose([prompt], LABELS, 12)[0] for prompt in prompts]
    monkeypatch.setattr(generate, "_BATCH_TOKENS", batch_tokens)
    together = generator.choose(prompts, LABELS, 12)
    assert told(together) == told(alone)
    for a, b in zip(together, alone, strict=True):
        assert a.label_scores == pytest.approx(b.label_scores, abs=1e-4)


def test_rows_that_end_early_stay_ended(tiny: Path, adapter: Path, fp32: None) -> None:
    """Answers of 3 to 15 tokens in one batch; what a row is padded with while others go on is no part of it."""
    tuned = LocalGenerator.from_folder(tiny, "tiny", fingerprint(tiny), adapter)
    prompts = [(Message("system", "Answer briefly."), Message("user", asked)) for asked in ("Why?", *ASKED[:1])]
    replies = tuned.generate([*prompts, (prompts[1][0], Message("user", "Is there a second place?"))], 30)
    assert [reply.text for reply in replies[1:]] == ["at nine", "no"]
    assert [reply.output_tokens for reply in replies[1:]] == [5, 3]


def test_no_prompts(generator: LocalGenerator) -> None:
    assert generator.generate([], 5) == []
    assert generator.choose([], LABELS, 12) == []


# Choosing


def test_scores_are_log_probabilities_of_a_plain_forward_pass(
    generator: LocalGenerator, prompts: Sequence[Prompt]
) -> None:
    for prompt, reply in zip(prompts, generator.choose(prompts, LABELS, 12), strict=True):
        expected = {label: plain_forward(generator, prompt, label) for label in LABELS}
        assert reply.label_scores == pytest.approx(expected, abs=1e-4)
        assert reply.text == max(expected, key=expected.__getitem__)
        assert reply.prompt_tokens == len(generator.encode(prompt))
        assert reply.output_tokens == generator.count_tokens(reply.text) + 1


@pytest.mark.parametrize("labels", [("no",), ("a", "b", "c"), ("no", "no one", "no one here")])
def test_scores_of_a_single_label_of_one_token_each_and_of_beginnings_of_each_other(
    generator: LocalGenerator, labels: tuple[str, ...]
) -> None:
    for reply, prompt in zip(generator.choose(SHARED[:2], labels, 12), SHARED, strict=False):
        assert reply.label_scores == pytest.approx({x: plain_forward(generator, prompt, x) for x in labels}, abs=1e-4)


def test_choosing_needs_labels(generator: LocalGenerator) -> None:
    with pytest.raises(ModelError, match="cannot choose a label: the task has none"):
        generator.choose(SHARED, [], 12)


# Streaming


def test_streamed_pieces_are_the_generated_text(generator: LocalGenerator, prompts: Sequence[Prompt]) -> None:
    for prompt in prompts:
        pieces = list(generator.stream(prompt, 12))
        assert "".join(pieces).strip() == generator.generate([prompt], 12)[0].text
        assert all(pieces)


def test_a_streamed_answer_comes_in_several_pieces(tiny: Path, adapter: Path, fp32: None) -> None:
    tuned = LocalGenerator.from_folder(tiny, "tiny", fingerprint(tiny), adapter)
    pieces = list(tuned.stream((Message("system", "Answer briefly."), Message("user", "Who may bring a boat?")), 30))
    assert len(pieces) > 2
    assert "".join(pieces) == "members and their guests"


def test_an_answer_is_decoded_as_it_is_read(tiny: Path, adapter: Path, fp32: None) -> None:
    """A reader that leaves early leaves nothing at work behind."""
    tuned = LocalGenerator.from_folder(tiny, "tiny", fingerprint(tiny), adapter)
    prompt, steps = (Message("system", "Answer briefly."), Message("user", "Who may bring a boat?")), list[int]()
    counter = tuned.model.get_input_embeddings().register_forward_hook(lambda *_: steps.append(1))
    pieces = cast(Any, tuned.stream(prompt, 30))
    assert steps == []
    next(pieces)
    begun = len(steps)
    pieces.close()
    assert len(steps) == begun
    assert len(list(tuned.stream(prompt, 30))) > 2
    counter.remove()
    assert 0 < begun < (len(steps) - begun) / 2


# Limits


def test_a_prompt_that_leaves_no_room(generator: LocalGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = len(generator.encode(SHARED[0]))
    longest = max(generator.count_tokens(label) for label in LABELS) + 1
    monkeypatch.setattr(generator.model.config, "max_position_embeddings", tokens + longest)
    assert generator.generate(SHARED[:1], longest)[0].prompt_tokens == tokens
    assert generator.choose(SHARED[:1], LABELS, 12)[0].prompt_tokens == tokens
    assert "".join(generator.stream(SHARED[0], longest))
    monkeypatch.setattr(generator.model.config, "max_position_embeddings", tokens + longest - 1)
    message = f"a prompt of {tokens} tokens leaves no room for {longest} answer tokens in {generator.name}'s context of"
    for act in (
        lambda: generator.generate(SHARED[:1], longest),
        lambda: generator.choose(SHARED[:1], LABELS, 12),
        lambda: list(generator.stream(SHARED[0], longest)),
    ):
        with pytest.raises(ModelError, match=message):
            act()


# Loading


def test_it_is_a_generator_and_its_fingerprint_covers_all_that_decides_its_answers(
    tiny: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(dtype: torch.dtype, base: str = "a", on_top: Path | None = None) -> LocalGenerator:
        monkeypatch.setattr(generate, "best_dtype", lambda: dtype)
        return LocalGenerator.from_folder(tiny, "tiny", base, on_top)

    plain = load(torch.float32)
    protocol: Generator = plain
    assert (protocol.name, plain.dtype) == ("tiny", "float32")
    assert plain.count_tokens("") == 0
    assert load(torch.float32).fingerprint == plain.fingerprint
    others = (
        load(torch.bfloat16),
        load(torch.float32, "b"),
        load(torch.float32, fingerprint(tiny)),
        load(torch.float32, fingerprint(tiny), adapter),
    )
    assert others[0].dtype == "bfloat16"
    assert len({plain.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert not any(other.model.training for other in others)


@pytest.mark.parametrize(
    ("missing", "message"),
    [("chat_template", "has no chat template; use an instruction-tuned model"), ("eos_token", "names no end-of-turn")],
)
def test_a_tokenizer_that_cannot_chat(tiny: Path, tmp_path: Path, missing: str, message: str) -> None:
    tokenizer = load_tokenizer(tiny)
    setattr(tokenizer, missing, None)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=message):
        load_tokenizer(tmp_path)


def test_without_a_padding_token_the_end_of_turn_pads(tiny: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token_id == tokenizer.eos_token_id


def test_bf16_is_used_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpu, amx, avx in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: bool(gpu))
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: bool(amx))
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: bool(avx))
        assert machine.best_dtype() == (torch.bfloat16 if gpu or amx or avx else torch.float32)
        assert machine.device() == torch.device("cuda" if gpu else "cpu")
