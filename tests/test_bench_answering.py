"""The answering benchmark counts what it says, and its peer is asked in the right order."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ragtune.assistant import ARMS, Assistant
from ragtune.testing import ScriptedGenerator
from ragtune.types import Message, Question, Reply, Task

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
QUESTIONS = tuple(Question(f"q{i}", f"What is {i}?", (str(i),), "count", "test", ()) for i in range(3))
COUNT = Task("count", ("Say the number.",), "exact_match", "short", QUESTIONS)

# What the peer's worker needs of OpenVINO: prompts come back one token higher, as words.
PEER = """
class SchedulerConfig: pass
class GenerationConfig:
    def __init__(self, **settings): vars(self).update(settings)
class Result:
    def __init__(self, ids): self.m_generation_ids = [ids]
class Tokenizer:
    def decode(self, ids): return " ".join(map(str, ids))
class ContinuousBatchingPipeline:
    def __init__(self, *arguments): pass
    def get_tokenizer(self): return Tokenizer()
    def generate(self, prompts, limits):
        return [Result([i + 1 for i in p.tolist()[0]][:one.max_new_tokens]) for p, one in zip(prompts, limits)]
__version__ = "double"
"""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The benchmark's script as a module."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield import_module("bench_answering")
    for name in ("bench_answering", "peer_openvino"):
        sys.modules.pop(name, None)


@pytest.fixture
def peer(bench: ModuleType) -> Any:
    return bench.peer_openvino


def group(bench: ModuleType, task: Task = COUNT) -> Any:
    assistant = Assistant(ARMS["prompt"], task, "Say the number.", ScriptedGenerator(lambda _: "1"))
    prompts = tuple(assistant.prepare(q.text, ())[0] for q in task.questions)
    return bench.Group(assistant, task.questions, prompts, ((),) * len(prompts))


def request(task: str, arm: str, *ids: int) -> dict[str, Any]:
    return {"task": task, "group": f"{task}/{arm}", "ids": list(ids), "max_new_tokens": 2, "end": 0}


# --- figures ---------------------------------------------------------------------------------------------------------


def test_a_run_reports_every_figure(bench: ModuleType, project: Path, fp32: None) -> None:
    figures = bench.run(project, most=3, peer=None)
    assert json.loads(json.dumps(figures)) == figures
    assert (figures["dtype"], figures["identical"]) == ("float32", 1.0)
    assert figures["agreement_bf16"] is figures["score_difference_bf16"] is None  # fp32 was timed
    assert figures["openvino"] is figures["speedup_vs_openvino"] is None  # no peer was asked
    groups = figures["groups"]
    assert {(g["task"], g["arm"]) for g in groups} == {
        (task, arm) for task in ("facts", "routing", "record") for arm in bench.ARMS
    }
    assert figures["questions"] == sum(g["questions"] for g in groups) == 36
    assert figures["tokens"] == sum(g["prompt_tokens"] + g["output_tokens"] for g in groups)
    assert all(g["agreement"] == 1.0 for g in groups)
    plain, seconds = (sum(g[key] for g in groups) for key in ("plain_seconds", "seconds"))
    assert figures["speedup_vs_generate"] == pytest.approx(plain / seconds)


def test_both_sides_get_the_same_prompts_of_the_same_questions(bench: ModuleType, project: Path) -> None:
    with bench.opened(project) as session:
        groups = bench.workload(session, 4)
        assert not (project / "indexes").exists()  # the index was made elsewhere
    facts = {g.assistant.arm.name: g for g in groups if g.assistant.task.name == "facts"}
    assert len({g.questions for g in facts.values()}) == 1
    assert len(facts["prompt"].prompts) == 4
    assert all(hits for hits in facts["retrieve"].hits)
    assert not any(hits for hits in facts["few-shot"].hits)
    assert len(facts["retrieve+few-shot"].prompts[0]) > len(facts["retrieve"].prompts[0])


def test_plain_answers_are_those_of_generate_on_each_prompt_alone(bench: ModuleType, tiny_generator: Path) -> None:
    plain = bench.Plain.from_folder(tiny_generator, torch.float32)
    prompts = [(Message("user", "boat " * n),) for n in range(1, 20, 2)]  # two batches, rows of unlike lengths
    alone = []
    for prompt in prompts:
        ids = plain.tokenizer.apply_chat_template(
            [asdict(m) for m in prompt], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        output = plain.model.generate(**ids, max_new_tokens=6, do_sample=False)
        alone.append(plain.tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    assert len(set(alone)) > 1
    assert plain.answer(prompts, 6) == alone


def test_agreement_and_score_difference_by_hand(bench: ModuleType) -> None:
    first = group(bench)
    second = replace(first, questions=QUESTIONS[:1], prompts=first.prompts[:1], hits=first.hits[:1])
    texts = ["0", "x", "2"]
    assert first.score(texts) == pytest.approx(2 / 3)
    assert bench.share_equal(zip(texts, ["0", "1", "2"], strict=True)) == pytest.approx(2 / 3)
    # Three questions of which one more is right, and one of which one fewer is: (1 - 1) / 4.
    sides = [(first, texts, ["0", "1", "2"]), (second, ["0"], ["7"])]
    assert bench.mean_difference(sides) == pytest.approx(0.0)
    assert bench.mean_difference(sides[:1]) == pytest.approx(1 / 3)


def timed(bench: ModuleType, task: Task, plain: list[str], texts: list[str], seconds: tuple[float, float]) -> Any:
    free = "?" if task.format == "label" else None
    replies = [Reply(text, 10, 2, 0.0, free_text=free) for text in texts]
    return bench.Timed(group(bench, task), plain, replies, *seconds)


def test_label_tasks_count_for_time_and_with_what_was_written_freely(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScriptedGenerator, "dtype", "bfloat16", raising=False)
    picked = replace(COUNT, name="pick", format="label", metric="accuracy", labels=("0", "1", "2"))
    results = [
        timed(bench, COUNT, ["0", "1", "x"], ["0", "1", "2"], (6.0, 2.0)),
        timed(bench, picked, ["?", "?", "?"], ["0", "1", "2"], (6.0, 1.0)),
    ]
    figures = bench.summarise(results)
    assert figures["speedup_vs_generate"] == 4.0
    assert figures["agreement_bf16"] == pytest.approx(5 / 6)
    assert figures["score_difference_bf16"] == pytest.approx(1 / 3)
    assert (figures["questions"], figures["tokens"]) == (6, 72)
    assert [g["score"] for g in figures["groups"]] == [1.0, 1.0]


def test_who_goes_first_alternates(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def record(name: str, answers: list[Any]) -> Callable[..., list[Any]]:
        return lambda *_: order.append(name) or answers

    class Double:
        answer = staticmethod(record("plain", ["1", "1", "1"]))

    monkeypatch.setattr(Assistant, "reply", record("ragtune", [Reply("1", 1, 1, 0.0)] * 3))
    bench.measure_all([group(bench)] * 3, Double())
    assert order[2:] == ["plain", "ragtune", "ragtune", "plain", "plain", "ragtune"]  # after the warm-up


# --- the peer --------------------------------------------------------------------------------------------------------


def test_first_prompts_go_ahead_of_the_others_of_their_task(peer: Any) -> None:
    requests = [request("a", "x", 1), request("a", "x", 2), request("a", "y", 3), request("a", "y", 4)]
    requests += [request("b", "x", 5)]
    assert list(peer.waves(requests)) == [[0, 2], [1, 3], [4]]


def ready(peer: Any, folder: Path) -> Path:
    """A folder in which everything seems prepared; gives the model's."""
    (folder / "env" / "bin").mkdir(parents=True)
    (folder / "env" / ".ready").write_text("\n".join((*peer.PACKAGES, *peer.EXPORTER)), encoding="utf-8")
    (folder / "models" / "tiny").mkdir(parents=True)
    return folder / "tiny"


