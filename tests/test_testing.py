"""The public doubles keep the promises of the protocols they stand in for."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtune.errors import InputError, ModelError
from ragtune.testing import HashEmbedder, ScriptedGenerator, tiny_model
from ragtune.types import Embedder, Generator, Message

EMBEDDER: Embedder = HashEmbedder()
ASK = (Message("system", "Be brief."), Message("user", "Who is there?"))


def say(text: str) -> Generator:
    return ScriptedGenerator(lambda messages: text)


def test_cosine_is_that_of_the_word_counts() -> None:
    red_cat, red_dog, cats, other = np.asarray(EMBEDDER.embed(["Red cat", "red DOG", "cat cat red", "green fish"]))
    assert red_cat @ red_dog == pytest.approx(1 / 2)  # (1, 1, 0) . (1, 0, 1) / (sqrt 2 * sqrt 2)
    assert red_cat @ cats == pytest.approx(3 / math.sqrt(10))  # (1, 1) . (1, 2) / (sqrt 2 * sqrt 5)
    assert red_cat @ other == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=5))
def test_every_text_has_a_unit_vector_and_counted_tokens(texts: list[str]) -> None:
    vectors = np.asarray(EMBEDDER.embed(texts))
    assert vectors.shape == (len(texts), EMBEDDER.dimension)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    offsets = [EMBEDDER.token_offsets(text) for text in texts]
    assert EMBEDDER.count_tokens(texts) == [len(spans) + 2 for spans in offsets]
    assert all(text[start:end].strip() for text, spans in zip(texts, offsets, strict=True) for start, end in spans)


def test_token_offsets() -> None:
    assert EMBEDDER.token_offsets("Two  words, é1!") == [(0, 3), (5, 10), (12, 14)]


def test_too_long_is_an_error_as_with_the_real_embedder() -> None:
    short = HashEmbedder(max_tokens=4)
    assert np.asarray(short.embed(["two words"])).shape == (1, 4096)
    with pytest.raises(InputError, match="5 tokens is longer than hash reads"):
        short.embed(["now three words"])


def test_fingerprints_tell_doubles_apart() -> None:
    assert HashEmbedder().fingerprint == HashEmbedder().fingerprint
    assert len({e.fingerprint for e in (HashEmbedder(), HashEmbedder(dimension=8), HashEmbedder(name="other"))}) == 3
    one, two = ScriptedGenerator(str), ScriptedGenerator(str, name="other")
    assert one.fingerprint != two.fingerprint


def test_vectors_are_the_same_in_every_process() -> None:
    code = "from ragtune.testing import HashEmbedder; print(HashEmbedder().embed(['red cat'])[0].nonzero()[0].tolist())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == str(np.asarray(EMBEDDER.embed(["cat red"]))[0].nonzero()[0].tolist())


def test_scripted_replies_and_their_token_counts() -> None:
    generator = ScriptedGenerator(lambda messages: f" To {messages[-1].content}\nI say hello. ")
    other = (Message("user", "Me"),)
    first, second = generator.generate([ASK, other], 6)
    assert (first.text, second.text) == ("To Who is there?\nI say", "To Me\nI say hello.")
    assert (first.prompt_tokens, first.output_tokens) == (5, 6)
    assert (second.prompt_tokens, second.output_tokens) == (1, 5)
    assert generator.prompts == [ASK, other]


@given(st.text(max_size=40), st.integers(1, 6))
def test_streamed_pieces_are_the_generated_text(text: str, most: int) -> None:
    pieces = list(say(text).stream(ASK, most))
    assert "".join(pieces) == say(text).generate([ASK], most)[0].text
    assert [piece.strip() for piece in pieces] == text.split()[:most]


def test_choose_takes_an_allowed_label_else_the_first() -> None:
    (allowed,) = say(" no ").choose([ASK], ["yes", "no"], 8)
    (stray,) = say("maybe").choose([ASK], ["yes", "no"], 8)
    assert (allowed.text, stray.text) == ("no", "yes")
    assert max(allowed.label_scores, key=allowed.label_scores.__getitem__) == "no"
    assert set(stray.label_scores) == {"yes", "no"}
    with pytest.raises(ModelError):
        say("x").choose([ASK], [], 8)


def test_the_doubles_load_no_torch() -> None:
    code = "import sys, ragtune.testing; print([m for m in ('torch', 'transformers', 'faiss') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def test_tiny_model_answers_like_any_local_model(tiny: Path) -> None:
    from ragtune.generator.generate import LocalGenerator
    from ragtune.generator.models import check_folder, fingerprint

    started = time.perf_counter()
    generator: Generator = LocalGenerator.from_folder(check_folder(tiny), "tiny", fingerprint(tiny))
    assert time.perf_counter() - started < 2

    prompts: Sequence[Sequence[Message]] = [ASK, (Message("user", "Ünïcode, please: 水"),)]
    replies = generator.generate(prompts, 8)
    assert all(0 < reply.output_tokens <= 8 and reply.text for reply in replies)
    assert "".join(generator.stream(ASK, 8)).strip() == generator.generate([ASK], 8)[0].text
    (chosen,) = generator.choose([ASK], ["yes", "no"], 8)
    assert chosen.text == max(chosen.label_scores, key=chosen.label_scores.__getitem__)


def test_tiny_tokenizer_writes_chats_like_smollm2(tiny: Path) -> None:
    from ragtune.generator.generate import load_tokenizer

    tokenizer = load_tokenizer(tiny)
    chat = [{"role": message.role, "content": message.content} for message in ASK]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho is there?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.count(tokenizer.eos_token_id) == 2
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.decode(tokenizer("水 é\t{x}", add_special_tokens=False)["input_ids"]) == "水 é\t{x}"


def test_tiny_model_is_its_seed(tiny: Path, tmp_path: Path) -> None:
    import torch

    from ragtune.generator.models import fingerprint

    state = torch.random.get_rng_state()
    same, other = tiny_model(tmp_path / "same"), tiny_model(tmp_path / "other", seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert fingerprint(same) == fingerprint(tiny) != fingerprint(other)
