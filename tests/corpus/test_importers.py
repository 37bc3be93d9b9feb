"""Importing somebody's data: each format from a tiny file written here, and what must hold whatever the data are."""

from __future__ import annotations

import json
import os
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtune import pipeline, store
from ragtune.config import load_config
from ragtune.corpus.importers.arrange import split_questions
from ragtune.corpus.importers.convert import Imported, ImportOptions, import_source
from ragtune.corpus.importers.evidence import LONGEST, LONGEST_DOCUMENT, find_evidence, written_document
from ragtune.corpus.importers.formats import detect_format
from ragtune.corpus.importers.shape import find_shape
from ragtune.corpus.importers.source import About, Count, Ledger, Quote, SourceDocument, SourceQuestion
from ragtune.corpus.load import load_documents
from ragtune.errors import BusyError, ConfigError, InputError, StoreError
from ragtune.session import Session
from ragtune.types import Question, Task

OPEN_SETS = Path(os.environ.get("RAGTUNE_OPEN_SETS", "no-such-folder"))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


def jsonl(path: Path, rows: Sequence[object]) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def bring(source: Path, into: Path, **options: Any) -> Imported:
    return import_source(source, into, ImportOptions(**options), lambda _: None, lambda *_: None)


def only_task(into: Path) -> Task:
    (task,) = Session(load_config(into)).tasks
    return task


def questions(into: Path) -> dict[str, Question]:
    return {question.id: question for question in only_task(into).questions}


def evidence(question: Question) -> list[tuple[str, str]]:
    return [(span.document_id, span.text) for span in question.evidence]


def texts(into: Path) -> dict[str, str]:
    return {document.id: document.text for document in load_documents(into / "documents").documents}


def errors_of(into: Path) -> list[str]:
    return [finding.message for finding in pipeline.check(load_config(into)).errors]


def kinds(counts: Sequence[Count]) -> dict[str, int]:
    return {kind.what: kind.count for kind in counts}


def ask(
    text: str, *answers: str, split: Any = None, documents: tuple[str, ...] = (), is_label: bool = False
) -> SourceQuestion:
    return SourceQuestion(text, text, answers, f"line {text}", split, documents, (), is_label)


# --- rows: our own JSONL, and the folder of train, dev and test ------------------------------------------------------


def test_our_own_question_files_come_through_unchanged(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "split": "train", "question": "Who?", "answers": ["Ann", "Miss Ann"], "evidence": []},
        {"id": "b", "split": "dev", "question": "Where?", "answers": ["Rye"], "evidence": []},
        {"id": "c", "split": "test", "question": "When?", "answers": [], "evidence": []},
    ]
    done = bring(jsonl(tmp_path / "lake.jsonl", rows), tmp_path / "out")
    assert [json.loads(line) for line in (tmp_path / "out/tasks/lake.jsonl").read_text().splitlines()] == rows
    assert done.questions == {"train": 1, "dev": 1, "test": 1}
    assert (done.unanswerable, done.split_by, done.answer_format) == (1, "the source's own", "short")
    assert (done.skipped, done.notes, done.documents) == ((), (), 0)
    assert errors_of(tmp_path / "out") == []


FOLDER_CORPUS = [
    {"id": "x/1", "title": "Lake", "text": "The lake is deep. Boats cost £5 a day.", "source": "a book"},
    {"id": "x 2", "title": "", "text": "Dogs swim free."},
    {"id": "far", "title": "Hills", "text": "Nobody asks about hills. " * 140},
]
FOLDER_ROWS = {
    "train": [
        {"id": "1", "question": "What is a boat?", "answers": ["£5"], "doc_ids": ["x/1"], "answer_start": 29},
        {"id": "2", "question": "Do dogs pay?", "answers": ["no"], "doc_ids": ["x 2"]},
        {"id": "3", "question": "Hills?", "answers": ["high"], "doc_ids": ["far"]},
        {"id": "4", "question": "Both?", "answers": ["deep", "free"], "doc_ids": ["x/1"], "spans": [[12, 16], [0, 8]]},
        {"id": "5", "question": "Gone?", "answers": ["deep"], "doc_ids": ["nowhere"]},
    ],
    "dev": [{"id": "6", "question": "Wrong offset?", "answers": ["deep"], "doc_ids": ["x/1"], "answer_start": 3}],
    "test": [{"id": "7", "question": "Unknown?", "answers": [], "doc_ids": ["x/1"]}],
}


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "open"
    jsonl(folder / "corpus.jsonl", FOLDER_CORPUS)
    for split, rows in FOLDER_ROWS.items():
        jsonl(folder / f"{split}.jsonl", rows)
    jsonl(folder / "test_full.jsonl", [{"id": "8", "question": "More?", "answers": ["x"]}])
    meta = {"title": "Lakes", "licence": "CC0", "instruction": "Answer from the lake book", "name": "l"}
    write(folder / "meta.json", json.dumps(meta))
    return folder


def test_a_folder_with_splits_documents_and_what_it_says_of_itself(open_folder: Path, tmp_path: Path) -> None:
    done = bring(open_folder, tmp_path / "out")
    asked = questions(tmp_path / "out")
    lake, dogs = "open/x-1-0d7b3cc1.md", "open/x-2-d4f2ddd0.md"
    names = {row["id"]: row["document"] for row in store.read_jsonl(tmp_path / "out/tasks/open.documents.jsonl")}
    lake, dogs = names["x/1"], names["x 2"]
    assert texts(tmp_path / "out") == {
        lake: "# Lake\n\nThe lake is deep. Boats cost £5 a day.\n",
        dogs: "Dogs swim free.\n",
        "open/far.md": "# Hills\n\n" + "Nobody asks about hills. " * 140 + "\n",
    }
    assert [q.split for q in asked.values()] == ["train"] * 5 + ["dev", "test"]
    assert evidence(asked["1"]) == [(lake, "£5")]
    assert evidence(asked["2"]) == [(dogs, "Dogs swim free.")], '"no" is not looked for'
    assert evidence(asked["4"]) == [(lake, "deep")], "the second span does not hold the second answer"
    assert evidence(asked["6"]) == [(lake, "deep")], "found although its offset is wrong"
    assert [evidence(asked[i]) for i in ("3", "5", "7")] == [[], [], []]
    assert done.evidence == {"stated": 2, "answer": 1, "document": 1}
    assert (done.without_evidence, done.unanswerable, done.documents, done.gold) == (2, 1, 3, 2)
    assert done.shared_documents == 1
    assert kinds(done.notes) == {
        "a gold document that is neither in the source nor in the project": 1,
        "stated evidence that does not stand in its document": 1,
        "no evidence in a gold document over 3000 characters: it does not hold the answer": 1,
    }
    assert kinds(done.skipped) == {"file test_full.jsonl, since test.jsonl is the test split": 1}
    firsts = {note.what: note.first for note in done.notes}
    gone = firsts["a gold document that is neither in the source nor in the project"]
    assert gone == f"{open_folder}/train.jsonl, line 5"
    task = load_config(tmp_path / "out").tasks["open"]
    assert task.shared_documents
    assert task.instruction[0] == "Answer from the lake book."
    readme = (tmp_path / "out/README.md").read_text()
    assert "Lakes" in readme and "CC0" in readme
    assert errors_of(tmp_path / "out") == []


