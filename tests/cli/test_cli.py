"""The command line as somebody meets it: help, the first commands, JSON, pipes, colours, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from ragtune import __version__, store
from ragtune.cli import COMMANDS
from ragtune.config import ProjectConfig, load_config
from ragtune.generator.models import EMBEDDED

Cli = Callable[..., CompletedProcess[str]]
ESCAPE = "\x1b"
QUESTION = "Who measures the ice?"
MODELS = ("list", "show", "prepare")


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_lists_all_commands_each_with_a_line(cli: Cli) -> None:
    shown = cli("--help")
    assert shown.returncode == 0
    for command in COMMANDS:
        assert re.search(rf"^  {command} +[A-Z]\w+", shown.stdout, re.MULTILINE), command
    assert cli("-h").stdout == shown.stdout
    assert cli("--version").stdout == f"ragtune, version {__version__}\n"


@pytest.mark.parametrize("command", [*COMMANDS, *(f"models {name}" for name in MODELS)])
def test_every_help_page_has_an_example(cli: Cli, command: str) -> None:
    shown = cli(*command.split(), "--help")
    assert shown.returncode == 0
    assert "Example" in shown.stdout
    assert f"ragtune {command.split()[0]}" in shown.stdout.split("Example")[1]


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['ragtune', '--help']\n"
        "import atexit; from ragtune.cli import main\n"
        "heavy = ('torch', 'transformers', 'faiss', 'scipy', 'numpy', 'matplotlib')\n"
        "atexit.register(lambda: print('loaded', [name for name in heavy if name in sys.modules]))\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("loaded []\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("indexx",), "No such command 'indexx'"),
        (("ask", "--colour"), "No such option '--colour'"),
        (("tune", "--arm", "retrieve"), "'retrieve' is not one of 'raft', 'tune'"),
        (("search",), "Missing argument 'QUERY'"),
        (("evaluate", "--questions", "many"), "'many' is not a valid integer"),
    ],
)
def test_wrong_usage_is_explained(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    done = cli(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Usage: " in done.stderr
    assert "Traceback" not in done.stderr


# --- init ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("folder", ["Hand Book", "-", "größe", 'a"b', "c:\\d", "x\ty", "x\ny", "_under"])
def test_init_writes_what_load_config_accepts(cli: Cli, empty: Path, folder: str) -> None:
    (empty / folder).mkdir()
    done = cli("init", "--", folder)
    assert (done.returncode, done.stderr) == (0, "")
    project = load_config(Path())
    assert project.documents == folder
    defaults = ProjectConfig(name=project.name, documents=folder)
    assert project.index == defaults.index
    assert (project.retrieval, project.generator, project.tasks) == (defaults.retrieval, defaults.generator, {})


def test_what_init_comments_out_is_accepted_too(cli: Cli, empty: Path) -> None:
    (empty / "docs").mkdir()
    assert cli("init", "docs", "--name", "lake").returncode == 0
    text = Path("ragtune.toml").read_text()
    Path("ragtune.toml").write_text(re.sub(r"^# (?=\[|(?!answers)\w+ += )", "", text, flags=re.MULTILINE))
    project = load_config(Path())
    assert project.name == "lake"
    assert project.tasks["facts"].format == "short"
    assert project.index.exclude == ("drafts/*",)


def test_init_leads_to_an_index(cli: Cli, project: Path) -> None:
    assert cli("init", "documents", "--force").returncode == 0
    done = cli("index")
    assert done.returncode == 0
    assert re.fullmatch(r"indexes/documents written: 6 documents, \d+ passages\n", done.stdout)
    assert re.fullmatch(r"indexes/documents is up to date: 6 documents, \d+ passages\n", cli("index").stdout)


@pytest.mark.parametrize("name", ["No Name", 'a"b', "-x", "../x"])
def test_init_refuses_a_name_that_could_not_be_loaded(cli: Cli, empty: Path, name: str) -> None:
    (empty / "docs").mkdir()
    done = cli("init", "docs", f"--name={name}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert not Path("ragtune.toml").exists()


# --- results for machines and for pipes ------------------------------------------------------------------------------

JSON = {
    "index": ("index", "--json"),
    "search": ("search", QUESTION, "-k", "2", "--json"),
    "ask": ("ask", QUESTION, "--json"),
    "check": ("check", "--json"),
    "tune": ("tune", "--arm", "tune", "--json"),
    "evaluate": ("evaluate", "--json"),
    "report": ("report", "--json"),
    "models list": ("models", "list", "--json"),
    "models show": ("models", "show", "all-minilm-l6-v2", "--json"),
}


@pytest.mark.parametrize("command", JSON)
def test_json_is_all_that_stands_on_standard_output(cli: Cli, made_project: Path, command: str) -> None:
    done = cli(*JSON[command])
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value
    assert ESCAPE not in done.stdout + done.stderr
    expected: dict[str, dict[str, object]] = {
        "index": {"documents": 6, "reused": True, "skipped": []},
        "check": {"errors": []},
        "tune": {"rows": 36, "reused": True},
        "evaluate": {"run": "runs/fenmere", "reused": True},
        "report": {"report": "reports/fenmere/report.html"},
        "ask": {"question": QUESTION},
        "models show": {"name": "all-minilm-l6-v2", "kind": "embedder"},
    }
    for key, wanted in expected.get(command, {}).items():
        assert value[key] == wanted
    if command == "search":
        assert [hit["rank"] for hit in value] == [1, 2]
        text = Path("documents", value[0]["document"]).read_text(encoding="utf-8")
        assert text[value[0]["start"] : value[0]["end"]] == value[0]["text"]


TEXT = {
    "index": ("index",),
    "search": ("search", QUESTION),
    "ask": ("ask", QUESTION, "--arm", "retrieve", "--task", "facts"),
    "check": ("check",),
    "tune": ("tune",),
    "evaluate": ("evaluate",),
    "report": ("report",),
    "models": ("models", "list"),
}


@pytest.mark.parametrize("command", TEXT)
def test_piped_output_has_no_escape_codes(cli: Cli, made_project: Path, command: str) -> None:
    done = cli(*TEXT[command])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert ESCAPE not in done.stdout + done.stderr


def test_a_terminal_gets_colours_unless_it_wants_none(
    cli: Cli, made_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured = cli(*TEXT["search"])
    assert ESCAPE in coloured.stdout
    monkeypatch.setenv("NO_COLOR", "1")
    plain = cli(*TEXT["search"])
    assert ESCAPE not in plain.stdout + plain.stderr
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured.stdout) == plain.stdout


def test_the_last_line_of_report_is_its_path(cli: Cli, made_project: Path) -> None:
    assert Path(cli("report").stdout.splitlines()[-1]).read_text().startswith("<!doctype html>")


def test_ask_shows_its_sources_and_says_why(cli: Cli, made_project: Path) -> None:
    done = cli("ask", QUESTION, "--arm", "retrieve", "--task", "facts")
    sources = re.findall(r"^  \[(\d)\] (\S+\.md):(\d+)-(\d+)( cited)?$", done.stdout, re.MULTILINE)
    assert [source[0] for source in sources] == ["1", "2", "3"]
    assert done.stderr == "arm retrieve (task facts: as asked)\n"


class Keyboard(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("end", ["\n", ""], ids=["empty line", "ctrl-d"])
def test_ask_without_a_question_is_a_chat(
    cli: Cli, made_project: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(sys, "stdin", Keyboard(f"{QUESTION}\n{'boat ' * 300}\nUntil when is it open?\n{end}"))
    done = cli("ask", "--arm", "retrieve", "--task", "facts")
    assert done.returncode == 0
    assert done.stdout.count("> ") == 4
    assert done.stdout.count("  [1] ") == 2
    assert done.stderr.count("error: a text of 302 tokens is longer than hash reads") == 1


def test_progress_on_a_terminal(cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch, fp32: None) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert cli("index").returncode == 0
    tuned = cli("tune", "--arm", "tune", "--max-rows-per-task", "2")
    assert (tuned.returncode, "training" in tuned.stderr) == (0, True)
    evaluated = cli("evaluate", "--arm", "prompt", "--arm", "tune", "--task", "facts", "--questions", "4")
    assert (evaluated.returncode, "facts 4/4" in evaluated.stderr) == (0, True)


def test_evaluate_prints_a_verdict_for_each_task(cli: Cli, made_project: Path) -> None:
    done = cli("evaluate")
    for verdict in store.read_json(Path("runs/fenmere/verdicts.json")):
        assert re.search(rf"^{verdict['task']} +│ {re.escape(verdict['arm'])} ", done.stdout, re.MULTILINE)
    assert done.stdout.splitlines()[-1].startswith("runs/fenmere is up to date: 300 answers")


def test_names_with_brackets_are_printed_as_they_are(cli: Cli, project: Path) -> None:
    Path("documents/[draft] [bold]plan.md").write_text(
        "The zeppelin [red] lands :key: on the lake.\n", encoding="utf-8"
    )
    Path("documents/[0][/b].md").mkdir(parents=True)  # as a path below documents: `[0][` and `b].md`
    Path("documents/[0][/b].md/zoo.md").write_text("A zeppelin is no boat.\n", encoding="utf-8")
    Path("documents/[red]empty.md").touch()
    done = cli("index")
    assert done.returncode == 0
    assert "warning: skipped [red]empty.md: empty\n" in done.stderr
    found = cli("search", "zeppelin", "-k", "2")
    assert found.returncode == 0
    assert "[draft] [bold]plan.md:0-" in found.stdout
    assert "The zeppelin [red] lands :key: on the lake." in found.stdout
    assert "[0][/b].md/zoo.md:0-" in found.stdout


# --- exit codes and the machine --------------------------------------------------------------------------------------


def test_check_exits_with_1_on_errors(cli: Cli, project: Path) -> None:
    sound = cli("check")
    assert (sound.returncode, sound.stderr) == (0, "")
    assert sound.stdout.splitlines() == [
        "facts: 12 train, 6 dev, 12 test",
        "routing: 12 train, 6 dev, 12 test",
        "record: 12 train, 6 dev, 12 test",
        "0 errors, 0 warnings",
    ]
    tasks = project / "tasks/facts.jsonl"
    tasks.write_text(tasks.read_text().replace("Ice is measured", "Ice was measured"))
    wrong = cli("check")
    assert wrong.returncode == 1
    assert "occur" in wrong.stdout
    assert wrong.stdout.splitlines()[-1] == "1 errors, 0 warnings"
    (error,) = json.loads(cli("check", "--json").stdout)["errors"]
    assert error["task"] == "facts"


def test_doctor_says_what_is_there_and_what_is_missing(cli: Cli, empty: Path) -> None:
    found = cli("doctor", "--json")
    findings = json.loads(found.stdout)
    assert {"CPU", "GPU", "memory", "disk", "torch", "NF4 (bitsandbytes)"} <= {finding["what"] for finding in findings}
    assert found.returncode == int(any(finding["cure"] for finding in findings))
    shown = cli("doctor")
    assert all(finding["what"] in shown.stdout for finding in findings)
    assert shown.stdout.count(" -> ") == sum(bool(finding["cure"]) for finding in findings)


def test_models_lists_the_embedded_ones_with_licence_and_state(cli: Cli, project: Path) -> None:
    shown = cli("models", "list")
    for name, model in EMBEDDED.items():
        line = rf"^{name} +{model.kind} +{model.licence} +(ready|not prepared|not installed)$"
        assert re.search(line, shown.stdout, re.MULTILINE)
    assert [model["name"] for model in json.loads(cli("models", "list", "--json").stdout)] == list(EMBEDDED)


def test_models_prepare_gives_the_folder(cli: Cli, project: Path, tiny_generator: Path) -> None:
    assert cli("models", "prepare", str(tiny_generator)).stdout == f"{tiny_generator}: {tiny_generator}\n"


@pytest.mark.parametrize("arguments", [("models", "list"), ("models", "list", "--json"), ("--help",)])
def test_a_reader_that_has_left_is_no_error(project: Path, arguments: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", "from ragtune.cli import main; main()", *arguments]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 1
