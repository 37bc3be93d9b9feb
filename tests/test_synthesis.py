"""`synth` on the tiny project with a scripted generator: nothing leaks, nothing is lost, nothing is asked twice."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import ragtune
from ragtune.errors import ConfigError, InputError, QuestionError, UnfinishedError
from ragtune.session import Session
from ragtune.synthesis.files import Output, Synthesised
from ragtune.synthesis.questions import Draft, SynthOptions, round_trip
from ragtune.testing import ScriptedGenerator
from ragtune.types import Message, Passage, Reply

Script = Callable[[Sequence[Message]], str]


def ask_back(messages: Sequence[Message]) -> str:
    """The statement without its gap, as a question: new for each sentence, and about it."""
    statement, _, rest = messages[-1].content.partition("\n")
    if "____" not in statement:
        return "yes"
    begin = rest.split('"')[1]
    words = statement.split(": ", 1)[1].replace("____", "").rstrip(".")
    return f"{begin} is it that {' '.join(words.split())}?"


@pytest.fixture
def writer(project: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedGenerator:
    """The generator that every project here asks; tests may change its `reply`."""
    generator = ScriptedGenerator(ask_back)
    monkeypatch.setattr(Session, "generator_for", lambda self, arm: generator)
    return generator


@pytest.fixture
def indexed(project: Path, writer: ScriptedGenerator) -> Path:
    ragtune.index(ragtune.load_config(Path()))
    return project


def without_tasks(project: Path) -> None:
    toml = project / "ragtune.toml"
    kept = toml.read_text(encoding="utf-8").partition("[tasks.")[0].replace('default_task = "facts"\n', "")
    toml.write_text(kept, encoding="utf-8")


def run(output: Output | None = None, **options: Any) -> Synthesised:
    return ragtune.synth(ragtune.load_config(Path()), SynthOptions(**options), output)


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_project_without_questions_gets_a_task_that_passes_the_check(indexed: Path) -> None:
    without_tasks(indexed)
    made = run(Output(add=True))
    project = ragtune.load_config(Path())
    assert list(project.tasks) == ["synthetic"]
    assert made.section == ""
    found = ragtune.check(project)
    assert [f.message for f in (*found.errors, *found.warnings)] == []
    assert {split: count > 0 for split, count in made.questions.items()} == dict.fromkeys(
        ("train", "dev", "test"), True
    )
    assert made.replies == len(made.kept) + sum(made.reasons.values())
    assert "Questions written by the model" in Path("README.md").read_text(encoding="utf-8")


def test_answers_and_evidence_stand_at_their_offsets(indexed: Path) -> None:
    made = run()
    origins = rows(made.file.with_suffix(".origins.jsonl"))
    questions = rows(made.file)
    assert len(questions) == len(made.kept) > 5
    for question, origin in zip(questions, origins, strict=True):
        assert question["id"] == origin["id"]
        text = Path("documents", origin["document"]).read_text(encoding="utf-8")
        start, end = origin["answer_at"]
        assert [" ".join(text[start:end].split())] == question["answers"]
        (evidence,) = question["evidence"]
        assert text[evidence["start"] : evidence["end"]] == evidence["text"]
        assert evidence["start"] <= start < end <= evidence["end"]
        assert origin["passage"][0] <= evidence["start"] < evidence["end"] <= origin["passage"][1]


def test_documents_of_other_tasks_keep_their_split(indexed: Path) -> None:
    splits = {e["document"]: row["split"] for row in rows(Path("tasks/facts.jsonl")) for e in row["evidence"]}
    made = run()
    assert made.split_by == "by document, seed 17"
    assert {span.document_id: q.split for q in made.kept for span in q.evidence} == splits
    only = run(name="more", shares=(1, 0, 0))
    assert {q.split for q in only.kept} == {"train"}
    assert {splits[span.document_id] for q in only.kept for span in q.evidence} == {"train"}


def test_a_single_document_is_split_by_passage_and_says_so(indexed: Path) -> None:
    without_tasks(indexed)
    text = "\n\n".join(
        f"# Part {i}\n\nHere the warden counts {i + 20} boats on the shore of pool {i} before he goes home."
        for i in range(30)
    )
    for file in Path("documents").rglob("*.md"):
        file.unlink()
    Path("documents/all.md").write_text(text, encoding="utf-8")
    ragtune.index(ragtune.load_config(Path()))
    made = run(Output(add=True), similarity=1.0)
    assert made.split_by.startswith("by passage")
    assert made.shared_documents == 1
    assert min(made.questions.values()) > 0
    assert ragtune.load_config(Path()).tasks["synthetic"].shared_documents
    assert not ragtune.check(ragtune.load_config(Path())).errors
    split_of: dict[str, set[str]] = {}
    for row, origin in zip(rows(made.file), rows(made.file.with_suffix(".origins.jsonl")), strict=True):
        split_of.setdefault(str(origin["passage"]), set()).add(row["split"])
    assert all(len(splits) == 1 for splits in split_of.values())


def test_the_same_run_again_asks_nothing_and_writes_the_same(indexed: Path, writer: ScriptedGenerator) -> None:
    first = run()
    before, asked = first.file.read_bytes(), len(writer.prompts)
    run(Output(force=True))
    assert (first.file.read_bytes(), len(writer.prompts)) == (before, asked)
    other = run(name="other", seed=18)
    assert {q.text for q in other.kept} != {q.text for q in first.kept}


def test_a_run_that_is_cut_off_goes_on(
    indexed: Path, writer: ScriptedGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(name="whole")
    Path("runs/fenmere.synth.jsonl").unlink()
    writer.prompts.clear()
    generate = ScriptedGenerator.generate

    def give_up(self: ScriptedGenerator, prompts: Sequence[Sequence[Message]], most: int) -> list[Reply]:
        raise UnfinishedError("gone", dict(enumerate(generate(self, prompts[:4], most))))

    monkeypatch.setattr(ScriptedGenerator, "generate", give_up)
    with pytest.raises(UnfinishedError):
        run(name="cut")
    assert not Path("tasks/cut.jsonl").exists()
    monkeypatch.setattr(ScriptedGenerator, "generate", generate)
    project = ragtune.load_config(Path())
    again = ragtune.synth(project, SynthOptions(name="cut"))
    assert len(writer.prompts) == whole.replies
    assert [q.text for q in again.kept] == [q.text for q in whole.kept]


def test_as_many_as_asked_for_and_no_more(indexed: Path) -> None:
    assert len(run(questions=3).kept) == 3
    many, few = run(name="many", per_passage=3), run(name="few", per_passage=1)
    assert len(many.kept) > len(few.kept)
    assert {q.text for q in few.kept} <= {q.text for q in many.kept}


def test_what_is_left_out_is_counted_and_kept(indexed: Path, writer: ScriptedGenerator) -> None:
    known = {
        row["evidence"][0]["document"]: row["question"] for row in rows(Path("tasks/facts.jsonl")) if row["evidence"]
    }
    asked = {Path(document).stem.title(): question for document, question in known.items()}
    replies = iter(["no question", None, "Who?", "What is the capital of Peru?"])

    def reply(messages: Sequence[Message]) -> str:
        title = messages[-1].content.partition(":")[0]
        return next(replies, ask_back(messages)) or asked[title]

    writer.reply = reply
    made = run(Output(rejected=Path("left.jsonl")))
    assert {name: made.reasons[name] for name in ("no-question", "duplicate", "length", "off-topic")} == {
        "no-question": 1, "duplicate": 1, "length": 1, "off-topic": 1
    }  # fmt: skip
    left = rows(Path("left.jsonl"))
    assert len(left) == sum(made.reasons.values())
    assert {"reason": "no-question", "reply": "no question"}.items() <= left[0].items()


def test_questions_and_answers_together(indexed: Path, writer: ScriptedGenerator) -> None:
    def reply(messages: Sequence[Message]) -> str:
        words = re.findall(r"[A-Za-z]+", messages[-1].content.partition(": ")[2])
        good = f"Question: What comes right before {words[1]} and all the rest?\nAnswer: {words[0]}"
        return f"{good}\nQuestion: Who is it that {words[1]} then?\nAnswer: a purple elephant"

    writer.reply = reply
    made = run(strategy="free", per_passage=2, similarity=1.0)
    assert made.reasons["ungrounded"] == made.replies
    assert made.kept


def test_filters_ask_the_model(indexed: Path, writer: ScriptedGenerator) -> None:
    everything = run(name="all")
    writer.reply = lambda messages: "no" if "yes or no" in messages[0].content else ask_back(messages)
    with pytest.raises(InputError, match=r"no question could be used \(.*unanswerable"):
        run(name="none", filters=("answerable",))
    Path("runs/fenmere.synth.jsonl").unlink()
    writer.reply = ask_back
    assert len(run(name="yes", filters=("answerable",)).kept) == len(everything.kept)
    right = {q.text: q.answers[0] for q in everything.kept[1:]}

    def answer(messages: Sequence[Message]) -> str:
        question = messages[-1].content.rpartition("\n")[2]
        return ask_back(messages) if "____" in question + messages[-1].content else right.get(question, "no idea")

    writer.reply = answer
    made = run(name="there-and-back", filters=("round-trip",))
    assert made.reasons["round-trip"] >= 1
    assert {q.text for q in made.kept} <= right.keys()
    assert made.kept


def test_round_trip_is_a_choice_among_what_the_passage_could_answer() -> None:
    text = "Boats cost £5. Rafts cost £7. Dogs swim at 07:15."
    passage = Passage("p", "a.md", text, 100, 100 + len(text))
    draft = Draft(passage, "What does a raft cost?", "£7", 126, 128)
    offered: list[Sequence[str]] = []

    def pick(prompt: Sequence[Message], labels: Sequence[str]) -> str:
        offered.append(labels)
        return "£7"

    assert round_trip(draft, pick) is True
    assert offered == [["07:15", "£5", "£7"]]
    assert round_trip(draft, lambda *_: "£5") is False
    short = Draft(Passage("p", "a.md", "Rafts cost £7.", 0, 14), "What does a raft cost?", "£7", 11, 13)
    assert round_trip(short, pick) is None


def test_files_are_not_lost(indexed: Path) -> None:
    facts = Path("tasks/facts.jsonl").read_bytes()
    for output in (Output(), Output(force=True), Output(add=True), Output(add=True, force=True)):
        with pytest.raises(InputError, match="facts"):
            run(output, name="facts")
    Path("left.jsonl").write_text("mine")
    with pytest.raises(InputError, match=r"left\.jsonl exists already"):
        run(Output(rejected=Path("left.jsonl")))
    run()
    with pytest.raises(InputError, match="add --force"):
        run()
    assert Path("tasks/facts.jsonl").read_bytes() == facts
    assert Path("left.jsonl").read_text() == "mine"


def test_a_task_that_was_added_can_be_replaced(indexed: Path) -> None:
    run(Output(add=True), questions=4)
    toml = Path("ragtune.toml").read_bytes()
    made = run(Output(force=True), questions=6)
    assert len(rows(Path("tasks/synthetic.jsonl"))) == len(made.kept) == 6
    assert Path("ragtune.toml").read_bytes() == toml
    assert made.section == ""


def test_the_printed_section_works(indexed: Path) -> None:
    made = run()
    toml = Path("ragtune.toml")
    toml.write_text(f"{toml.read_text(encoding='utf-8')}\n{made.section}", encoding="utf-8")
    project = ragtune.load_config(Path())
    assert Session(project).task("synthetic").questions == tuple(q for q in Session(project).tasks[-1].questions)
    assert not ragtune.check(project).errors


def test_nothing_usable_writes_nothing(indexed: Path, writer: ScriptedGenerator) -> None:
    writer.reply = lambda _: "I cannot."
    before = sorted(Path("tasks").iterdir())
    with pytest.raises(InputError, match="no-question"):
        run(Output(add=True, rejected=Path("left.jsonl")))
    assert sorted(Path("tasks").iterdir()) == before
    assert rows(Path("left.jsonl"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "../facts"}, "task name"),
        ({"questions": 0}, "questions 0"),
        ({"per_passage": 0}, "per_passage 0"),
        ({"similarity": 0.0}, "similarity 0"),
        ({"shares": (0, 0, 0)}, "shares"),
        ({"shares": (1, -1, 1)}, "shares"),
        ({"shares": (float("nan"), 1, 1)}, "shares"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SynthOptions(**options)


def test_an_unknown_generator_and_a_broken_question_file(indexed: Path) -> None:
    with pytest.raises(ConfigError, match="unknown generator 'big'"):
        run(generator="big")
    Path("tasks/facts.jsonl").write_text("{\n")
    with pytest.raises(QuestionError, match="line 1"):
        run()
