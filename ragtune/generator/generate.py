"""Messages -> replies with a local transformers model: length-sorted batches, one pass over shared beginnings.

One numeric path serves all arms: greedy decoding in bf16 where the machine multiplies bf16 natively, else in fp32.
In fp32 batching and prefix reuse leave every answer as it is; in bf16 some answers move with the batch's shape, so
the evaluator records the dtype and lets all arms share the path.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, TextStreamer

from ragtune import store
from ragtune.errors import ModelError
from ragtune.generator import shared_prefix, soft_prompt
from ragtune.generator.adapters import attach_adapter
from ragtune.generator.machine import best_dtype, device, keep_freed_memory
from ragtune.generator.quiet import calm_libraries
from ragtune.generator.roomy_cache import make_room
from ragtune.types import Message, Reply

_BATCH_TOKENS = 12_000
_WORTH_SHARING = 0.2  # of the prompts is their beginning; joining two attentions costs a little for each token
_WORTH_LEAVING = 0.75  # of a batch goes on: then the keys and values of the others are dropped


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder.

    Raises: ModelError when it has no chat template or no end-of-turn token.
    """
    with calm_libraries():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise ModelError(f"{folder}: the tokenizer has no chat template; use an instruction-tuned model")
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{folder}: the tokenizer names no end-of-turn token (eos_token)")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = tokenizer.eos_token_id
    return tokenizer


def load_weights(folder: Path, dtype: torch.dtype) -> Any:
    """The causal language model of a folder, in eval mode, on the best device."""
    with calm_libraries():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, trust_remote_code=False)
    model.get_output_embeddings().register_forward_pre_hook(_contiguous)
    keep_freed_memory()
    return model.to(device()).eval()