def test_names_of_keys_that_people_use(tmp_path: Path) -> None:
    rows = [
        {"query": "One?", "answer": "1", "split": "validation"},
        {"prompt": "Two?", "completion": 2, "split": "TEST", "id": 7},
        {"input": "Three?", "output": True, "split": "train"},
    ]
    bring(jsonl(tmp_path / "q.jsonl", rows), tmp_path / "out")
    found = [(q.id, q.text, q.answers, q.split) for q in questions(tmp_path / "out").values()]
    assert found == [
        ("q-1", "One?", ("1",), "dev"),
        ("7", "Two?", ("2",), "test"),
        ("q-3", "Three?", ("true",), "train"),
    ]


def test_a_document_in_the_row_itself_with_the_offsets_of_flat_squad(tmp_path: Path) -> None:
    context = "Rye lies by the sea. Rye has a tower."
    rows = [
        {"id": "1", "title": "Rye", "context": context, "question": "Which town?", "split": "train"}
        | {"answers": {"text": ["Rye"], "answer_start": [21]}},
        {"id": "2", "title": "Rye", "context": context, "question": "How old?", "split": "test"}
        | {"answers": {"text": [], "answer_start": []}},
    ]
    done = bring(jsonl(tmp_path / "flat.jsonl", rows), tmp_path / "out")
    (span,) = questions(tmp_path / "out")["1"].evidence
    (text,) = texts(tmp_path / "out").values()
    assert (span.start, span.text, text) == (len("# Rye\n\n") + 21, "Rye", f"# Rye\n\n{context}\n")
    assert (done.documents, done.unanswerable) == (1, 1)


def test_an_impossible_row_has_no_answer(tmp_path: Path) -> None:
    rows = [{"question": "A?", "answer": "a"}, {"question": "B?", "answer": "b", "is_impossible": True}]
    assert bring(jsonl(tmp_path / "q.jsonl", rows), tmp_path / "out").unanswerable == 1


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("meta.json", b"{", r"meta\.json, line 1: not valid JSON"),
        ("meta.json", b"\xff\xfe", r"meta\.json: not valid JSON"),
        (
            "corpus.jsonl",
            b'{"id": "x", "title": 3, "text": "y"}',
            r"corpus\.jsonl, line 1: title is not text \(a int\)",
        ),
        ("train.json", b'{"rows": []}', r"train\.json: expected a list of objects"),
    ],
)
def test_broken_files_beside_the_questions(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    jsonl(tmp_path / "in/test.jsonl", [{"question": "A?", "answer": "a"}])
    (tmp_path / "in" / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        bring(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_meta_file_of_something_else_is_passed_over(tmp_path: Path) -> None:
    jsonl(tmp_path / "in/test.jsonl", [{"question": "A?", "answer": "a"}])
    write(tmp_path / "in/meta.json", "[1]")
    assert bring(tmp_path / "in", tmp_path / "out").answer_format == "short"


def test_a_json_list_of_rows(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.json", json.dumps([{"question": f"Q{i}?", "answer": f"a{i}"} for i in range(4)]))
    assert sum(bring(source, tmp_path / "out").questions.values()) == 4


def test_rows_without_use_are_counted_with_the_first_line(tmp_path: Path) -> None:
    rows = [
        {"question": "Good?", "answer": "yes indeed"},
        {"question": "  ", "answer": "x"},
        {"question": "Blank?", "answer": " "},
        {"question": "good", "answers": ["yes indeed"]},
        {"question": "\nEmpty?", "answers": ["", " "]},
        {"question": "GOOD?", "answers": ["no"]},
    ]
    source = jsonl(tmp_path / "q.jsonl", rows)
    done = bring(source, tmp_path / "out")
    assert done.skipped == (
        Count("the question is empty", 1, f"{source}, line 2"),
        Count("the answer is empty ([] would mean that the documents do not say)", 2, f"{source}, line 3"),
        Count("the same question as another one, with the same answers", 1, f"{source}, line 4"),
        Count("the same question as another one, with other answers", 1, f"{source}, line 6"),
    )


def test_of_two_same_questions_the_one_of_the_test_stays(tmp_path: Path) -> None:
    rows = [
        {"id": "1", "question": "Same?", "answer": "a", "split": "train"},
        {"id": "2", "question": "Other?", "answer": "a", "split": "train"},
        {"id": "3", "question": "same", "answer": "a", "split": "test"},
        {"id": "3", "question": "Third?", "answer": "a b", "split": "dev"},
    ]
    done = bring(jsonl(tmp_path / "q.jsonl", rows), tmp_path / "out")
    assert list(questions(tmp_path / "out")) == ["2", "3", "3-2"]
    assert kinds(done.notes) == {"an id that was there before, made unique": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "not a JSON object (a list)"),
        ('"\xff"', "not valid JSON"),
        ('{"answer": "x"}', "no question (keys are answer; expected one of question, "),
        ('{"question": "x"}', "no answers (keys are question; "),
        ('{"question": "x", "answer": null}', "no answers"),
        ('{"question": ["x"], "answer": "y"}', "question is not text (a list)"),
        ('{"question": "x", "answers": [["y"]]}', "answer is not text (a list)"),
        ('{"question": "x", "answer": "y", "split": "exam"}', "unknown split ('exam', expected one of train, "),
        ('{"question": "x", "answer": "y", "evidence": [{"text": "y"}]}', "evidence without document and text"),
        ('{"question": "x", "answer": "y", "evidence": "y"}', "evidence is not a list (a str)"),
        ('{"question": "x", "answer": "y", "doc_ids": ["d"], "spans": [[1]]}', "spans are not pairs of whole numbers"),
        ('{"question": "x", "answer": "y", "context": ["c"]}', "context is not text (a list)"),
        (
            '{"question": "x", "answer": "y", "evidence": [{"document": "d", "text": "y", "start": "1"}]}',
            "evidence with offsets that are no whole numbers",
        ),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_a_broken_line_is_named_or_counted(tmp_path: Path, line: str, message: str) -> None:
    source = tmp_path / "q.jsonl"
    source.write_bytes(b'{"question": "Good?", "answer": "a"}\n\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(InputError) as caught:
        bring(source, tmp_path / "out")
    assert str(caught.value).startswith(f"{source}, line 3: {message}")
    assert not (tmp_path / "out").exists()
    done = bring(source, tmp_path / "out", skip_broken=True)
    assert done.skipped == (Count(message.partition(" (")[0], 1, f"{source}, line 3"),)
    assert list(questions(tmp_path / "out")) == ["q-1"]


def test_a_broken_line_of_the_corpus(open_folder: Path, tmp_path: Path) -> None:
    with (open_folder / "corpus.jsonl").open("a") as file:
        file.write('{"id": "y"}\n{"text": "no id"}\n{"id": "far", "text": "again"}\n{"id": "z", "text": " "}\n')
        file.write(json.dumps({"id": "long", "text": "x" * 1_000_001}) + "\n")
    with pytest.raises(InputError, match=r"corpus\.jsonl, line 4: text is not text \(a NoneType\)"):
        bring(open_folder, tmp_path / "out")
    done = bring(open_folder, tmp_path / "out", skip_broken=True)
    assert kinds(done.skipped) == {
        "file test_full.jsonl, since test.jsonl is the test split": 1,
        "text is not text": 1,
        "document without id": 1,
        "a document with the id of an earlier one": 1,
        "a document without text": 1,
        "a document that is too long (a line of 1,000,000 characters, or 20 MB)": 1,
    }
    assert done.documents == 3
    assert not load_documents(tmp_path / "out/documents").skipped


# --- CSV and FAQ -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("comma.csv", 'id,Question,answer\n1,"What, then?","a||b"\n2,Nothing?,[]\n'),
        ("semicolon.csv", "answer;question;id\na||b;What, then?;1\n[];Nothing?;2\n"),
        ("tab.tsv", "question\tanswers\tid\nWhat, then?\ta||b\t1\n\nNothing?\t[]\t2\n"),
        ("marked.csv", '\ufeffid,question,answer\r\n1,"What, then?",a||b\r\n2,Nothing?,[]\r\n'),
    ],
)
def test_tables(tmp_path: Path, name: str, text: str) -> None:
    bring(write(tmp_path / name, text), tmp_path / "out", name="t")
    found = [(q.id, q.text, q.answers) for q in questions(tmp_path / "out").values()]
    assert sorted(found) == [("1", "What, then?", ("a", "b")), ("2", "Nothing?", ())]


def test_two_columns_without_a_header(tmp_path: Path) -> None:
    source = write(tmp_path / "t.csv", 'How much?,"five, or six"\nHow far?,ten\n')
    done = bring(source, tmp_path / "out")
    assert {q.text: q.answers for q in questions(tmp_path / "out").values()} == {
        "How much?": ("five, or six",),
        "How far?": ("ten",),
    }
    assert done.notes[0].first == f"{source}, line 1"


def test_other_encodings_and_quoted_line_breaks(tmp_path: Path) -> None:
    source = tmp_path / "t.csv"
    source.write_bytes('question,answer\n"What does\na ticket cost?",£5\nWhere?,Köln\n'.encode("cp1252"))
    bring(source, tmp_path / "out")
    assert [q.answers for q in questions(tmp_path / "out").values()] == [("£5",), ("Köln",)]


def test_broken_and_empty_cells(tmp_path: Path) -> None:
    text = 'question,answer\nOne?,1\nTwo?,2,3\nThree?,\n,4\nFive?,5\n"Six?"x,6\nSeven?,"7\n'
    source = write(tmp_path / "t.csv", text)
    with pytest.raises(InputError, match=r"line 3: not as many cells as the header \(3, expected 2\)"):
        bring(write(tmp_path / "u.csv", text.replace('"', "")), tmp_path / "out")
    done = bring(source, tmp_path / "out", skip_broken=True)
    assert {count.what: (count.count, count.first) for count in done.skipped} == {
        "not valid CSV": (2, f"{source}, line 7"),
        "not as many cells as the header": (1, f"{source}, line 3"),
        "the answer is empty ([] would mean that the documents do not say)": (1, f"{source}, line 4"),
        "the question is empty": (1, f"{source}, line 5"),
    }
    assert [q.text for q in questions(tmp_path / "out").values()] == ["One?", "Five?"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no rows"),
        (b"a,b,c\n1,2,3\n", "line 1: columns are 'a', 'b', 'c'; expected a header with question and answer"),
        (b"just text\nmore text\n", "line 1: columns are 'just text'; expected"),
        (b"\0\1\2", "binary (it holds NUL bytes); expected a CSV or TSV file"),
    ],
)
def test_what_is_no_table(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(InputError) as caught:
        bring(tmp_path / "t.csv", tmp_path / "out")
    assert message in str(caught.value)


LONG = "You can bring a bicycle on every sailing, and it costs five pounds a day in summer, number {}."


def test_answers_of_a_faq_become_its_documents(tmp_path: Path) -> None:
    rows = "".join(f'"Question {i}?","{LONG.format(i)}"\n' for i in range(10))
    source = write(tmp_path / "faq.csv", rows)
    assert detect_format(source) == "faq"
    done = bring(source, tmp_path / "out")
    assert (done.source_format, done.documents, done.gold, done.answer_format) == ("faq", 10, 10, "text")
    assert texts(tmp_path / "out")["faq/answer-0004.md"] == LONG.format(3) + "\n"
    assert evidence(questions(tmp_path / "out")["faq-04"]) == [("faq/answer-0004.md", LONG.format(3))]
    assert (done.questions, done.split_by) == ({"train": 7, "dev": 1, "test": 2}, "by document, seed 17")
    assert errors_of(tmp_path / "out") == []


def test_a_category_beside_an_answer_is_no_label(tmp_path: Path) -> None:
    source = write(tmp_path / "t.csv", "question,answer,category\nA?,one,x\nB?,two,x\nC?,three,y\n")
    assert bring(source, tmp_path / "out").answer_format == "short"
    source = write(tmp_path / "u.csv", "text,category\nA?,x\nB?,x\nC?,y\n")
    done = bring(source, tmp_path / "out2")
    assert (done.answer_format, done.labels) == ("label", 2)


# --- SQuAD -----------------------------------------------------------------------------------------------------------

SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Old_Rye",
            "paragraphs": [
                {
                    "context": "Rye lies by the sea. Old Rye has 4 towers, 42 inns and 4 wells.",
                    "qas": [
                        {"id": "s1", "question": "Which town?", "is_impossible": False}
                        | {"answers": [{"text": "Rye", "answer_start": 25}, {"text": "Old Rye", "answer_start": 21}]},
                        {"id": "s2", "question": "How many wells?", "is_impossible": False}
                        | {"answers": [{"text": "4", "answer_start": 0}]},
                        {"id": "s3", "question": "How many mosques?", "is_impossible": True, "answers": []}
                        | {"plausible_answers": [{"text": "4", "answer_start": 33}]},
                    ],
                },
                {"context": "Nothing is asked here.", "qas": []},
            ],
        },
        {
            "title": "Old_Rye",
            "paragraphs": [
                {
                    "context": "Hythe lies east.",
                    "qas": [{"id": "s4", "question": "East?", "answers": [{"text": "Hythe", "answer_start": 0}]}],
                }
            ],
        },
    ],
}


