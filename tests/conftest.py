"""A small project for tests of the whole: six documents, three tasks, a tiny random model, a hashing embedder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ragtune.session import Session
from ragtune.testing import HashEmbedder, tiny_model

NAME = "fenmere"

# document -> (sentence, question, answer); a split's documents are its own, so that nothing leaks.
FACTS = {
    "train": {
        "rules/boats.md": [
            ("Members may keep two boats at the lake.", "How many boats can one member keep?", "two"),
            ("Guests row under the eye of a steward.", "Who watches guests that row?", "a steward"),
            ("Engines above five horsepower are banned.", "Which engines are forbidden?", "above five horsepower"),
            ("Every hull carries its number in white paint.", "In what colour is a hull number?", "white"),
        ],
        "rules/fees.md": [
            ("The yearly fee is forty pounds.", "What does a year cost?", "forty pounds"),
            ("Pupils pay half of the fee.", "How much do pupils pay?", "half"),
            ("The bursar collects money in March.", "When is money collected?", "March"),
        ],
        "house/kitchen.md": [
            ("The kitchen closes at nine in the evening.", "Until when is the kitchen open?", "nine"),
            ("Fish is cleaned at the stone table only.", "Where may I clean fish?", "the stone table"),
            ("Mrs Alder keeps the pantry key.", "Who has the pantry key?", "Mrs Alder"),
        ],
    },
    "dev": {
        "house/office.md": [
            ("The office opens on Tuesdays.", "On which day does the office open?", "Tuesdays"),
            ("Letters go into the red box.", "Where do I put letters?", "the red box"),
            ("The telephone stands beside the stove.", "Where is the telephone?", "beside the stove"),
            ("Mr Finch signs the permits.", "Who signs permits?", "Mr Finch"),
            ("Permits last for six weeks.", "How long is a permit good for?", "six weeks"),
        ],
    },
    "test": {
        "lake/weather.md": [
            ("A black flag means that rowing is stopped.", "What does a black flag mean?", "rowing is stopped"),
            ("The wind gauge hangs on the north pier.", "Where does the wind gauge hang?", "the north pier"),
            ("Ice is measured by the warden each morning.", "Who measures the ice?", "the warden"),
            ("Skating needs twelve centimetres of ice.", "How thick must ice be for skating?", "twelve centimetres"),
            ("Fog horns sound three times.", "How often do fog horns sound?", "three times"),
        ],
        "lake/events.md": [
            ("The regatta takes place in August.", "When is the regatta?", "August"),
            ("Lanterns are lit on the island.", "Where are lanterns lit?", "the island"),
            ("The winner receives a copper cup.", "What does the winner get?", "a copper cup"),
            ("Swimmers start from the wooden raft.", "Where do swimmers start?", "the wooden raft"),
            ("The band plays until midnight.", "How long does the band play?", "midnight"),
        ],
    },
}
UNANSWERABLE = {
    "train": ["Who painted the ceiling?", "Which train goes to Fenmere?"],
    "dev": ["How old is the bridge?"],
    "test": ["What is the mayor called?", "How deep is the sea there?"],
}
TEAMS = {
    "Moorings": ["anchor", "buoy", "chain", "cleat", "dock", "jetty", "knot", "ladder", "pontoon", "rope"],
    "Kitchen": ["bread", "cake", "coffee", "dinner", "kettle", "menu", "oven", "plate", "soup", "tea"],
    "Workshop": ["chisel", "drill", "glue", "hammer", "lathe", "paint", "plane", "saw", "screw", "varnish"],
}
SIZES = {"train": 12, "dev": 6, "test": 12}
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")

CONFIG = """\
name = "{name}"
documents = "documents"
default_task = "facts"

[index]
passage_tokens = 32

[generator]
model = "{model}"

[retrieval]
k = 3

[tune]
batch_size = 8
rank = 4
max_tokens = 2048
save_steps = 1

[evaluate]
shots = 2
example_sets = 2
forgetting_probe = false

