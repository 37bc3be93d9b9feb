"""A byte-level BPE tokenizer as GGUF metadata, such that llama.cpp cuts text where the tokenizer itself does.

llama.cpp knows pre-tokenizers by name alone. A name guessed from the model's family trains one model and serves
another, so the tokenizer is compared with each that we know on a text full of hard cases.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter, TokenType
from tokenizers import Regex, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Split

from ragtune.errors import ConfigError

_HARD_CASES = (
    "I'm sure they'LL say it's  WE'VE 3 33 333 3333 33333, 3.14 and 1,234,567  or £4.00 (50%)!!\n\n \n\t\tDef_x = "
    "{'a':1}; naïve café — “quoted” … Straße, Ω≈ç√ нещо на Български 我想在apple工作1314151天～ "
    "កាន់តែ 🚀🦙 \u200d🌫️ e\u0301\r\n   end. \n"
)


def _split(digits: str) -> PreTokenizer:
    """Llama 3's and Qwen2's, which differ in how many digits stay together."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    whole = ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([Split(Regex(pattern), "isolated"), whole])


@dataclass(frozen=True, slots=True)
class _Known:
    """What llama.cpp does under a name (src/llama-vocab.cpp). `whole_words`: a word of the vocabulary is not merged."""

    make: Callable[[], PreTokenizer]
    whole_words: bool = False


KNOWN = {
    "gpt-2": _Known(lambda: ByteLevel(add_prefix_space=False)),
    "smollm": _Known(
        lambda: pre_tokenizers.Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    ),
    "llama-bpe": _Known(lambda: _split(r"\p{N}{1,3}"), whole_words=True),
    "qwen2": _Known(lambda: _split(r"\p{N}")),
}


def pre_tokenizer_name(tokenizer: Any) -> str:
    """The name under which llama.cpp cuts text like this tokenizer does.

    Raises: ConfigError when none does.
    """
    backend = tokenizer.backend_tokenizer
    whole_words = bool(json.loads(backend.to_str())["model"].get("ignore_merges"))
    if backend.pre_tokenizer is not None:
        pieces = backend.pre_tokenizer.pre_tokenize_str(_HARD_CASES)
        for name, known in KNOWN.items():
            if known.whole_words == whole_words and known.make().pre_tokenize_str(_HARD_CASES) == pieces:
                return name
    raise ConfigError(f"the tokenizer cuts text like none of those that can be exported: {', '.join(KNOWN)}")


def add_tokenizer(writer: GGUFWriter, tokenizer: Any, size: int) -> None:
    """Write vocabulary, merges, special tokens and chat template; `size` is the number of rows of the embedding.

    Raises: ConfigError for a tokenizer that is no byte-level BPE, or that llama.cpp has no name for.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    model, decoder = parts["model"], parts["decoder"] or {}
    if model["type"] != "BPE" or decoder.get("type") != "ByteLevel":
        raise ConfigError(
            f"the tokenizer is {model['type']} with decoder {decoder.get('type')}; byte-level BPE alone can be exported"
        )
    names, types = _vocabulary(tokenizer, size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_name(tokenizer))
    writer.add_token_list(names)
    writer.add_token_types(types)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if token is not None:
            add(token)
    writer.add_add_bos_token(begins_with_bos(tokenizer))
    writer.add_add_space_prefix(False)
    writer.add_chat_template(tokenizer.chat_template)


def begins_with_bos(tokenizer: Any) -> bool:
    """True when the tokenizer puts its first token before a text by itself."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _vocabulary(tokenizer: Any, size: int) -> tuple[list[str], list[int]]:
    """Each token's text and type; rows of the embedding without a token are named and marked as unused."""
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    names, types = [], []
    for number in range(size):
        names.append(by_id.get(number, f"[PAD{number}]"))
        if number not in by_id:
            types.append(TokenType.UNUSED)
        elif number in added:
            types.append(TokenType.CONTROL if added[number].special else TokenType.USER_DEFINED)
        else:
            types.append(TokenType.NORMAL)
    return names, [int(kind) for kind in types]