def test_squad_2(tmp_path: Path) -> None:
    done = bring(write(tmp_path / "dev-v2.0.json", json.dumps(SQUAD)), tmp_path / "out")
    asked = questions(tmp_path / "out")
    first = "dev-v2-0/Old_Rye-000.md"
    assert {k: (q.answers, [(s.document_id, s.start, s.text) for s in q.evidence]) for k, q in asked.items()} == {
        "s1": (("Rye", "Old Rye"), [(first, len("# Old Rye\n\n") + 25, "Rye")]),
        # "42" comes before, and is another number.
        "s2": (("4",), [(first, len("# Old Rye\n\n") + 33, "4")]),
        "s3": ((), []),
        "s4": (("Hythe",), [("dev-v2-0/Old_Rye-002.md", len("# Old Rye\n\n"), "Hythe")]),
    }
    assert (done.source_format, done.documents, done.unanswerable) == ("squad", 3, 1)
    assert done.evidence == {"stated": 2, "answer": 1, "document": 0}
    assert len({asked[i].split for i in ("s1", "s2", "s3")}) == 1, "one paragraph, one split"
    assert errors_of(tmp_path / "out") == []


def test_squad_files_of_a_folder_are_its_splits(tmp_path: Path) -> None:
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        value = json.loads(json.dumps(SQUAD).replace('"s', f'"{name[0]}').replace("How many", f"How many ({name})"))
        value["data"][1]["paragraphs"][0]["qas"][0]["question"] = f"East, in {name}?"
        value["data"][0]["paragraphs"][0]["qas"][0]["question"] = f"Which town, in {name}?"
        write(tmp_path / "squad" / name, json.dumps(value))
    done = bring(tmp_path / "squad", tmp_path / "out")
    assert done.split_by == "the source's own, its dev as test, dev drawn from train by document, seed 17"
    assert done.documents == 3, "the paragraphs of both files are the same"
    assert (done.questions["test"], done.questions["train"] + done.questions["dev"]) == (4, 4)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"paragraphs": 3}, "data[0]: paragraphs is not a list (a int)"),
        ({"paragraphs": [{"qas": []}]}, "data[0].paragraphs[0]: no context"),
        ({"paragraphs": [{"context": "x", "qas": ["q"]}]}, "data[0].paragraphs[0].qas[0]: not a JSON object (a str)"),
        (
            {"paragraphs": [{"context": "x", "qas": [{"question": "?", "answers": [{"answer_start": 1}]}]}]},
            "data[0].paragraphs[0].qas[0]: no text",
        ),
    ],
)
def test_broken_squad(tmp_path: Path, spoil: dict[str, Any], message: str) -> None:
    value = {"data": [spoil, SQUAD["data"][1]]}  # type: ignore[index]
    source = write(tmp_path / "s.json", json.dumps(value))
    with pytest.raises(InputError) as caught:
        bring(source, tmp_path / "out")
    assert str(caught.value).startswith(f"{source}, {message}")
    assert list(questions_after_skipping(source, tmp_path / "out")) == ["s4"]


