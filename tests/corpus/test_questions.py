"""Question files: one broken line for each rule, and quotes located in small documents by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragtune.corpus.questions import load_task, locate_evidence
from ragtune.errors import QuestionError
from ragtune.types import AnswerFormat, Question, Span, Task

EVIDENCE = {"document": "a.md", "text": "a quote"}


def row(**changes: Any) -> dict[str, Any]:
    good = {"id": "q1", "split": "test", "question": "Who?", "answers": ["Ruth"], "evidence": [EVIDENCE]}
    return {**good, **changes}


def load(
    tmp_path: Path, *rows: dict[str, Any] | str, format: AnswerFormat = "short", labels: tuple[str, ...] = ()
) -> Task:
    path = tmp_path / "facts.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return load_task("facts", path, ["Answer."], "f1", format, labels)


def question(*spans: Span) -> Question:
    return Question("q1", "Who?", ("x",), "facts", "test", spans)


def test_a_good_file(tmp_path: Path) -> None:
    offsets = {"document": "b.md", "text": "abc", "start": 0, "end": 3}
    task = load(
        tmp_path,
        row(evidence=[EVIDENCE, offsets]),
        row(id="q2", split="train", question="Où ?\u2028", answers=[], evidence=[]),
    )
    assert task.questions == (
        Question(
            "q1", "Who?", ("Ruth",), "facts", "test", (Span("a.md", -1, -1, "a quote"), Span("b.md", 0, 3, "abc"))
        ),
        Question("q2", "Où ?\u2028", (), "facts", "train"),
    )
    assert (task.name, task.instructions, task.metric, task.format) == ("facts", ("Answer.",), "f1", "short")
    assert (task.labels, task.max_answer_tokens) == ((), 32)


@pytest.mark.parametrize("data", [b"\xef\xbb\xbf%s\n", b"%s", b"%s\r\n"])
def test_mark_and_line_ends(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(data % json.dumps(row()).encode())
    assert len(load_task("facts", path, ["x"], "f1", "short").questions) == 1


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in row().items() if name != key}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"id": NaN}', "NaN is no JSON"),
        (json.dumps(row())[:-1] + ', "id": "q2"}', "a key stands twice"),
        ('["q1"]', "a JSON list, expected an object with the keys id, split"),
        ("null", "a JSON null, expected an object"),
        (without("answers"), "missing key 'answers', expected id, split, question, answers, evidence"),
        (row(answer="x"), "unknown key 'answer', expected id"),
        (row(id=7), "id is a JSON number, expected a string"),
        (row(id=" "), "id is empty"),
        (row(split="valid"), "unknown split 'valid', expected train, dev or test"),
        (row(question=None), "question is a JSON null, expected a string"),
        (row(question="  "), "question is empty, expected text"),
        (row(question="\ud800"), "half of a UTF-16 pair"),
        (row(answers="Ruth"), "answers is a JSON string, expected a list"),
        (row(answers=[True]), "an answer is a JSON boolean, expected a string"),
        (row(answers=[""]), "an answer is empty"),
        (row(evidence={}), "evidence is a JSON object, expected a list"),
        (row(evidence=["quote"]), "evidence holds a JSON string, expected objects with document and text"),
        (row(evidence=[{"document": "a.md"}]), "evidence: missing key 'text', expected document, text"),
        (row(evidence=[{**EVIDENCE, "page": 1}]), "evidence: unknown key 'page'"),
        (row(evidence=[{**EVIDENCE, "text": ""}]), "evidence: text is empty"),
        (row(evidence=[{**EVIDENCE, "start": 1}]), "start 1, expected integers 0 <= start < end, or neither"),
        (row(evidence=[{**EVIDENCE, "start": -1, "end": 5}]), "start -1, end 5, expected integers"),
        (row(evidence=[{**EVIDENCE, "start": True, "end": 5}]), "start True, end 5, expected integers"),
        (row(evidence=[{**EVIDENCE, "start": 5, "end": 5}]), "start 5, end 5, expected integers"),
        (row(answers=[]), "evidence for a question without answers"),
        (row(id="first"), "id 'first' is already that of line 1"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, broken: dict[str, Any] | str, message: str) -> None:
    with pytest.raises(QuestionError) as raised:
        load(tmp_path, row(id="first"), broken, row(id="last"))
    text = str(raised.value)
    assert text.startswith(f"{tmp_path / 'facts.jsonl'}, line 2") and message in text and "\n" not in text


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(json.dumps(row()).encode() + b'\n{"id": "\xe9"}\n')
    with pytest.raises(QuestionError, match=r"line 2: not valid JSON.*utf-8"):
        load_task("facts", path, ["x"], "f1", "short")


def test_no_file_and_no_questions(tmp_path: Path) -> None:
    with pytest.raises(QuestionError, match="cannot be read"):
        load_task("facts", tmp_path / "nowhere.jsonl", ["x"], "f1", "short")
    with pytest.raises(QuestionError, match="holds no questions"):
        load(tmp_path)


def test_labels_are_those_of_train(tmp_path: Path) -> None:
    rows = [
        row(id=f"q{i}", split=s, answers=[a], evidence=[]) for i, (s, a) in enumerate([("train", "b"), ("train", "a")])
    ]
    assert load(tmp_path, *rows, format="label").labels == ("a", "b")
    assert load(tmp_path, *rows, format="label", labels=("b", "c", "a")).labels == ("b", "c", "a")
    with pytest.raises(QuestionError, match="line 3: 'c' is no label of the task, expected one of 'a', 'b'"):
        load(tmp_path, *rows, row(id="q3", answers=["c"]), format="label")
    with pytest.raises(QuestionError, match="line 2: 'a' is no label of the task, expected one of 'b'"):
        load(tmp_path, *rows, format="label", labels=("b",))
    with pytest.raises(QuestionError, match="line 1: 'Ruth' is no label of the task, expected labels, or train"):
        load(tmp_path, row(), format="label")


def test_json_answers(tmp_path: Path) -> None:
    assert load(tmp_path, row(answers=['{"a": 1}']), format="json").questions[0].answers == ('{"a": 1}',)
    for answer in ("{a: 1}", "NaN", '{"a": 1, "a": 2}'):
        with pytest.raises(QuestionError, match=r"line 1: answer .* is not JSON"):
            load(tmp_path, row(answers=[answer]), format="json")


# --- evidence ---

DOCUMENTS = {"a.md": "The fare\n  is £5 for\tdogs. Cats: £5. aXaXa", "b.md": "Dogs pay."}


@pytest.mark.parametrize(
    ("quote", "start", "end"),
    [
        ("The fare is £5 for dogs.", 0, 26),
        (" fare\u00a0is ", 4, 13),
        ("Cats: £5", 27, 35),
        ("dogs.", 21, 26),
    ],
)
def test_quotes_are_found(quote: str, start: int, end: int) -> None:
    (found,) = locate_evidence([question(Span("a.md", -1, -1, quote))], DOCUMENTS)
    assert found.evidence == (Span("a.md", start, end, DOCUMENTS["a.md"][start:end]),)
    assert locate_evidence([found], DOCUMENTS) == (found,)


@pytest.mark.parametrize(
    ("span", "message"),
    [
        (Span("c.md", -1, -1, "x"), "question 'q1', document 'c.md': there is no such document"),
        (Span("b.md", -1, -1, "dogs"), "question 'q1', document 'b.md': the quote 'dogs' does not occur"),
        (Span("b.md", -1, -1, "Dogspay"), "does not occur"),
        (Span("a.md", -1, -1, "£5"), "question 'q1', document 'a.md': the quote '£5' occurs more than once"),
        (Span("a.md", -1, -1, "aXa"), "occurs more than once"),  # the two overlap
        (Span("a.md", 0, 4, "The"), "characters 0 to 4 are 'The ', expected 'The'"),
        (Span("a.md", 900, 903, "The"), "characters 900 to 903 are '', expected 'The'"),
        (Span("b.md", -1, -1, "x" * 99), "x" * 57 + "...' does not occur"),
    ],
)
def test_evidence_that_does_not_resolve(span: Span, message: str) -> None:
    with pytest.raises(QuestionError) as raised:
        locate_evidence([question(Span("b.md", -1, -1, "Dogs"), span)], DOCUMENTS)
    assert message in str(raised.value)


def test_offsets_choose_among_several_places() -> None:
    (found,) = locate_evidence([question(Span("a.md", 33, 35, "£5"))], DOCUMENTS)
    assert found.evidence[0].start == 33


@given(st.text(alphabet="ab.*(\n ", min_size=1, max_size=30), st.data())
def test_any_slice_is_found_at_its_place_or_is_ambiguous(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    quote = text[start:end].strip()
    if quote:
        try:
            (found,) = locate_evidence([question(Span("d", -1, -1, quote.replace("\n", "  ")))], {"d": text})
        except QuestionError as error:
            # Brute force: some other place holds the same words.
            places = {
                (i, j)
                for i in range(len(text))
                for j in range(i + 1, len(text) + 1)
                if text[i:j] == text[i:j].strip() and text[i:j].split() == quote.split()
            }
            assert "more than once" in str(error) and len(places) > 1
        else:
            span = found.evidence[0]
            assert text[span.start : span.end] == span.text == quote