[tasks.facts]
questions = "tasks/facts.jsonl"
instruction = ["Answer in a few words.", "Give the short answer."]
max_answer_tokens = 6

[tasks.routing]
questions = "tasks/routing.jsonl"
format = "label"
instruction = "Name the team."
max_answer_tokens = 4

[tasks.record]
questions = "tasks/record.jsonl"
format = "json"
instruction = "Write the record."
max_answer_tokens = 8
"""


def _facts() -> Iterator[dict[str, Any]]:
    for split, documents in FACTS.items():
        for document, rows in documents.items():
            for sentence, question, answer in rows:
                evidence = [{"document": document, "text": sentence}]
                yield {"split": split, "question": question, "answers": [answer], "evidence": evidence}
        for question in UNANSWERABLE[split]:
            yield {"split": split, "question": question, "answers": [], "evidence": []}


def _routing() -> Iterator[dict[str, Any]]:
    things = [(team, thing) for i in range(10) for team, things in TEAMS.items() for thing in things[i : i + 1]]
    for split, (team, thing) in zip(_splits(), things, strict=True):
        yield {"split": split, "question": f"Help with {thing}, please", "answers": [team], "evidence": []}


def _record() -> Iterator[dict[str, Any]]:
    for i, split in enumerate(_splits()):
        boats, day = 2 + i // len(DAYS), DAYS[i % len(DAYS)]
        answer = json.dumps({"boats": boats, "day": day})
        yield {"split": split, "question": f"{boats} boats were out, {day}", "answers": [answer], "evidence": []}


def _splits() -> list[str]:
    return [split for split, size in SIZES.items() for _ in range(size)]


@pytest.fixture(scope="session")
def tiny_generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model with random weights."""
    return tiny_model(tmp_path_factory.mktemp("generator") / "tiny")


@pytest.fixture(scope="session")
def tiny_project(tmp_path_factory: pytest.TempPathFactory, tiny_generator: Path) -> Path:
    """A project's folder: documents, tasks, ragtune.toml. Tests work on copies of it."""
    root = tmp_path_factory.mktemp("project")
    for documents in FACTS.values():
        for name, rows in documents.items():
            path = root / "documents" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            sentences = "\n\n".join(sentence for sentence, _, _ in rows)
            path.write_text(f"# {path.stem.title()}\n\n{sentences}\n", encoding="utf-8")
    (root / "tasks").mkdir()
    for task, questions in (("facts", _facts()), ("routing", _routing()), ("record", _record())):
        lines = [json.dumps({"id": f"{task}-{i}", **question}) + "\n" for i, question in enumerate(questions, 1)]
        (root / "tasks" / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")
    (root / "ragtune.toml").write_text(CONFIG.format(name=NAME, model=tiny_generator), encoding="utf-8")
    return root


def enter(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Work in `folder`, with a cache of its own and the hashing embedder."""
    patch.chdir(folder)
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    patch.setattr(Session, "embedder", property(lambda _: HashEmbedder()))


def use_fp32(patch: pytest.MonkeyPatch) -> None:
    """Let models compute in float32, where equal means equal on every machine."""
    import torch

    for module in ("generate", "train"):
        patch.setattr(f"ragtune.generator.{module}.best_dtype", lambda: torch.float32)


@pytest.fixture
def fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models compute in float32 in this test."""
    use_fp32(monkeypatch)


@pytest.fixture
def project(tiny_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny project, which is the working folder; nothing in it is made yet."""
    shutil.copytree(tiny_project, tmp_path, dirs_exist_ok=True)
    enter(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture(scope="session")
def made(tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny project in which everything is made: index, both adapters, run, report."""
    import ragtune

    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(tiny_project, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        use_fp32(patch)
        config = ragtune.load_config(Path())
        ragtune.index(config)
        ragtune.tune(config, "tune")
        ragtune.tune(config, "raft")
        ragtune.evaluate(config)
        ragtune.report(config)
    return folder


@pytest.fixture
def made_project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fp32: None) -> Path:
    """A copy of `made`, which is the working folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    enter(tmp_path, monkeypatch)
    return tmp_path