def questions_after_skipping(source: Path, into: Path) -> dict[str, Question]:
    bring(source, into, skip_broken=True)
    return questions(into)


def test_an_answerable_squad_question_without_answers_is_not_taken_for_unanswerable(tmp_path: Path) -> None:
    value = json.loads(json.dumps(SQUAD))
    value["data"][0]["paragraphs"][0]["qas"][0]["answers"] = []
    done = bring(write(tmp_path / "s.json", json.dumps(value)), tmp_path / "out")
    assert kinds(done.skipped) == {"no answer, and not marked with is_impossible": 1}


@pytest.mark.parametrize("text", ['{"data": 1}', "[1]", '"x"', '{"data": [\n{"title"}]}'])
def test_what_is_no_squad(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"s\.json(, line 2)?"):
        bring(write(tmp_path / "s.json", text), tmp_path / "out")


# --- BEIR ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "beir"
    corpus = [
        {"_id": "d1", "title": "Boats of Rye", "text": "They are old. " * 60, "metadata": {}},
        {"_id": "d2", "title": "", "text": "Dogs may swim in the lake.\nThey pay nothing."},
        {"_id": "d3", "title": "Cats", "text": ""},
        {"_id": "d4", "title": "", "text": ""},
    ]
    jsonl(folder / "corpus.jsonl", corpus)
    queries = [{"_id": f"q{i}", "text": f"query number {'abcdefg'[i]}"} for i in range(7)]
    jsonl(folder / "queries.jsonl", queries)
    write(
        folder / "qrels/train.tsv",
        "query-id\tcorpus-id\tscore\nq0\td1\t2\nq0\td2\t1\nq1\td3\t1\nq1\td1\t0\nq6\td1\t1\n",
    )
    write(
        folder / "qrels/test.tsv",
        "query-id\tcorpus-id\tscore\r\nq2\td2\t1\r\nq3\tgone\t1\r\nq6\td3\t1\r\nq9\td1\t1\r\n",
    )
    return folder


def test_beir(beir: Path, tmp_path: Path) -> None:
    done = bring(beir, tmp_path / "out")
    asked = questions(tmp_path / "out")
    assert {k: (q.split, q.answers) for k, q in asked.items() if k != "q0"} | {"q0": asked["q0"].answers} == {
        "q0": ("Boats of Rye", "Dogs may swim in the lake."),
        "q1": (asked["q1"].split, ("Cats",)),
        "q2": ("test", ("Dogs may swim in the lake.",)),
        "q6": ("test", ("Cats",)),
    }
    assert sorted(evidence(asked["q0"])) == [
        ("beir/d1.md", "Boats of Rye"),
        ("beir/d2.md", "Dogs may swim in the lake."),
    ]
    assert evidence(asked["q6"]) == [("beir/d3.md", "Cats")]
    assert kinds(done.skipped) == {
        "a document judged not relevant": 1,
        "a query whose relevant documents are not in the corpus": 1,
        "a query without relevant documents": 2,
        "a judged query that is not in queries.jsonl": 1,
        "a document without text": 1,
    }
    assert kinds(done.notes) == {"a query of two splits, kept in the later one": 1}
    assert {asked["q0"].split, asked["q1"].split} == {"train", "dev"}
    assert (done.source_format, done.documents, done.answer_format) == ("beir", 3, "short")
    assert errors_of(tmp_path / "out") == []


def test_titles_that_recur_are_no_labels(beir: Path, tmp_path: Path) -> None:
    write(beir / "qrels/train.tsv", "".join(f"q{i}\td{1 + i % 2}\t1\n" for i in range(6)))
    write(beir / "qrels/test.tsv", "")
    done = bring(beir, tmp_path / "out")
    assert (done.answer_format, done.evidence["stated"]) == ("short", 6)


@pytest.mark.parametrize("line", ["q0\td1", "q0\td1\tmuch", "q0 0 d1 1"])
def test_a_broken_judgement(beir: Path, tmp_path: Path, line: str) -> None:
    write(beir / "qrels/dev.tsv", f"query-id\tcorpus-id\tscore\n{line}\n")
    with pytest.raises(InputError, match=r"qrels/dev\.tsv, line 2: not a judgement \("):
        bring(beir, tmp_path / "out")
    assert kinds(bring(beir, tmp_path / "out", skip_broken=True).skipped)["not a judgement"] == 1


def test_judgements_in_another_encoding(beir: Path, tmp_path: Path) -> None:
    (beir / "qrels/dev.tsv").write_bytes(b"q0\td\xff\t1\n")
    with pytest.raises(InputError, match=r"dev\.tsv is not UTF-8"):
        bring(beir, tmp_path / "out")


def test_beir_without_a_part(beir: Path, tmp_path: Path) -> None:
    (beir / "corpus.jsonl").unlink()
    with pytest.raises(InputError, match=r"corpus\.jsonl cannot be read"):
        bring(beir, tmp_path / "out")
    for path in (beir / "qrels").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"qrels holds no judgements"):
        bring(beir, tmp_path / "out")