def test_the_peer_answers_in_its_own_process_in_the_order_of_the_requests(
    peer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ready(peer, tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    (tmp_path / "openvino_genai.py").write_text(PEER, encoding="utf-8")
    (tmp_path / "openvino.py").write_text("def Tensor(array): return array\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    requests = [request("a", "x", 1), request("a", "x", 2, 3, 4), request("a", "y", 5), request("b", "x", 6)]
    result = peer.ask(tmp_path, model, requests, 2, "f32")
    assert result["answers"] == ["2", "3 4", "6", "7"]
    assert result["seconds"] > 0
    assert result["version"] == "double"
    assert result["settings"]["INFERENCE_NUM_THREADS"] == 2
    assert result["settings"]["INFERENCE_PRECISION_HINT"] == "f32"


def test_the_environment_is_made_once_and_anew_when_its_packages_change(
    peer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ready(peer, tmp_path)
    commands: list[str] = []

    def run(*command: object) -> None:
        commands.append(" ".join(map(str, command)))
        if "export" in command:
            Path(str(command[-1])).mkdir()
        elif "venv" in command:
            (tmp_path / "env" / "bin").mkdir(parents=True)

    monkeypatch.setattr(peer, "_run", run)
    assert peer.prepare(tmp_path, model) == tmp_path / "models" / "tiny"
    assert commands == []
    (tmp_path / "env" / ".ready").write_text("openvino-genai==1", encoding="utf-8")
    (tmp_path / "models" / "tiny").rmdir()
    assert peer.prepare(tmp_path, model).is_dir()
    assert ["-m venv" in commands[0], "install" in commands[1], "--no-deps" in commands[2]] == [True] * 3
    assert f"export openvino --model {model}" in commands[3]
    commands.clear()
    peer.prepare(tmp_path, model)
    assert commands == []
