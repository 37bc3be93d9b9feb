"""`ragtune compare`, and `evaluate --baseline`: what is printed, what the exit code says, which runs are refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from ragtune import store
from ragtune.evaluator.regression import load_results
from ragtune.session import Session
from ragtune.testing import ScriptedGenerator
from ragtune.types import Message, Question, Row

Cli = Callable[..., CompletedProcess[str]]
Scores = Mapping[str, Mapping[str, Sequence[float]]]
RIGHT, WRONG = [1.0] * 12, [0.0] * 12


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_run(folder: str, scores: Scores, metric: str = "token_f1", text: str = "Who?") -> None:
    """A finished run with the parts that a comparison reads; the first arm of each task is its verdict's."""
    facts = {"metric": metric, "split_note": "split by question"}
    manifest = {"kind": "run", "tasks": [{"name": task, **facts} for task in scores]}
    rows = [
        Row(task, f"{task}-{i}", arm, score, {}, "", (), (), 10, 1, 0.1, False)
        for task, arms in scores.items()
        for arm, values in arms.items()
        for i, score in enumerate(values)
    ]
    asked = dict.fromkeys((row.task, row.question_id) for row in rows)
    questions = [Question(id, f"{text} ({id})", ("she",), task, "test") for task, id in asked]
    with store.atomic_folder(Path(folder), manifest) as building:
        store.write_jsonl(building / "rows.jsonl", map(asdict, rows))
        store.write_jsonl(building / "questions.jsonl", map(asdict, questions))
        store.write_json(
            building / "verdicts.json", [{"task": task, "arm": next(iter(arms))} for task, arms in scores.items()]
        )


def complaint(done: CompletedProcess[str]) -> str:
    """The one line that says what is wrong."""
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = done.stderr.splitlines()
    return line


# --- compare ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def worse() -> None:
    """A baseline, and a run that is worse on one task of two."""
    write_run("baseline", {"facts": {"tune": RIGHT, "prompt": WRONG}, "poems": {"prompt": RIGHT}})
    write_run("run", {"facts": {"prompt": WRONG, "tune": RIGHT}, "poems": {"prompt": RIGHT}})