def test_documents_are_not_held_in_memory(tmp_path: Path) -> None:
    folder = tmp_path / "big"
    jsonl(folder / "queries.jsonl", [{"_id": f"q{i}", "text": f"query {i}"} for i in range(10)])
    write(folder / "qrels/test.tsv", "".join(f"q{i}\td{i}\t1\n" for i in range(10)))
    with (folder / "corpus.jsonl").open("w") as file:
        for i in range(300):
            file.write(json.dumps({"_id": f"d{i}", "title": f"T{i}", "text": f"w{i} " * 20_000}) + "\n")
    size = (folder / "corpus.jsonl").stat().st_size
    tracemalloc.start()
    done = bring(folder, tmp_path / "out", documents=20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert done.documents == 20
    assert peak < size / 10, (peak, size)


# --- chat ------------------------------------------------------------------------------------------------------------


def turns(*pairs: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


def test_chat(tmp_path: Path) -> None:
    rows = [
        turns(("system", "Be brief."), ("user", "One?"), ("assistant", "1.")),
        turns(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hi"), ("user", "Two?"), ("assistant", "2.")),
        turns(("system", "Be brief."), ("user", [{"type": "text", "text": "Three?"}]), ("assistant", "3.")),
        turns(("system", "Be brief."), ("user", "Four?")),
        turns(("system", "Be brief."), ("user", "Five?"), ("assistant", None)),
        turns(("system", "Be brief."), ("user", [{"type": "image_url"}]), ("assistant", "6.")),
        turns(("system", "Be brief.")),
    ]
    source = jsonl(tmp_path / "c.jsonl", rows)
    assert detect_format(source) == "chat"
    done = bring(source, tmp_path / "out")
    assert [(q.text, q.answers) for q in questions(tmp_path / "out").values()] == [
        ("One?", ("1.",)),
        ("Two?", ("2.",)),
        ("Three?", ("3.",)),
    ]
    assert only_task(tmp_path / "out").instructions[0] == "Be brief."
    assert kinds(done.skipped) == {
        "no assistant text after the last user turn": 2,
        "a turn that is not text alone": 1,
        "no user turn": 1,
    }
    assert "earlier turns of the conversation are left out" in kinds(done.notes)


def test_a_system_turn_that_changes_is_no_instruction(tmp_path: Path) -> None:
    rows = [turns(("system", f"You are {n}."), ("user", f"{n}?"), ("assistant", n)) for n in ("Ann", "Bob", "Cy")]
    done = bring(jsonl(tmp_path / "c.jsonl", rows), tmp_path / "out")
    assert only_task(tmp_path / "out").instructions[0] == "Answer the question in a few words."
    assert done.notes[0] == Count("system turns differ from row to row; none is used", 1, f"{tmp_path}/c.jsonl, line 2")


@pytest.mark.parametrize("row", [{"messages": 3}, {"messages": ["x"]}, {"chat": []}])
def test_broken_chat(tmp_path: Path, row: dict[str, Any]) -> None:
    source = jsonl(tmp_path / "c.jsonl", [turns(("user", "?"), ("assistant", "!")), row])
    with pytest.raises(InputError, match=r"line 2: (no messages|messages is not a list of objects)"):
        bring(source, tmp_path / "out")


# --- what format a source has ----------------------------------------------------------------------------------------


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        bring(tmp_path / "gone.csv", tmp_path / "out")
    with pytest.raises(InputError, match=r"of no known type; expected a \.jsonl, \.json, \.csv, \.tsv file"):
        bring(write(tmp_path / "x.xlsx", "x"), tmp_path / "out")
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder/training.jsonl", "")  # not a split: the word goes on
    with pytest.raises(InputError, match="not a source that can be read; expected train, dev or test files"):
        bring(tmp_path / "folder", tmp_path / "out")
    with pytest.raises(InputError, match=r"no question of the source can be used \(it is empty\)"):
        bring(write(tmp_path / "empty.jsonl", ""), tmp_path / "out")
    with pytest.raises(InputError, match="no question of the source has an answer"):
        bring(jsonl(tmp_path / "u.jsonl", [{"question": "?", "answers": []}]), tmp_path / "out")
    with pytest.raises(InputError, match="cannot be read"):
        bring(tmp_path / ("x" * 300), tmp_path / "out")
    with pytest.raises(InputError, match="cannot be read"):
        bring(tmp_path / "empty.jsonl", tmp_path / ("x" * 300))
    assert not (tmp_path / "out").exists()


def test_text_that_utf_8_cannot_hold(tmp_path: Path) -> None:
    half = "\ud83d"
    folder = tmp_path / "half"
    rows = [{"id": f"i{half}", "question": f"q{half}{i}", "labels": [f"l{half}"], "doc_ids": [half]} for i in range(3)]
    jsonl(folder / "train.jsonl", rows)
    jsonl(folder / "corpus.jsonl", [{"id": half, "title": f"t{half}", "text": f"x{half}", "source": f"s{half}"}])
    meta = {"labels": [f"l{half}", f"m{half}"], "title": half, "licence": half, "instruction": f"i{half}"}
    write(folder / "meta.json", json.dumps(meta))
    done = bring(folder, tmp_path / "out")
    assert (done.labels, done.documents, sum(done.evidence.values())) == (2, 1, 3)
    assert only_task(tmp_path / "out").labels == ("l\ufffd", "m\ufffd")


# --- the shape of the answers ----------------------------------------------------------------------------------------


NOTHING = About()


def shape_of(*answers: Any, about: About = NOTHING, is_label: bool = False) -> tuple[str, str, tuple[str, ...]]:
    asked = [
        ask(f"q{i}", *((answer,) if isinstance(answer, str) else answer), is_label=is_label)
        for i, answer in enumerate(answers)
    ]
    shape = find_shape(asked, about)
    return shape.format, shape.metric, shape.labels


def test_formats_and_metrics() -> None:
    sentence = "Because the tide turns at noon and the boats cannot pass the sandbank before."
    assert shape_of("yes", "no", "no", "yes") == ("label", "accuracy", ("no", "yes"))
    assert shape_of("yes", "no", "no") == ("short", "token_f1", ()), "yes does not recur"
    assert shape_of("yes", "no", "no", "yes", ()) == ("short", "token_f1", ()), "labels leave no room for refusing"
    assert shape_of("yes", "yes", "yes") == ("short", "token_f1", ()), "one answer is no choice"
    assert shape_of(("yes", "yeah"), "no", "no", "yes", "yeah")[0] == "short", "labels have no alternatives"
    assert shape_of(*[f"a{i % 40}" for i in range(80)])[0] == "label"
    assert shape_of(*[f"a{i % 41}" for i in range(82)])[0] == "short"
    assert shape_of("a", "b", is_label=True) == ("label", "accuracy", ("a", "b"))
    assert shape_of("a", "b", about=About(labels=("a", "b", "c")))[2] == ("a", "b", "c")
    assert shape_of("a", "d", about=About(labels=("a", "b", "c")))[0] == "short", "d is none of the labels"
    assert shape_of('{"a": 1}', '{"b": [1, 2]}', '{"a": 1}') == ("json", "field_match", ())
    assert shape_of('{"a": 1}', "[1, 2]")[0] == "short", "field_match needs objects"
    assert shape_of('{"a": 1}', '{"a": NaN}')[0] == "short"
    assert shape_of('{"a": 1}', '{"a": 1, "a": 2}')[0] == "short"
    assert shape_of("9", "1,250", "$3.50", "-12 %")[:2] == ("short", "exact_match")
    assert shape_of(sentence, sentence + " Twice.", "no") == ("text", "rouge_l", ())


def test_instructions_list_labels_that_fit() -> None:
    asked = [ask("1", "b", is_label=True), ask("2", "a", is_label=True)]
    about = About(instruction="Which team?")
    assert find_shape(asked, about).instructions == ("Which team?", "Which team? Answer with one of these only: a, b.")
    many = [ask(str(i), f"label number {i}", is_label=True) for i in range(60)]
    assert find_shape(many, About()).instructions[1].endswith("Answer with its name only.")


def test_room_for_answers() -> None:
    """95 of 100 answers: 20 answers of which the longest is an outlier; 3 bytes a token, eights, within limits."""
    answers = ["x" * 90] * 19 + ["y" * 3000]
    assert find_shape([ask(str(i), a) for i, a in enumerate(answers)], About()).max_answer_tokens == 40
    assert find_shape([ask("1", "x")], About()).max_answer_tokens == 8
    assert find_shape([ask("1", "x" * 90_000)], About()).max_answer_tokens == 1024


def test_unanswerable_rows_of_a_label_task_are_counted(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "label": "ab"[i % 2]} for i in range(6)] + [{"question": "none", "labels": []}]
    done = bring(jsonl(tmp_path / "l.jsonl", rows), tmp_path / "out")
    assert kinds(done.skipped) == {"no label, in a task of labels": 1}


# --- splits and samples ----------------------------------------------------------------------------------------------


def split(questions: Sequence[SourceQuestion], **sizes: int) -> tuple[Counter[Any], str]:
    done, how = split_questions(questions, sizes, 3, Ledger())  # type: ignore[arg-type]
    return Counter(question.split for question in done), how


def test_sizes_of_splits_by_question() -> None:
    asked = [ask(str(i), "a") for i in range(100)]
    assert split(asked) == (Counter(train=70, test=20, dev=10), "by question, seed 3")
    assert split(asked, test=50)[0] == Counter(test=50, train=44, dev=6)
    assert split(asked, train=30, dev=10, test=10)[0].total() == 100
    assert split(asked, test=170)[0] == Counter(test=68, train=28, dev=4)
    assert split(asked[:3])[0] == Counter(train=1, dev=1, test=1)
    assert split(asked[:2])[0] == Counter(train=1, test=1)
    assert split(asked[:1])[0] == Counter(train=1)
    assert split(asked[:5])[0] == Counter(train=3, test=1, dev=1)


def test_the_seed_decides_and_the_order_does_not_change() -> None:
    asked = [ask(str(i), "a") for i in range(50)]
    one, two, other = (split_questions(asked, {}, seed, Ledger())[0] for seed in (1, 1, 2))
    assert one == two != other
    assert [question.id for question in one] == [str(i) for i in range(50)]


def test_questions_that_share_documents_stay_together() -> None:
    chain = [ask(f"c{i}", "a", documents=(f"d{i}", f"d{i + 1}")) for i in range(4)]
    rest = [ask(f"r{i}", "a", documents=(f"e{i // 2}",)) for i in range(16)]
    done, how = split_questions([*chain, *rest], {}, 0, Ledger())
    assert how == "by document, seed 0"
    assert len({question.split for question in done[:4]}) == 1
    assert all(done[4 + i].split == done[5 + i].split for i in range(0, 16, 2))
    assert {question.split for question in done} == {"train", "dev", "test"}


def test_each_split_gets_a_document_where_there_are_few() -> None:
    asked = [ask(str(i), "a", documents=(f"d{i % 3}",)) for i in range(30)]
    assert split(asked) == (Counter(train=10, dev=10, test=10), "by document, seed 3")


def test_two_documents_leave_dev_empty_rather_than_leak() -> None:
    asked = [ask(str(i), "a", documents=(f"d{i % 2}",)) for i in range(20)]
    assert split(asked) == (Counter(train=10, test=10), "by document, seed 3")


def test_one_document_for_all_is_split_by_question_and_says_so() -> None:
    asked = [ask(str(i), "a", documents=("d",)) for i in range(20)]
    counts, how = split(asked)
    assert counts == Counter(train=14, test=4, dev=2)
    assert how == "by question, since documents tie most questions together, seed 3"


def test_stated_splits() -> None:
    train = [ask(f"a{i}", "x", split="train") for i in range(20)]
    dev, test = ask("d", "x", split="dev"), ask("t", "x", split="test")
    assert split([*train, dev, test]) == (Counter(train=20, dev=1, test=1), "the source's own")
    assert split([*train, test]) == (
        Counter(train=18, dev=2, test=1),
        "the source's own, dev drawn from train by question, seed 3",
    )
    assert split([*train, test], dev=5)[0] == Counter(train=15, dev=5, test=1)
    assert split([*train, dev])[0] == Counter(train=18, dev=2, test=1)
    assert split(train)[1] == "by question, seed 3"
    assert split([test])[0] == Counter(test=1)
    ledger = Ledger()
    done, _ = split_questions([*train, test, dev, ask("n", "x")], {}, 0, ledger)
    assert len(done) == 22
    assert kinds(ledger.skipped) == {"no split, while others have one": 1}


def test_samples_are_seeded_and_show_every_label(tmp_path: Path) -> None:
    rows = [{"id": str(i), "question": f"q{i}", "label": f"L{max(0, i - 190)}", "split": "train"} for i in range(200)]
    rows += [{"id": f"t{i}", "question": f"t{i}", "label": "L0", "split": "test"} for i in range(50)]
    rows += [{"id": "d", "question": "d", "label": "L1", "split": "dev"}]
    source = jsonl(tmp_path / "l.jsonl", rows)
    taken = []
    for number, seed in enumerate((1, 1, 2)):
        into = tmp_path / f"out{number}"
        done = bring(source, into, train=20, test=10, dev=5, seed=seed)
        assert done.questions == {"train": 20, "dev": 1, "test": 10}
        assert kinds(done.notes) == {"5 dev questions wanted, 1 found": 1}
        assert errors_of(into) == [], "each of the ten labels has a train question"
        taken.append(set(questions(into)))
    assert taken[0] == taken[1] != taken[2]


def test_a_label_without_train_question_is_noted(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "label": "ab"[i % 2], "split": "train"} for i in range(4)]
    rows += [{"question": "x", "label": "c", "split": "test"}, {"question": "y", "label": "a", "split": "dev"}]
    done = bring(jsonl(tmp_path / "l.jsonl", rows), tmp_path / "out")
    assert done.notes == (Count("a label that no train question shows", 1, f"'c', {tmp_path}/l.jsonl, line 5"),)
    assert len(errors_of(tmp_path / "out")) == 1


def test_documents_are_sampled_gold_first(open_folder: Path, tmp_path: Path) -> None:
    jsonl(open_folder / "corpus.jsonl", FOLDER_CORPUS + [{"id": f"n{i}", "text": f"Noise {i}."} for i in range(50)])
    taken = []
    for number, seed in enumerate((1, 1, 2)):
        into = tmp_path / f"out{number}"
        assert bring(open_folder, into, documents=10, seed=seed).documents == 10
        names = {row["id"] for row in store.read_jsonl(into / "tasks/open.documents.jsonl")}
        assert {"x/1", "x 2", "far"} <= names
        taken.append(names)
    assert taken[0] == taken[1] != taken[2]
    done = bring(open_folder, tmp_path / "few", documents=1)
    assert done.documents == 3
    assert "1 documents wanted, 3 are gold and all kept" in kinds(done.notes)
    done = bring(open_folder, tmp_path / "fewer", documents=0, train=0, dev=1, test=0)
    assert (done.documents, done.questions) == (1, {"train": 0, "dev": 1, "test": 0})


# --- evidence --------------------------------------------------------------------------------------------------------


def found(text: str, *answers: str, title: str = "", search: bool = True, quotes: tuple[Quote, ...] = ()) -> Any:
    document = written_document(SourceDocument("d", title, text, "line 1"), "d.md")
    way, spans = find_evidence(
        SourceQuestion("q", "q", answers, "line 1", documents=("d",), quotes=quotes), "d", document, search
    )
    assert all(document.text[span.start : span.end] == span.text for span in spans)
    return way, [(span.start, span.text) for span in spans]


FILLER = " Nothing of that is said in this long tail." * 80


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("Ann met Anne and Ann.", ["Anne"], (8, "Anne")),
        ("Joanna met Ann.", ["Ann"], (11, "Ann")),
        ("They are Americans.", ["American"], (9, "American")),
        ("In 42 of 4 cases.", ["4"], (9, "4")),
        ("It costs 2.5 or 5 pounds.", ["5"], (16, "5")),
        ("From 1,937 to 937.", ["937"], (14, "937")),
        ("It is 5. Then 6.", ["5"], (6, "5")),
        ("Ox and axe.", ["ax", "axe"], (7, "axe")),
        ("First the second.", ["none", "second", "First"], (10, "second")),
        ("全部有四座塔。", ["四"], (3, "四")),
        ("Cost: £5!", ["£5"], (6, "£5")),
    ],
)
def test_the_first_place_of_an_answer(text: str, answers: list[str], expected: tuple[int, str]) -> None:
    assert found(text + FILLER, *answers) == ("answer", [expected])


