"""Settings: what a file and flags give, and that a wrong one is named with its place and its cure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ragtune.config import ProjectConfig, build_config, load_config
from ragtune.errors import ConfigError

SMALLEST = 'name = "lake"\n'
TASK = '[tasks.facts]\nquestions = "facts.jsonl"\ninstruction = "Be short."\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "ragtune.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_name_is_enough(tmp_path: Path) -> None:
    project = load_config(write(tmp_path, SMALLEST))
    assert project.name == "lake"
    assert project.documents_path == tmp_path / "documents"
    assert (project.index.embedder, project.generator.model) == ("all-minilm-l6-v2", "smollm2-135m-instruct")
    assert project.tasks == {}
    assert project.place("runs") == Path("runs/lake")


def test_the_folder_or_its_file_as_path_or_string(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST)
    assert load_config(tmp_path) == load_config(path) == load_config(str(path)) == load_config(str(tmp_path))


def test_overrides_lie_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, f"{SMALLEST}[tune]\nepochs = 3\nrank = 8\n")
    project = load_config(path, {"tune.epochs": 0.5, "tune.rank": None, "retrieval.k": 7, "documents": "texts"})
    assert (project.tune.epochs, project.tune.rank, project.retrieval.k) == (0.5, 8, 7)
    assert project.documents_path == tmp_path / "texts"
    assert load_config(path).tune.epochs == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[index]\npassage_token = 9\n", "unknown key index.passage_token; expected one of: embedder, passage_tokens,"),
        (f'{TASK}metrics = "y"\n', "unknown key tasks.facts.metrics; expected one of: questions, instruction, format"),
        ("colour = 1\n", "unknown key colour; expected one of: name, documents, default_task, index, retrieval"),
        ('root = "/"\n', "unknown key root"),
        ('[index]\npassage_tokens = "many"\n', "index.passage_tokens = 'many': Input should be a valid integer"),
        ("[index]\npassage_tokens = 1\n", "index.passage_tokens = 1: Input should be greater than or equal to 16"),
        ("[tune]\nepochs = inf\n", "tune.epochs = inf: Input should be a finite number"),
        ("[tune]\nlearning_rate = nan\n", "tune.learning_rate = nan: Input should be a finite number"),
        ("[evaluate]\nmargin = -0.1\n", "evaluate.margin = -0.1: Input should be greater than or equal to 0"),
        ("index = 3\n", "index = 3: Input should be"),
        ('[tasks.facts]\ninstruction = "x"\n', "key tasks.facts.questions is missing"),
        ('default_task = "poems"\n', "default_task 'poems' is not a task; tasks are: none"),
        (f'{TASK}format = "ode"\n', "tasks.facts.format = 'ode': Input should be 'short', 'label', 'json' or 'text'"),
    ],
)
def test_wrong_settings_are_named_with_their_place(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, SMALLEST + text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


def test_all_wrong_settings_are_named_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, 'name = "No Name"\n[tune]\nrank = 0\nranks = 4\n')
    with pytest.raises(ConfigError, match=r"name = 'No Name'.*; tune\.rank = 0: .*; unknown key tune\.ranks"):
        load_config(path)


def test_default_task_may_be_any_task() -> None:
    task = {"questions": "q.jsonl", "instruction": ["one", "two"]}
    project = build_config({"name": "lake", "default_task": "a", "tasks": {"a": task}}, Path("x/ragtune.toml"))
    assert project.tasks["a"].instruction == ("one", "two")
    with pytest.raises(ConfigError, match=r"default_task 'b' is not a task; tasks are: a$"):
        build_config({"name": "lake", "default_task": "b", "tasks": {"a": task}}, Path("x/ragtune.toml"))


@pytest.mark.parametrize("overrides", [{"index.passage_tokens": 8}, {"index.depth": 1}, {"tunes.rank": 4}])
def test_overrides_are_validated_too(tmp_path: Path, overrides: dict[str, Any]) -> None:
    (key,) = overrides
    with pytest.raises(ConfigError, match=key.split(".")[0]):
        load_config(write(tmp_path, SMALLEST), overrides)


def test_an_override_into_something_that_is_no_section(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="index = 3: Input should be"):
        load_config(write(tmp_path, f"{SMALLEST}index = 3\n"), {"index.passage_tokens": 32})


@pytest.mark.parametrize("where", [".", "ragtune.toml", "nowhere"])
def test_a_missing_file_names_the_command_that_writes_one(tmp_path: Path, where: str) -> None:
    with pytest.raises(ConfigError, match=r"^there is no .*; write one with: ragtune init DOCS"):
        load_config(tmp_path / where)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read \(Not a directory\)"):
        load_config(write(tmp_path, SMALLEST) / "ragtune.toml")
    for data in (b"name = \n", b'name = "\xff"\n'):
        (tmp_path / "ragtune.toml").write_bytes(data)
        with pytest.raises(ConfigError, match="is not valid TOML"):
            load_config(tmp_path)


def test_settings_cannot_be_changed() -> None:
    project = ProjectConfig(name="lake")
    with pytest.raises(ValueError, match="frozen"):
        project.index.passage_tokens = 5  # type: ignore[misc]