@pytest.mark.usefixtures("worse")
def test_a_table_and_a_sentence_for_each_task(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = cli("compare", "baseline", "run").stdout
    cells = [[cell.strip() for cell in line.split("│")] for line in shown.splitlines() if "│" in line]
    assert cells == [
        ["facts", "verdict's", "−1.00 (−1.00 to −0.47)", "< 0.001", "0/0/12", "worse"],
        ["", "2 arms", "", "", "", "not shown"],
        ["poems", "verdict's", "0.00 (−0.26 to +0.26)", "1.00", "0/12/0", "not shown"],
        ["", "1 arm", "", "", "", "not shown"],
    ]
    assert "\nfacts: worse; tune scored 1.00 in the baseline and prompt scores 0.00 now: " in shown
    assert "\npoems: no difference shown; prompt scored 1.00" in shown
    assert "\np-values are Holm-corrected over 2 verdicts and, apart from them, 3 arms.\n" in shown
    assert shown.endswith("\nShown to be worse than in the baseline: facts.\n")


@pytest.mark.usefixtures("worse")
def test_a_line_for_an_arm_that_changed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    write_run("run", {"facts": {"tune": RIGHT, "prompt": RIGHT}, "[b]": {"prompt": RIGHT}})
    shown = cli("compare", "baseline", "run").stdout
    assert re.search(r"^ +│ prompt +│ \+1\.00 \(.*│ 12/0/0 +│ better *$", shown, re.MULTILINE)
    assert "\npoems: not compared; only in the baseline.\n[b]: not compared; only in the new run.\n" in shown
    assert shown.endswith("\nShown to be worse than in the baseline: no task.\n")


@pytest.mark.usefixtures("worse")
def test_the_exit_code_is_1_only_when_asked_for(cli: Cli) -> None:
    assert cli("compare", "baseline", "run").returncode == 0
    assert cli("compare", "baseline", "run", "--fail-on-regression").returncode == 1
    assert cli("compare", "run", "baseline", "--fail-on-regression").returncode == 0
    assert cli("compare", "run", "run", "--fail-on-regression").returncode == 0


@pytest.mark.usefixtures("worse")
def test_json_holds_every_line(cli: Cli) -> None:
    done = cli("compare", "baseline", "run", "--json", "--fail-on-regression")
    assert (done.returncode, done.stderr) == (1, "")
    value = json.loads(done.stdout)
    assert (value["baseline"], value["run"], value["regressions"]) == ("baseline", "run", ["facts"])
    assert (value["skipped"], value["families"]) == ({}, {"verdicts": 2, "arms": 3})
    facts, poems = value["tasks"]
    assert (facts["task"], facts["metric"], facts["common"], facts["edited"]) == ("facts", "token_f1", 12, 0)
    assert (facts["verdict"]["before"], facts["verdict"]["after"]) == ("tune", "prompt")
    assert (facts["verdict"]["status"], facts["verdict"]["n"], facts["verdict"]["losses"]) == ("worse", 12, 12)
    assert [arm["after"] for arm in facts["arms"]] == ["tune", "prompt"]
    assert poems["verdict"]["status"] == "no difference shown"


def test_a_baseline_may_be_moved(cli: Cli) -> None:
    write_run("runs/lake", {"facts": {"prompt": RIGHT}})
    shutil.copytree("runs/lake", "kept/since-may")
    assert cli("compare", "kept/since-may", "runs/lake").returncode == 0


# --- runs that cannot be compared ------------------------------------------------------------------------------------


def replacing(path: str, old: str, new: str) -> Callable[[], None]:
    def spoil() -> None:
        text = Path(path).read_text(encoding="utf-8")
        assert old in text
        Path(path).write_text(text.replace(old, new, 1), encoding="utf-8")

    return spoil


def instead(scores: Scores, metric: str = "token_f1", text: str = "Who?") -> Callable[[], None]:
    return lambda: write_run("run", scores, metric, text)


def index() -> None:
    shutil.rmtree("run")
    with store.atomic_folder(Path("run"), {"kind": "index"}):
        pass


FACTS = {"facts": {"prompt": RIGHT}}
REFUSALS: dict[str, tuple[Callable[[], None], str]] = {
    "no folder": (lambda: shutil.rmtree("run"), r"there is no run at run$"),
    "not a run": (lambda: Path("run/manifest.json").unlink(), r"run has no manifest\.json: it is not a finished run"),
    "an index": (index, r"run is of kind index, expected kind run"),
    "another version": (
        replacing("run/manifest.json", '"format_version": ', '"format_version": 9'),
        r"run has format version 9\d, this ragtune reads \d; make the run again",
    ),
    "edited rows": (replacing("run/rows.jsonl", "1.0", "0.0"), r"run: rows\.jsonl is damaged .*sha256 differs"),
    "edited questions": (replacing("run/questions.jsonl", "Who", "Why"), r"run: questions\.jsonl is damaged .*sha256"),
    "edited manifest": (
        replacing("run/manifest.json", "token_f1", "rouge_l"),
        r"manifest\.json is damaged or was edited",
    ),
    "lost rows": (lambda: Path("run/rows.jsonl").unlink(), r"run: rows\.jsonl is missing"),
    "no common task": (
        instead({"poems": {"prompt": RIGHT}}),
        r"nothing to compare \(task 'facts': only in the baseline; task 'poems': only in the new run\)",
    ),
    "no common question": (instead(FACTS, text="Whom?"), r"task 'facts': 0 common questions, 12 edited, 0 in one run"),
    "another metric": (
        instead(FACTS, metric="exact_match"),
        r"task 'facts': metric token_f1 in the baseline, exact_match in the new run",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_one_line_says_why_a_run_is_refused(cli: Cli, case: str) -> None:
    """Exit code 2, so that a pipeline can tell it from a regression."""
    spoil, message = REFUSALS[case]
    for folder in ("baseline", "run"):
        write_run(folder, FACTS)
    spoil()
    assert re.search(message, complaint(cli("compare", "baseline", "run", "--fail-on-regression")))


# --- evaluate --baseline ---------------------------------------------------------------------------------------------


@pytest.fixture
def evaluate(cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CompletedProcess[str]]:
    """`evaluate(knows, *flags)` with a generator that knows the labels, or always says one and the same."""
    assert cli("index").returncode == 0
    rows = [json.loads(line) for line in Path("tasks/routing.jsonl").read_text(encoding="utf-8").splitlines()]
    labels = {row["question"]: row["answers"][0] for row in rows}

    def know(messages: Sequence[Message]) -> str:
        return labels[messages[-1].content.split("\n\n")[-1]]

    def run(knows: bool, *flags: str) -> CompletedProcess[str]:
        generator = ScriptedGenerator(know, "knows") if knows else ScriptedGenerator(lambda _: "Kitchen", "guesses")
        monkeypatch.setattr(Session, "generator", lambda self, weights, keep_others=True: generator)
        # The margin stands for whatever was changed: with the same inputs the finished run would be taken.
        margin = "0.02" if knows else "0.03"
        arms = ("--task", "routing", "--arm", "prompt", "--arm", "retrieve", "--margin", margin)
        return cli("evaluate", *arms, *flags)

    return run


def test_evaluate_against_a_copy_of_an_earlier_run(evaluate: Callable[..., CompletedProcess[str]]) -> None:
    assert evaluate(True).returncode == 0
    shutil.copytree("runs/fenmere", "baseline")
    gate = ("--baseline", "baseline", "--fail-on-regression")
    assert evaluate(True, *gate).returncode == 0
    failed = evaluate(False, *gate)
    assert failed.returncode == 1
    assert "runs/fenmere written: " in failed.stdout  # the new run is kept, to look into
    assert failed.stdout.endswith("Shown to be worse than in the baseline: routing.\n")
    assert evaluate(False, "--baseline", "baseline").returncode == 0
    value = json.loads(evaluate(False, *gate, "--json").stdout)
    assert (value["reused"], value["comparison"]["regressions"]) == (True, ["routing"])


def test_the_baseline_may_be_the_run_that_is_replaced(evaluate: Callable[..., CompletedProcess[str]]) -> None:
    assert evaluate(True).returncode == 0
    gate = ("--baseline", "runs/fenmere", "--fail-on-regression")
    assert evaluate(False, *gate).returncode == 1
    assert evaluate(False, *gate).returncode == 0  # by now the worse run is the baseline


def test_questions_count_by_document_where_the_verdict_does(cli: Cli, made_project: Path) -> None:
    """In the project's own run `facts` has two documents and two questions without one; the others have no evidence."""
    assert load_results(Path("runs/fenmere")).by_document == {"facts"}
    value = json.loads(cli("compare", "runs/fenmere", "runs/fenmere", "--json").stdout)
    counts = {change["task"]: (change["verdict"]["n"], change["verdict"]["clusters"]) for change in value["tasks"]}
    assert counts == {"facts": (12, 4), "routing": (12, 12), "record": (12, 12)}


def test_a_baseline_that_cannot_be_used_is_told_before_any_question(
    cli: Cli, evaluate: Callable[..., CompletedProcess[str]]
) -> None:
    assert complaint(evaluate(True, "--baseline", "nowhere")) == "error: there is no run at nowhere"
    message = complaint(evaluate(True, "--fail-on-regression"))
    assert message == "error: --fail-on-regression needs a run to compare with; add --baseline RUN"
    assert not Path("runs").exists()
