"""Messages -> replies through an OpenAI-compatible chat endpoint, hosted or on this machine.

One POST to BASE_URL/chat/completions for each prompt, several at a time. Such an endpoint tells no likelihood of a
given text, so labels are read from what it writes; its tokenizer is unknown, so a reply's token counts are those that
it reports (`usage`). The key comes from an environment variable and goes nowhere but into the request's header.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel, SecretStr, ValidationError

from ragtune import store
from ragtune.config import OtherGeneratorConfig
from ragtune.errors import ConfigError, ModelError, UnfinishedError
from ragtune.generator.chat_api import Chunk, Completion, backoff, complaint, match_label, retry_after
from ragtune.generator.spend import Bill, Budget, shared_budget
from ragtune.types import Message, Reply

_BYTES_PER_TOKEN = 3  # SmolLM2's tokenizer makes a token of 3.4 and 3.6 bytes of the sample corpora's documents
_TEMPLATE_TOKENS = 64  # room for what a chat template puts around each message
_LABEL_ROOM = 24  # tokens for the words around a label
_LONGEST_WAIT_S = 120.0
_REFUSED_FOR_NOW = {408, 425, 429}
_TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")

Parsed = TypeVar("Parsed", bound=BaseModel)


class _MayPass(Exception):
    """A failure that may pass; `wait_s` is how long the server asks to be left alone."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


