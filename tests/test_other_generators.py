"""Arms of other generators in a whole project: an endpoint (answered within the process) and a second local model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

import ragtune
from ragtune.config import ProjectConfig, load_config
from ragtune.errors import ConfigError, UnfinishedError
from ragtune.generator.endpoint import EndpointGenerator
from ragtune.results import Run

KEY = "sk-this-must-never-be-seen"
OTHERS = """
[generators.big]
base_url = "http://big.example/v1"
model = "{model}"
key_env = "BIG_KEY"
arms = ["prompt", "retrieve"]
prompt_price = 1.0
output_price = 2.0
concurrency = 1
{more}

[generators.twin]
model = "{twin}"
arms = ["prompt"]
prompt_price = 3.0
output_price = 4.0
"""
ARMS = ("prompt", "retrieve", "big:prompt", "big:retrieve", "twin:prompt")

Respond = Callable[[dict[str, Any]], str]


class Endpoint:
    """Answers each request with `respond(body)` and 1 prompt token for each message's character, 5 output tokens."""

    def __init__(self) -> None:
        self.respond: Respond = lambda body: "The documents do not say."
        self.bodies: list[dict[str, Any]] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        body = json.loads(request.content)
        self.bodies.append(body)
        usage = {"prompt_tokens": sum(len(m["content"]) for m in body["messages"]), "completion_tokens": 5}
        choice = {"message": {"content": self.respond(body)}, "finish_reason": "stop"}
        return httpx2.Response(200, json={"choices": [choice], "usage": usage})


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    made = Endpoint()
    monkeypatch.setenv("BIG_KEY", KEY)
    plain = EndpointGenerator._client

    def client(self: EndpointGenerator) -> httpx2.Client:
        return httpx2.Client(headers=plain(self).headers, transport=httpx2.MockTransport(made))

    monkeypatch.setattr(EndpointGenerator, "_client", client)
    return made


def configured(
    project: Path, tiny_generator: Path, arms: tuple[str, ...] = ARMS, model: str = "big-1", more: str = ""
) -> ProjectConfig:
    path = project / "ragtune.toml"
    text = path.read_text(encoding="utf-8").partition("\n[generators.big]")[0]
    path.write_text(text + OTHERS.format(twin=tiny_generator, model=model, more=more), encoding="utf-8")
    overrides = {"evaluate.arms": arms, "evaluate.racing_error": 0.0, "evaluate.forgetting_probe": False}
    return load_config(project, overrides)


def texts(run: Run, arm: str) -> dict[tuple[str, str], str]:
    return {(row.task, row.question_id): row.text for row in run.rows if row.arm == arm}


@pytest.mark.usefixtures("fp32")
def test_other_generators_join_the_evaluation(project: Path, tiny_generator: Path, endpoint: Endpoint) -> None:
    config = configured(project, tiny_generator)
    ragtune.index(config)
    run = ragtune.evaluate(config)
    assert {row.arm for row in run.rows} == set(ARMS)
    assert texts(run, "twin:prompt") == texts(run, "prompt")  # the same model, with its own choices on dev
    assert len(texts(run, "twin:prompt")) == len(texts(run, "big:retrieve"))

    facts = next(v for v in run.verdicts if v.task == "facts")
    rows = [row for row in run.rows if row.task == "facts" and row.arm == "big:retrieve"]
    assert all(row.passage_ids and row.refused and row.output_tokens == 5 for row in rows)
    assert facts.summary("big:retrieve").cost == pytest.approx(
        sum(row.prompt_tokens + 5 * 2.0 for row in rows) / 1000 / len(rows)
    )
    twins, own = facts.summary("twin:prompt"), facts.summary("prompt")
    assert twins.cost == pytest.approx((own.prompt_tokens * 3 + own.output_tokens * 4) / 1000)

    routing = [row for row in run.rows if row.task == "routing"]
    assert all(row.free_text is not None for row in routing)
    assert {row.score for row in routing if row.arm == "big:prompt"} == {0.0}  # it names no label
    decision = json.loads((run.folder / "decision.json").read_text(encoding="utf-8"))
    assert {"facts", "big:facts", "twin:facts", "big:routing"} <= decision["instructions"].keys()
    manifest = json.loads((run.folder / "manifest.json").read_text(encoding="utf-8"))
    assert {task["name"] for task in manifest["tasks"]} == {"facts", "routing", "record"}
    assert manifest["provenance"]["generator big"].startswith("big-1 at http://big.example/v1 (")
    assert manifest["settings"]["prices of big"].startswith("1 and 2 units per 1,000")

    asked = len(endpoint.bodies)
    assert ragtune.evaluate(config).reused
    answer = ragtune.ask(config, "Where are lanterns lit?", arm="big:retrieve", task="facts")
    assert (answer.arm, answer.refused, len(endpoint.bodies)) == ("big:retrieve", True, asked + 1)
    ragtune.report(config)
    written = [path for path in project.rglob("*") if path.is_file()]
    assert len(written) > 20
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []


def test_an_evaluation_goes_on_after_the_limit(project: Path, tiny_generator: Path, endpoint: Endpoint) -> None:
    config = configured(project, tiny_generator, ("prompt", "big:prompt"), "big-2", "max_spend = 8.0")
    ragtune.index(config)
    with pytest.raises(UnfinishedError, match=r"generators\.big stopped before max_spend: .* of 8 units is spent"):
        ragtune.evaluate(config)
    paid = len(endpoint.bodies)
    assert paid > 5
    more = configured(project, tiny_generator, ("prompt", "big:prompt"), "big-2", "max_spend = 800.0")
    ragtune.evaluate(more)
    bodies = [json.dumps(body, sort_keys=True) for body in endpoint.bodies]
    assert len(bodies) > paid
    assert len(set(bodies)) == len(bodies)  # no answer was paid for twice


def test_what_is_wrong_is_found_before_the_first_question(
    project: Path, tiny_generator: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(project, tiny_generator)
    ragtune.index(config)
    monkeypatch.delenv("BIG_KEY")
    with pytest.raises(ConfigError, match="environment variable BIG_KEY, which is not set"):
        ragtune.evaluate(config)
    with pytest.raises(ConfigError, match=r"unknown arm 'big:few-shot'; expected one of: prompt, .*big:prompt, "):
        ragtune.evaluate(configured(project, tiny_generator, ("big:few-shot",)))
    assert not (project / "runs").exists()