def _contiguous(module: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """The hidden states that logits are wanted for, side by side in memory.

    torch multiplies a sliced batch by a frozen matrix as a batched product, with a copy of the matrix for each row.
    """
    return (inputs[0].contiguous(),)


@dataclass(frozen=True)
class _Shared:
    """The beginning that all rows share: how long it is, and its keys and values; (0, None) is none."""

    length: int
    states: shared_prefix.States | None

    def followed_by(self, length: int, states: shared_prefix.States) -> _Shared:
        """The same beginning, and what was read after it."""
        if self.states is not None:
            pairs = zip(self.states, states, strict=True)
            states = [(torch.cat([a[0], b[0]], -2), torch.cat([a[1], b[1]], -2)) for a, b in pairs]
        return _Shared(self.length + length, states)


_NOTHING = _Shared(0, None)


@dataclass(frozen=True)
class LocalGenerator:
    """A transformers model at work; `ragtune.types.Generator`. Make one with `from_folder`.

    `beginning` is what a soft prompt puts before every prompt.
    """

    name: str
    fingerprint: str
    model: Any
    tokenizer: Any
    beginning: _Shared = _NOTHING

    @classmethod
    def from_folder(cls, folder: Path, name: str, base_fingerprint: str, adapter: Path | None = None) -> LocalGenerator:
        """Load base weights and, when given, an adapter on top, in the numerics it was trained in.

        The generator's own fingerprint covers base, adapter and dtype: all that decides its answers.

        Raises: MismatchError when the adapter was trained on another base; StoreError when it is damaged.
        """
        tokenizer = load_tokenizer(folder)
        model = load_weights(folder, best_dtype())
        shared_prefix.enable(model)
        parts, beginning = [base_fingerprint, str(model.dtype)], _NOTHING
        if adapter is not None:
            model = attach_adapter(model, adapter, base_fingerprint)
            parts.append(store.sha256_of_json(store.read_manifest(adapter, "adapter")["files"]))
        if soft_prompt.is_on(model):
            with torch.inference_mode():
                beginning = _NOTHING.followed_by(soft_prompt.length(model), soft_prompt.states(model))
            model = model.get_base_model()
        return cls(name, store.sha256_of_text(*parts), model, tokenizer, beginning)

    @property
    def dtype(self) -> str:
        """The numbers it computes with, e.g. `bfloat16`."""
        return str(self.model.dtype).removeprefix("torch.")

    def count_tokens(self, text: str) -> int:
        """Tokens of a text without special tokens."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode(self, prompt: Sequence[Message]) -> list[int]:
        """Token ids of a chat, ending where the assistant is to begin."""
        chat = [{"role": m.role, "content": m.content} for m in prompt]
        ids: list[int] = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        return ids

    def generate(self, prompts: Sequence[Sequence[Message]], max_new_tokens: int) -> list[Reply]:
        """Greedy answers, one for each prompt, in the same order.

        Raises: ModelError when a prompt leaves no room for the answer in the model's context.
        """
        encoded = [self.encode(prompt) for prompt in prompts]
        self._check_lengths(encoded, max_new_tokens)
        replies: dict[int, Reply] = {}
        shared, own = self._split(encoded)
        for batch in _batches([len(ids) + max_new_tokens for ids in own]):
            started = time.perf_counter()
            outputs = self._go_on(self._read([own[i] for i in batch], shared), max_new_tokens)
            seconds = (time.perf_counter() - started) / len(batch)
            for i, ids in zip(batch, outputs, strict=True):
                replies[i] = Reply(self._text(ids), len(encoded[i]), len(ids), seconds)
        return [replies[i] for i in range(len(prompts))]

    def choose(self, prompts: Sequence[Sequence[Message]], labels: Sequence[str], max_new_tokens: int) -> list[Reply]:
        """The most likely of the allowed labels: log p(label tokens, end of turn | prompt), one pass per prompt.

        The greedy answer, up to `max_new_tokens`, is decoded from the same pass.

        Raises: ModelError when there is no label; like `generate`.
        """
        if not labels:
            raise ModelError("cannot choose a label: the task has none")
        encoded = [self.encode(prompt) for prompt in prompts]
        endings = [self._label_ids(label) for label in labels]
        longest = max(map(len, endings))
        self._check_lengths(encoded, max(longest, max_new_tokens))
        replies: dict[int, Reply] = {}
        shared, own = self._split(encoded)
        for batch in _batches([len(ids) + longest * len(labels) for ids in own]):
            started = time.perf_counter()
            rows = [own[i] for i in batch]
            read = self._read(rows, shared)
            scores = self._score_endings(read, endings) if self._plain else self._score_each_ending(rows, endings)
            seconds = (time.perf_counter() - started) / len(batch)
            written = self._go_on(read, max_new_tokens)
            for i, row, ids in zip(batch, scores.tolist(), written, strict=True):
                best = max(range(len(labels)), key=row.__getitem__)
                by_label = dict(zip(labels, row, strict=True))
                free = self._text(ids)
                replies[i] = Reply(labels[best], len(encoded[i]), len(endings[best]), seconds, by_label, free)
        return [replies[i] for i in range(len(prompts))]

    def stream(self, prompt: Sequence[Message], max_new_tokens: int) -> Iterator[str]:
        """The greedy answer to one prompt, piece by piece as it is decoded."""
        ids = self.encode(prompt)
        self._check_lengths([ids], max_new_tokens)
        streamer, pieces = TextStreamer(self.tokenizer, skip_special_tokens=True), list[str]()
        streamer.on_finalized_text = lambda text, stream_end=False: pieces.append(text)
        for tokens in self._decode(self._read([ids], self.beginning), max_new_tokens):
            streamer.put(torch.tensor(list(tokens.values())))
            yield from filter(None, pieces)
            pieces.clear()
        streamer.end()
        yield from filter(None, pieces)

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _check_lengths(self, encoded: Sequence[Sequence[int]], room: int) -> None:
        limit = int(getattr(self.model.config, "max_position_embeddings", 0) or 1_000_000)
        longest = max(map(len, encoded), default=0)
        if self.beginning.length + longest + room > limit:
            raise ModelError(
                f"a prompt of {longest} tokens leaves no room for {room} answer tokens in {self.name}'s context of "
                f"{limit}; use fewer or shorter passages"
            )

    def _label_ids(self, label: str) -> list[int]:
        ids: list[int] = self.tokenizer(label, add_special_tokens=False)["input_ids"]
        return [*ids, self.tokenizer.eos_token_id]

    @torch.inference_mode()
    def _split(self, encoded: Sequence[Sequence[int]]) -> tuple[_Shared, list[Sequence[int]]]:
        """The beginning that all prompts share, read once where it is worth it, and what follows it in each."""
        before, length = self.beginning, _common_prefix(encoded)
        total = sum(map(len, encoded))
        if len(encoded) < 2 or length * len(encoded) < _WORTH_SHARING * total or not self._plain:
            return before, list(encoded)
        cache = DynamicCache(config=self.model.config)
        ids = torch.tensor([list(encoded[0][:length])], device=self.model.device)
        at = before.length + torch.arange(length, device=ids.device)
        self._logits(ids, None, at[None], (before, cache), 1)
        states = [(layer.keys, layer.values) for layer in cache.layers]
        return before.followed_by(length, states), [ids[length:] for ids in encoded]

    @property
    def _plain(self) -> bool:
        """True for a model whose keys all see the whole past; one with windows makes its own masks."""
        return shared_prefix.is_enabled(self.model)

    def _logits(
        self, ids: torch.Tensor, mask: torch.Tensor | None, at: torch.Tensor, batch: tuple[_Shared, Any], keep: Any
    ) -> torch.Tensor:
        """Logits of each row's last `keep` tokens, or of those at these places; the batch's cache grows by `ids`."""
        shared, cache = batch
        common = {} if shared.states is None else {"shared_prefix": shared.states}
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": at, "past_key_values": cache}
        return self.model(**inputs, **common, use_cache=True, logits_to_keep=keep).logits  # type: ignore[no-any-return]

    @torch.inference_mode()
    def _read(self, rows: Sequence[Sequence[int]], shared: _Shared) -> _Read:
        """Feed a batch of prompts' ends.

        They are padded behind, where what is real does not look, so that no mask is needed.
        """
        if not self._plain:
            return self._read_masked(rows)
        device, width = self.model.device, max(map(len, rows))
        ids = torch.tensor([[*row, *[self.tokenizer.pad_token_id] * (width - len(row))] for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        places = torch.arange(width, device=device)
        cache = DynamicCache(config=self.model.config)
        ends, which = torch.unique(lengths - 1, return_inverse=True)
        logits = self._logits(ids, None, (shared.length + places).expand(len(rows), -1), (shared, cache), ends)
        seen = _additive(places < lengths[:, None], self.model.dtype)
        at = shared.length + lengths[:, None]
        return _Read(shared, cache, seen[:, None, None], at, logits[torch.arange(len(rows)), which])

    def _read_masked(self, rows: Sequence[Sequence[int]]) -> _Read:
        """The same for models that make their own masks of where tokens are real, padded before."""
        ids, real = self._padded(rows)
        cache = DynamicCache(config=self.model.config)
        logits = self._logits(ids, real, _positions(real), (_NOTHING, cache), 1)[:, -1]
        return _Read(_NOTHING, cache, real, real.sum(-1, keepdim=True), logits)

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and 1 where they are real, (rows, width), padded before."""
        width = max(map(len, rows))
        ids = [[*[self.tokenizer.pad_token_id] * (width - len(row)), *row] for row in rows]
        real = [[*[0] * (width - len(row)), *[1] * len(row)] for row in rows]
        return torch.tensor(ids, device=self.model.device), torch.tensor(real, device=self.model.device)

    def _go_on(self, read: _Read, max_new_tokens: int) -> list[list[int]]:
        """Greedy answers to rows that were read, end of turn included."""
        answers: list[list[int]] = [[] for _ in read.logits]
        for tokens in self._decode(read, max_new_tokens):
            for row, token in tokens.items():
                answers[row].append(token)
        return answers

    @torch.inference_mode()
    def _decode(self, read: _Read, max_new_tokens: int) -> Iterator[dict[int, int]]:
        """The next token of each row that goes on, step by step; rows that have ended leave the batch."""
        cache, mask, at, tokens = read.cache, read.mask, read.at, read.logits.argmax(-1)
        make_room(cache, max_new_tokens)
        live = list(range(len(tokens)))
        going = set(live)
        for step in range(max_new_tokens):
            chosen = {row: token for row, token in zip(live, tokens.tolist(), strict=True) if row in going}
            yield chosen
            going = {row for row, token in chosen.items() if token != self.tokenizer.eos_token_id}
            if not going or step == max_new_tokens - 1:
                return
            if len(going) <= _WORTH_LEAVING * len(live):
                kept = torch.tensor([i for i, row in enumerate(live) if row in going], device=tokens.device)
                cache.batch_select_indices(kept)
                mask, at, tokens = mask[kept], at[kept], tokens[kept]
                live = [row for row in live if row in going]
            mask = pad(mask, (0, 1), value=0 if mask.is_floating_point() else 1)  # each row sees its new token
            tokens = self._logits(tokens[:, None], mask, at, (read.shared, cache), 1)[:, -1].argmax(-1)
            at = at + 1

    @torch.inference_mode()
    def _score_endings(self, read: _Read, endings: Sequence[Sequence[int]]) -> torch.Tensor:
        """Log-probability (nats) of each ending after each row, (rows, endings), in one pass.

        The endings stand side by side behind each row; the attention mask lets an ending see the row and itself only.
        The cache is left as it was.
        """
        device, n = read.at.device, len(read.at)
        branch = torch.tensor([i for i, ending in enumerate(endings) for _ in ending[:-1]], device=device)
        depth = torch.tensor([d for ending in endings for d in range(len(ending) - 1)], device=device)
        fed = torch.tensor([token for ending in endings for token in ending[:-1]], device=device)
        own = _additive(((branch[:, None] == branch) & (depth[:, None] >= depth)), self.model.dtype)
        mask = torch.cat([read.mask.expand(-1, -1, len(fed), -1), own.expand(n, 1, -1, -1)], -1)
        logits = self._logits(fed.expand(n, -1), mask, read.at + depth, (read.shared, read.cache), len(fed))
        read.cache.crop(-len(fed))
        logp = torch.log_softmax(torch.cat([read.logits[:, None], logits], 1).float(), -1)
        totals, start = [], 1
        for ending in endings:
            # An ending's first token is predicted by the row's last one, the others by the token before them.
            steps = torch.tensor([0, *range(start, start + len(ending) - 1)])
            totals.append(logp[:, steps, torch.tensor(list(ending))].sum(-1))
            start += len(ending) - 1
        return torch.stack(totals, 1)

    @torch.inference_mode()
    def _score_each_ending(self, rows: Sequence[Sequence[int]], endings: Sequence[Sequence[int]]) -> torch.Tensor:
        """The same for models that make their own masks: each ending in a pass of its own."""
        totals = []
        for ending in endings:
            ids, real = self._padded([[*row, *ending[:-1]] for row in rows])
            batch = (_NOTHING, DynamicCache(config=self.model.config))
            logits = self._logits(ids, real, _positions(real), batch, len(ending)).float()
            wanted = torch.tensor([list(ending)], device=ids.device).expand(len(rows), -1)
            totals.append(torch.log_softmax(logits, -1).gather(-1, wanted[..., None]).sum((-1, -2)))
        return torch.stack(totals, 1)


@dataclass(frozen=True)
class _Read:
    """A batch that the model has read.

    `mask` is what a row's next token sees of it: (rows, 1, 1, width) and additive, or (rows, width) for a model that
    makes its own masks. `at` (rows, 1) is that token's position, `logits` (rows, vocabulary) are what it is drawn from.
    """

    shared: _Shared
    cache: Any
    mask: torch.Tensor
    at: torch.Tensor
    logits: torch.Tensor


def _additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where attention is allowed, else the lowest number, which unlike minus infinity never gives a NaN."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)


def _positions(real: torch.Tensor) -> torch.Tensor:
    """The position of each token in its own row; 0 for padding."""
    return real.cumsum(-1).sub(1).clamp(min=0)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices grouped by similar length, longest first, each group within the token limit when padded."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    start = 0
    while start < len(order):
        size = max(1, _BATCH_TOKENS // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def _common_prefix(encoded: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts share at their beginning, one short of the shortest so that each keeps an end."""
    if not encoded:
        return 0
    low, high = min(map(list, encoded)), max(map(list, encoded))
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return min(length, min(map(len, encoded)) - 1)