def test_an_answer_is_looked_for_in_the_text_before_the_title() -> None:
    assert found("He came to Rye." + FILLER, "Rye", title="Rye") == ("answer", [(len("# Rye\n\n") + 11, "Rye")])
    assert found("He came." + FILLER, "Rye", title="Rye") == ("answer", [(2, "Rye")])


def test_short_documents_count_as_a_whole_and_long_ones_do_not() -> None:
    assert found("  The sea.\n", "brine", title="Rye") == ("document", [(len("# Rye\n\n") + 2, "The sea.")])
    assert found("x" * LONGEST_DOCUMENT, "brine")[0] == "document"
    assert [len(text) for _, text in found("x" * (LONGEST + 50), "brine")[1]] == [LONGEST, 50]
    assert found("x" * (LONGEST_DOCUMENT + 1), "brine") == (None, [])
    assert found("He said ax." + FILLER, "he") == (None, []), "two letters must be a word, and are another one"
    assert found("No, yes or true." + FILLER, "yes", "No") == (None, [])
    assert found("A label here.", "label", search=False) == ("document", [(0, "A label here.")])
    assert found("Short.") == (None, []), "the question has no answer"


def test_stated_evidence() -> None:
    text = "One two.\r\nThree  four\nfive." + FILLER
    assert found(text, "a", quotes=(Quote("d", "two", 4, 7),)) == ("stated", [(4, "two")])
    assert found(text, "a", quotes=(Quote("d", "", 10, 15),)) == ("stated", [(9, "Three")]), "CRLF became one character"
    assert found(text, "a", quotes=(Quote("d", "Three four five."),)) == ("stated", [(9, "Three  four\nfive.")])
    assert found(text, "a", quotes=(Quote("other", "two", 4, 7),)) == (None, [])
    for wrong in (
        Quote("d", "two", 3, 6),
        Quote("d", "", 5, 5),
        Quote("d", "", 5, 9_999),
        Quote("d", "six"),
        Quote("d", ""),
    ):
        assert found(text, "a", quotes=(wrong,)) == (None, [])


def test_long_evidence_is_cut_into_pieces_that_a_passage_can_hold() -> None:
    answer = "\n\n".join(f"Paragraph {i}. " + "Some words of it here. " * 15 for i in range(4)).strip()
    way, spans = found("Before. " + answer + " After.", answer)
    assert way == "answer"
    assert [text.split(".")[0] for _, text in spans] == [f"Paragraph {i}" for i in range(4)]
    assert "".join("".join(text.split()) for _, text in spans) == "".join(answer.split())
    unbroken = found("x" * 1500, "x" * 1500)[1]
    assert [len(text) for _, text in unbroken] == [600, 600, 300]


# --- whatever the data are -------------------------------------------------------------------------------------------

PIECES = [
    "Rye ",
    "4",
    "42 ",
    "£5",
    "\r\n",
    "\r",
    "\n\n",
    "\0",
    "\ufeff",
    "# ",
    "```",
    "|",
    "🚂",
    "塔",
    "é",
    "ٱ",
    "a b",
    "\x7f",
    '"""',
    "\ud800",
]
TEXT = st.lists(st.sampled_from(PIECES), min_size=1, max_size=300).map("".join)
ROW = st.tuples(st.integers(0, 5), st.integers(0, 400), st.integers(1, 30), st.integers(-1, 1), st.booleans())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(TEXT, TEXT), min_size=6, max_size=6), st.lists(ROW, min_size=1, max_size=25), st.integers(0, 9)
)
def test_spans_match_their_documents_and_splits_are_apart(
    documents: list[tuple[str, str]], asked: list[tuple[int, int, int, int, bool]], seed: int
) -> None:
    paragraphs: list[dict[str, Any]] = [{"context": text, "qas": []} for _, text in documents]
    for i, (document, start, length, error, impossible) in enumerate(asked):
        words = documents[document][1][start : start + length]
        answers = [] if impossible else [{"text": words, "answer_start": start + error}]
        paragraphs[document]["qas"].append(
            {"question": f"Question {i}?", "answers": answers, "is_impossible": impossible}
        )
    squad = {"data": [{"title": title, "paragraphs": [p]} for (title, _), p in zip(documents, paragraphs, strict=True)]}
    with tempfile.TemporaryDirectory() as folder:
        source, into = write(Path(folder) / "s.json", json.dumps(squad)), Path(folder) / "out"
        try:
            done = bring(source, into, seed=seed)
        except InputError as refusal:
            assert "no question of the source" in str(refusal)
            return
        loaded = texts(into)
        task = only_task(into)
        assert len(loaded) >= done.documents
        used: dict[str, set[str]] = {}
        for question in task.questions:
            for span in question.evidence:
                assert loaded[span.document_id][span.start : span.end] == span.text
                used.setdefault(span.document_id, set()).add(question.split)
        if done.split_by.startswith("by document"):
            assert all(len(splits) == 1 for splits in used.values())
        assert done.shared_documents == sum(len(splits) > 1 for splits in used.values())
        assert sum(done.questions.values()) + sum(
            kind.count for kind in done.skipped if not kind.what.startswith("a document")
        ) == len(asked)
        assert sum(done.evidence.values()) + done.without_evidence + done.unanswerable == len(task.questions)
        assert errors_of(into) == [] or task.format == "label"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 30), max_size=3), min_size=1, max_size=60),
    st.dictionaries(st.sampled_from(["train", "dev", "test"]), st.integers(0, 80)),
    st.integers(0, 5),
)
def test_dealing_keeps_every_question_and_parts_documents(
    gold: list[list[int]], sizes: dict[Any, int], seed: int
) -> None:
    asked = [ask(str(i), "a", documents=tuple(map(str, documents))) for i, documents in enumerate(gold)]
    done, how = split_questions(asked, sizes, seed, Ledger())
    assert [replace(question, split=None) for question in done] == asked
    if how.startswith("by document"):
        splits: dict[str, set[Any]] = {}
        for question in done:
            for document in question.documents:
                splits.setdefault(document, set()).add(question.split)
        assert all(len(found) == 1 for found in splits.values())


# --- the folder ------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = [{"question": f"Question {i}?", "answer": f"answer {i}"} for i in range(20)]
    return jsonl(tmp_path / "more.jsonl", rows)


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


TOML = "\r\n".join(
    [
        "# mine",
        'name = "lake"   # a name',
        'default_task = "old"',
        "",
        "[tasks.old] # first",
        'questions = "old.jsonl"',
        'instruction = "Answer."',
    ]
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "lake"
    write(folder / "ragtune.toml", TOML)
    write(folder / "documents/rules/boats.md", "# Boats\n\nA boat costs £5 a day. Ask at the pier, and bring £5.\n")
    jsonl(
        folder / "old.jsonl",
        [{"id": "1", "split": "train", "question": "Old?", "answers": ["yes"], "evidence": []}],
    )
    return folder


def test_a_task_is_added_and_all_else_stays(project: Path, source: Path) -> None:
    before = snapshot(project)
    done = bring(source, project)
    after = snapshot(project)
    assert done.added
    assert set(after) - set(before) == {"README.md", "tasks/more.jsonl"}
    assert after["ragtune.toml"].startswith(TOML.encode() + b"\r\n\r\n[tasks.more]\r\n")
    assert b"\n" not in after["ragtune.toml"].replace(b"\r\n", b"")
    assert {name: after[name] for name in before if name != "ragtune.toml"} == {
        name: data for name, data in before.items() if name != "ragtune.toml"
    }
    config = load_config(project)
    assert (config.name, config.default_task, list(config.tasks)) == ("lake", "old", ["old", "more"])
    assert errors_of(project) == []
    bring(source, project, name="again")
    readme = (project / "README.md").read_text()
    assert readme.startswith("# lake\n\n## more\n") and "\n## again\n" in readme


def test_gold_documents_of_the_project_itself(project: Path, tmp_path: Path) -> None:
    rows = [
        {"question": "Price?", "answer": "£5", "document": "rules/boats.md"},
        {
            "question": "Where?",
            "answers": ["the pier"],
            "evidence": [{"document": "rules/boats.md", "text": "Ask at the pier"}],
        },
        {"question": "Cats?", "answer": "£9", "document": "rules/cats.md"},
    ]
    done = bring(jsonl(tmp_path / "own.jsonl", rows), project)
    own = Session(load_config(project)).task("own")
    assert [evidence(question) for question in own.questions] == [
        [("rules/boats.md", "£5")],
        [("rules/boats.md", "Ask at the pier")],
        [],
    ]
    assert (own.questions[0].evidence[0].start, done.documents) == (len("# Boats\n\nA boat costs "), 0)
    assert kinds(done.notes)["a gold document that is neither in the source nor in the project"] == 1
    assert errors_of(project) == []


def test_documents_that_the_project_holds_already_are_used_as_they_are(open_folder: Path, tmp_path: Path) -> None:
    bring(open_folder, tmp_path / "out")
    jsonl(open_folder / "train.jsonl", [{"question": "Deep?", "answer": "The lake is deep", "doc_ids": ["x/1"]}])
    jsonl(open_folder / "dev.jsonl", [{"question": "Free?", "answer": "swim free", "doc_ids": ["x 2"]}])
    jsonl(open_folder / "test.jsonl", [{"question": "New?", "answer": "new", "doc_ids": ["new"]}])
    jsonl(open_folder / "corpus.jsonl", [*FOLDER_CORPUS, {"id": "new", "title": "", "text": "A new one."}])
    bring(open_folder, tmp_path / "out", name="second")
    added = [path.name for path in (tmp_path / "out/documents/second").iterdir()]
    assert added == ["new.md"]
    second = Session(load_config(tmp_path / "out")).task("second")
    third = bring(open_folder, tmp_path / "out", name="third")
    assert third.documents == 4 and not (tmp_path / "out/documents/third").exists()
    toml = tmp_path / "out/ragtune.toml"
    toml.write_text(toml.read_text().replace('# exclude = ["drafts/*"]', 'exclude = ["open"]'))
    bring(open_folder, tmp_path / "out", name="fourth")
    assert len(list((tmp_path / "out/documents/fourth").iterdir())) == 4, "those in open/ are not read"
    assert [question.evidence[0].document_id.split("/")[0] for question in second.questions] == [
        "open",
        "open",
        "second",
    ]


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('name = "lake"\ntasks = {old = {questions = "old.jsonl", instruction = "A"}}\n', "can be added"),
        ("name = 3\n", "name"),
        ('name = "lake"\n[tasks.more]\nquestions = "old.jsonl"\ninstruction = "A"\n', "has a task 'more' already"),
    ],
)
def test_a_toml_that_cannot_be_added_to(project: Path, source: Path, toml: str, message: str) -> None:
    write(project / "ragtune.toml", toml)
    before = snapshot(project)
    with pytest.raises((ConfigError, InputError), match=message):
        bring(source, project)
    assert snapshot(project) == before


def test_places_that_are_refused(project: Path, source: Path, open_folder: Path, tmp_path: Path) -> None:
    write(project / "tasks/more.jsonl", "mine")
    with pytest.raises(InputError, match=r"more\.jsonl exists already"):
        bring(source, project)
    with pytest.raises(InputError, match=r"is not empty and holds no ragtune\.toml"):
        bring(source, project / "documents")
    with pytest.raises(InputError, match="is a file"):
        bring(source, project / "old.jsonl")
    with pytest.raises(InputError, match="task name 'My Task' cannot be used"):
        bring(source, tmp_path / "out", name="My Task")
    write(project / "ragtune.toml", TOML.replace("default", 'documents = "../elsewhere"\r\ndefault'))
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="lie outside it"):
        bring(open_folder, project)
    assert snapshot(tmp_path) == before


def test_an_empty_folder_is_filled(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out/.git").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "out")
    bring(source, Path())
    assert sorted(path.name for path in Path().iterdir() if path.name[0] != ".") == [
        "README.md",
        "documents",
        "ragtune.toml",
        "tasks",
    ]
    assert load_config(Path()).name == "out"
    assert errors_of(Path()) == []
    assert list(texts(Path())) == ["more/about.md"], "something to index, since the source has no documents"


@pytest.mark.parametrize("new", [True, False])
def test_when_writing_fails_everything_is_taken_back(
    new: bool, project: Path, open_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(project / "README.md", "Mine.\n")
    before = snapshot(tmp_path)
    whole = store.write_text

    def full(path: Path, text: str) -> None:
        if path.name == "ragtune.toml":
            raise StoreError("cannot write: the disk is full")
        whole(path, text)

    monkeypatch.setattr(store, "write_text", full)
    with pytest.raises(StoreError, match="the disk is full"):
        bring(open_folder, tmp_path / "out" if new else project)
    assert snapshot(tmp_path) == before
    assert not list(tmp_path.rglob("*.building"))
    assert not (tmp_path / "out").exists()


def test_a_read_only_place(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(StoreError, match="Read-only file system"):
        bring(source, tmp_path / "out")


def test_two_imports_at_once(project: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.locked(project / "ragtune.toml"), pytest.raises(BusyError):
        bring(source, project)

    from ragtune.corpus.importers import convert

    read = convert.read_source

    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.setattr(convert, "read_source", read)
        bring(source, project, name="other")
        return read(*arguments)

    monkeypatch.setattr(convert, "read_source", meanwhile)
    with pytest.raises(BusyError, match="changed by another process"):
        bring(source, project)
    assert list(load_config(project).tasks) == ["old", "other"]


def test_leftovers_of_a_killed_import_are_cleared(source: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.xyz.building/project").mkdir(parents=True)
    bring(source, tmp_path / "out")
    assert not list(tmp_path.glob(".*.building"))


@pytest.mark.parametrize("name", ["pubmedqa", "squad_qa", "gsm8k"])
@pytest.mark.skipif(not OPEN_SETS.is_dir(), reason="RAGTUNE_OPEN_SETS names no folder of public sets")
def test_public_sets(name: str, tmp_path: Path) -> None:
    """The counts are those that the sets' own meta.json states."""
    done = bring(OPEN_SETS / name, tmp_path / "out")
    counts = store.read_json(OPEN_SETS / name / "meta.json")["counts"]
    assert done.documents == counts["docs"]
    assert done.questions == {split: counts[split] for split in ("train", "dev", "test")}
    assert errors_of(tmp_path / "out") == []