@dataclass(frozen=True)
class EndpointGenerator:
    """A model behind an OpenAI-compatible endpoint; `ragtune.types.Generator`. Make one with `from_config`.

    Replies are asked for at temperature 0. That is as near to greedy as an endpoint goes: few promise equal answers.
    """

    name: str
    config: OtherGeneratorConfig
    budget: Budget = field(repr=False)
    key: SecretStr | None = field(default=None, repr=False)

    @classmethod
    def from_config(cls, name: str, config: OtherGeneratorConfig, currency: str = "units") -> EndpointGenerator:
        """The endpoint of `[generators.NAME]`; nothing is sent yet. `currency` is that of its prices.

        Raises: ConfigError when the environment variable that holds its key is not set or holds no key.
        """
        key = _read_key(name, config.key_env) if config.key_env else None
        return cls(name, config, shared_budget(name, _fingerprint(config), config.max_spend, currency), key)

    @property
    def fingerprint(self) -> str:
        """Hash of address (host, port, path), model and request fields. A provider can change what stands behind."""
        return _fingerprint(self.config)

    def count_tokens(self, text: str) -> int:
        """An estimate, since the tokenizer is unknown: one token for three bytes of UTF-8, rounded up.

        For English that is some 15 % too many, so that passages that are counted with it fit; for other scripts it
        can be too few.
        """
        return math.ceil(len(text.encode("utf-8", "replace")) / _BYTES_PER_TOKEN)

    def generate(self, prompts: Sequence[Sequence[Message]], max_new_tokens: int) -> list[Reply]:
        """Answers at temperature 0, one for each prompt, in the same order; `seconds` is each request's own time.

        Raises: UnfinishedError when a prompt stays unanswered, with the answers that came: the endpoint refuses it,
        fails more often than `retries`, or may exceed `max_spend`.
        """
        return self._answer_all(prompts, max_new_tokens, lambda reply: reply)

    def choose(self, prompts: Sequence[Sequence[Message]], labels: Sequence[str], max_new_tokens: int) -> list[Reply]:
        """The label that each answer names (`match_label`), or the answer as it is where that is not one label.

        An endpoint gives no likelihoods of labels, so `label_scores` is empty, and an arm can lose by its wording. It
        gets more tokens than `max_new_tokens` where the labels are long.

        Raises: ModelError when there is no label; UnfinishedError like `generate`.
        """
        if not labels:
            raise ModelError("cannot choose a label: the task has none")
        limit = max(max_new_tokens, max(len(label.encode("utf-8", "replace")) for label in labels) + _LABEL_ROOM)

        def matched(reply: Reply) -> Reply:
            return replace(reply, text=match_label(reply.text, labels), free_text=reply.text)

        return self._answer_all(prompts, limit, matched)

    def stream(self, prompt: Sequence[Message], max_new_tokens: int) -> Iterator[str]:
        """The answer to one prompt, piece by piece as it is sent. It is asked again only before its first piece.

        Raises: ModelError when the endpoint refuses the prompt, keeps failing, breaks off or may exceed `max_spend`.
        """
        body = self._body(prompt, max_new_tokens) | {"stream": True}
        begun, tries = False, 0
        with self._client() as client:
            while True:
                try:
                    for piece in self._pieces(client, body):
                        begun = True
                        yield piece
                    return
                except _MayPass as failure:
                    if begun:
                        raise ModelError(f"{self._where} {failure} in the middle of an answer; ask again") from None
                    tries += 1
                    time.sleep(self._pause(failure, tries))

    @property
    def _where(self) -> str:
        return f"generators.{self.name} ({self.config.base_url})"

    @property
    def _url(self) -> str:
        return f"{self.config.base_url}/chat/completions"

    def _client(self) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {self.key.get_secret_value()}"} if self.key else {}
        return httpx2.Client(headers=headers, timeout=self.config.timeout_s)

    def _body(self, prompt: Sequence[Message], max_new_tokens: int) -> dict[str, Any]:
        # JSON has no place for half a surrogate pair, which a broken document may hold.
        messages = [{"role": m.role, "content": m.content.encode("utf-8", "replace").decode()} for m in prompt]
        body = {"model": self.config.model, "messages": messages, "temperature": 0}
        own_limit = any(name in self.config.request for name in _TOKEN_LIMITS)
        limit = {} if own_limit else {"max_tokens": max_new_tokens}
        return body | limit | self.config.request

    def _most(self, body: Mapping[str, Any]) -> float:
        """The most that a request can cost: no tokenizer over bytes makes more tokens than a text has bytes."""
        prompt = sum(len(m["content"].encode()) + _TEMPLATE_TOKENS for m in body["messages"])
        return self._price(prompt, max(body[name] for name in _TOKEN_LIMITS if name in body))

    def _price(self, prompt_tokens: int, output_tokens: int) -> float:
        return (prompt_tokens * self.config.prompt_price + output_tokens * self.config.output_price) / 1000

    def _answer_all(
        self, prompts: Sequence[Sequence[Message]], max_new_tokens: int, finish: Callable[[Reply], Reply]
    ) -> list[Reply]:
        bodies = [self._body(prompt, max_new_tokens) for prompt in prompts]
        stop = threading.Event()
        with self._client() as client:
            pool = ThreadPoolExecutor(self.config.concurrency)
            futures = [pool.submit(self._answer, client, body, stop) for body in bodies]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            finally:  # after a failure or an interrupt nothing new is sent; what is under way is waited for
                stop.set()
                pool.shutdown(cancel_futures=True)
        replies = {i: finish(f.result()) for i, f in enumerate(futures) if not f.cancelled() and not f.exception()}
        error = next((f.exception() for f in done if f.exception()), None)
        if isinstance(error, ModelError):
            raise UnfinishedError(str(error), replies) from None
        if error is not None:
            raise error
        return [replies[i] for i in range(len(prompts))]

    def _answer(self, client: httpx2.Client, body: Mapping[str, Any], stop: threading.Event) -> Reply:
        """One reply; failures that may pass are tried again, unless `stop` is set meanwhile."""
        tries = 0
        while True:
            try:
                return self._ask(client, body, stop)
            except _MayPass as failure:
                tries += 1
                stop.wait(self._pause(failure, tries))

    def _ask(self, client: httpx2.Client, body: Mapping[str, Any], stop: threading.Event) -> Reply:
        with self._sent(body) as bill:
            if stop.is_set():
                bill.cost = 0.0
                raise ModelError(f"{self._where} was not asked, since another request failed")
            started = time.perf_counter()
            response = client.post(self._url, json=body)
            seconds = time.perf_counter() - started
            self._check_status(response, bill)
            completion = self._parse(Completion, response.content)
            choice, usage = completion.choices[0], completion.usage
            bill.cost = self._price(usage.prompt_tokens, usage.completion_tokens)
            text = (choice.message.content or "").strip()
            self._refuse_hidden(not text, choice.finish_reason)
            return Reply(text, usage.prompt_tokens, usage.completion_tokens, seconds)

    def _pieces(self, client: httpx2.Client, body: Mapping[str, Any]) -> Iterator[str]:
        finish: str | None = None
        empty = True
        with self._sent(body) as bill, client.sse(self._url, method="POST", json=body) as events:
            self._check_status(events.response, bill)
            for event in events:
                if event.data == "[DONE]":
                    finish = finish or "stop"
                    break
                chunk = self._parse(Chunk, event.data.encode())
                if chunk.error:
                    raise ModelError(f"{self._where} broke off: {self._clean(complaint(event.data))}")
                if chunk.usage:
                    bill.cost = self._price(chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
                for choice in chunk.choices[:1]:
                    finish = choice.finish_reason or finish
                    if choice.delta.content:
                        empty = False
                        yield choice.delta.content
        if finish is None:
            raise _MayPass("broke off")
        self._refuse_hidden(empty, finish)

    @contextmanager
    def _sent(self, body: Mapping[str, Any]) -> Iterator[Bill]:
        """Around a request: its bill, and errors of the network in our words. A lost answer counts as the most."""
        with self.budget.bill(self._most(body)) as bill:
            try:
                yield bill
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                bill.cost = 0.0
                raise _MayPass(f"cannot be reached ({self._clean(str(error))})") from None
            except httpx2.TimeoutException:
                raise _MayPass(f"did not answer within {self.config.timeout_s:g} s") from None
            except httpx2.SSEError as error:
                raise ModelError(f"{self._where} does not stream: {self._clean(str(error))}") from None
            except httpx2.HTTPError as error:
                raise _MayPass(f"broke off ({self._clean(str(error)) or type(error).__name__})") from None

    def _pause(self, failure: _MayPass, tries: int) -> float:
        """Seconds before the next try.

        Raises: ModelError when that was the last one, or the server asks for a longer wait than two minutes.
        """
        if tries > self.config.retries:
            raise ModelError(f"{self._where} {failure}; gave up after {tries} tries, go on later") from None
        if failure.wait_s > _LONGEST_WAIT_S:
            raise ModelError(f"{self._where} {failure} and asks to wait {failure.wait_s:.0f} s; go on later") from None
        return backoff(tries, failure.wait_s)

    def _check_status(self, response: httpx2.Response, bill: Bill) -> None:
        """Nothing for a success; a refusal costs nothing."""
        status = response.status_code
        if response.is_success:
            return
        bill.cost = 0.0
        response.read()
        said = self._clean(complaint(response.text))
        if status in _REFUSED_FOR_NOW or status >= 500:
            raise _MayPass(f"answered {status} ({said})", retry_after(response.headers.get("retry-after", "")))
        raise ModelError(f"{self._where} answered {status} ({said}); {self._advice(status)}")

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            variable = self.config.key_env
            return f"check the key in {variable}" if variable else "name the variable that holds its key in key_env"
        if status == 404:
            return "check base_url, which ends in /v1 for most servers, and model"
        if status < 400:
            return "write the address that it redirects to into base_url"
        return f"check model and request in generators.{self.name}, and whether the prompt is too long"

    def _refuse_hidden(self, empty: bool, finish: str | None) -> None:
        """An empty answer at the token limit was thought and not said; scored 0 it would blame the wrong thing."""
        if empty and finish == "length":
            raise ModelError(
                f"{self._where} spent all its tokens before a first word; if {self.config.model} thinks before it "
                f"answers, set generators.{self.name}.request to switch that off or to a larger max_completion_tokens"
            )

    def _parse(self, kind: type[Parsed], data: bytes) -> Parsed:
        try:
            return kind.model_validate_json(data)
        except ValidationError as error:
            wrong = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(map(str, wrong["loc"])) or "the answer"
            found = self._clean(data.decode("utf-8", "replace")) or "nothing"
            raise ModelError(
                f"{self._where} gave no chat completion with token counts ({place}: {wrong['msg']}), but: {found}"
            ) from None

    def _clean(self, text: str) -> str:
        """One short line without the key, which some servers repeat in their errors."""
        if self.key:
            text = text.replace(self.key.get_secret_value(), "***")
        line = " ".join(text.split())
        return line if len(line) <= 200 else f"{line[:200]}..."


def _read_key(name: str, variable: str) -> SecretStr:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"generators.{name} needs its key in the environment variable {variable}, which is not set")
    if not re.fullmatch(r"[!-~]+", key):  # also because httpx2 would repeat the whole header in its error
        raise ConfigError(f"the environment variable {variable} holds white space or letters that no key has")
    return SecretStr(key)


def _fingerprint(config: OtherGeneratorConfig) -> str:
    address = config.base_url.partition("://")[2]
    return store.sha256_of_text("endpoint", address, config.model, store.sha256_of_json(config.request))
