"""Public deterministic doubles of the two models, so that anything built on ragtune can be tested in milliseconds.

embedder = HashEmbedder()                                            # types.Embedder, no torch
generator = ScriptedGenerator(lambda messages: messages[-1].content)  # types.Generator, no torch
folder = tiny_model(tmp_path / "tiny")                               # a real transformers model, random weights
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ragtune.errors import InputError, ModelError
from ragtune.store import sha256_of_text
from ragtune.types import Message, Reply

_WORD = re.compile(r"\w+")
_SPECIAL_TOKENS = 2
_UNLIKELY = -10.0

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_TOKENIZER_TEXT = (
    "The documents do not say. Answer the question from the passages, in one short sentence.",
    "Begin with the number of the passage that you used, like [1]. Use these passages: [2] [3] [4]",
    "Who may bring a boat, when does the office open, and how much is the yearly fee for a second place?",
)


@dataclass(frozen=True)
class HashEmbedder:
    """Hashed bags of words as unit vectors; `ragtune.types.Embedder`.

    A token is a run of letters, digits and underscores; case does not count. The cosine of two texts is that of
    their word counts but for words that share a bucket, so texts without a common word are (nearly) orthogonal.
    """

    dimension: int = 4096
    max_tokens: int = 256
    name: str = "hash"

    @property
    def fingerprint(self) -> str:
        """Hash of name and dimension; the name tells apart doubles that stand for different models."""
        return sha256_of_text("HashEmbedder", self.name, str(self.dimension))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Words per text and two special tokens."""
        return [len(_WORD.findall(text)) + _SPECIAL_TOKENS for text in texts]

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """Character offsets of the words."""
        return [match.span() for match in _WORD.finditer(text)]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 array (len(texts), dimension), rows of length 1. A text without words counts as one empty word.

        Raises: InputError when a text has more than `max_tokens` tokens, as the real embedder does.
        """
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, (text, count) in enumerate(zip(texts, self.count_tokens(texts), strict=True)):
            if count > self.max_tokens:
                raise InputError(f"a text of {count} tokens is longer than {self.name} reads ({self.max_tokens})")
            for word in _WORD.findall(text.lower()) or [""]:
                vectors[row, zlib.crc32(word.encode()) % self.dimension] += 1
        unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit


@dataclass
class ScriptedGenerator:
    """Says what `reply(messages)` says; `ragtune.types.Generator`. A token is a word between white space.

    `prompts` records every prompt that it was given, in order.
    """

    reply: Callable[[Sequence[Message]], str]
    name: str = "scripted"
    prompts: list[tuple[Message, ...]] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """Hash of the name: give two scripts different names where something is kept by fingerprint."""
        return sha256_of_text("ScriptedGenerator", self.name)

    def count_tokens(self, text: str) -> int:
        """Words of a text."""
        return len(text.split())

    def generate(self, prompts: Sequence[Sequence[Message]], max_new_tokens: int) -> list[Reply]:
        """The scripted replies, each cut after `max_new_tokens` words. They take no time."""
        replies = []
        for prompt in prompts:
            text = "".join(self.stream(prompt, max_new_tokens))
            replies.append(Reply(text, self._prompt_tokens(prompt), self.count_tokens(text), 0.0))
        return replies

    def choose(self, prompts: Sequence[Sequence[Message]], labels: Sequence[str], max_new_tokens: int) -> list[Reply]:
        """The label that the script says, where it is allowed, else the first one. What it says is the free text.

        Raises: ModelError when there is no label.
        """
        if not labels:
            raise ModelError("cannot choose a label: the task has none")
        replies = []
        for prompt in prompts:
            said = self._say(prompt).strip()
            label = said if said in labels else labels[0]
            scores = {name: 0.0 if name == label else _UNLIKELY for name in labels}
            free = " ".join(said.split()[:max_new_tokens])
            replies.append(Reply(label, self._prompt_tokens(prompt), self.count_tokens(label), 0.0, scores, free))
        return replies

    def stream(self, prompt: Sequence[Message], max_new_tokens: int) -> Iterator[str]:
        """The scripted reply word by word; the pieces joined are what `generate` gives."""
        yield from re.findall(r"\s*\S+", self._say(prompt).strip())[:max_new_tokens]

    def _say(self, prompt: Sequence[Message]) -> str:
        self.prompts.append(tuple(prompt))
        return self.reply(prompt)

    def _prompt_tokens(self, prompt: Sequence[Message]) -> int:
        return sum(self.count_tokens(message.content) for message in prompt)


def tiny_model(folder: Path, seed: int = 0) -> Path:
    """Write a Llama of two layers with random weights, a byte-level tokenizer and a chat template; gives the folder.

    It loads in a moment like any local model and says nothing sensible. One seed gives one fingerprint.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    from ragtune.generator.quiet import calm_libraries

    tokenizer = _tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.2,  # wide enough that the two likeliest tokens are never a rounding error apart
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]), calm_libraries():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        model.generation_config = GenerationConfig.from_model_config(config)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def _tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TOKENIZER_TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )
