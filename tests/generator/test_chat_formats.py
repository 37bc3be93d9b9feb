"""Instruction data in and out: what is written is read back as it was, and a broken line is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragtune.errors import InputError
from ragtune.generator.chat_formats import FORMATS, TASK, RowFormat, read_rows, write_rows
from ragtune.generator.examples import TrainingRow
from ragtune.types import Message


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)


def written(path: Path, *values: object) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


# Each format as its users have it

OPENAI = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "2"},
    ]
}
SHAREGPT = {
    "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "One?"},
        {"from": "gpt", "value": "1"},
        {"from": "human", "value": "Two?"},
        {"from": "gpt", "value": "2"},
    ]
}
ALPACA = {"instruction": "Two?", "input": "", "output": "2", "system": "Be brief.", "history": [["One?", "1"]]}
CHAT = (Message("system", "Be brief."), user("One?"), assistant("1"), user("Two?"))
SPELLINGS: dict[RowFormat, dict[str, Any]] = {"openai": OPENAI, "sharegpt": SHAREGPT, "alpaca": ALPACA}


@pytest.mark.parametrize("format", SPELLINGS)
def test_a_file_of_each_format_is_read_and_written_as_it_was(tmp_path: Path, format: RowFormat) -> None:
    path = written(tmp_path / "chats.jsonl", SPELLINGS[format])
    (row,) = read_rows(path)
    assert row == TrainingRow(TASK, "chats-1", "instruction", CHAT, "2")
    write_rows(tmp_path / "again.jsonl", [row], format)
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()


def test_alpaca_as_published(tmp_path: Path) -> None:
    """A JSON list; `input` follows the instruction in the same turn."""
    path = tmp_path / "alpaca_data.json"
    rows = [
        {"instruction": "Name a colour.", "input": "", "output": "Red."},
        {"instruction": "Double it.", "input": "21", "output": "42"},
    ]
    path.write_text("\n " + json.dumps(rows, indent=2), encoding="utf-8")
    assert [(r.question_id, r.messages, r.target) for r in read_rows(path)] == [
        ("alpaca_data-1", (user("Name a colour."),), "Red."),
        ("alpaca_data-2", (user("Double it.\n21"),), "42"),
    ]


def test_what_the_formats_say_in_several_ways(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]
    path = written(
        tmp_path / "mixed.jsonl",
        {"id": 7, "messages": [{"role": "developer", "content": "S"}, {"role": "user", "content": parts}, *_says("A")]},
        {
            "id": "x",
            "system": "S",
            "conversations": [{"from": "user", "value": "Q"}, {"from": "assistant", "value": "A"}],
        },
        {"instruction": "", "input": "Q", "output": "A"},
    )
    rows = read_rows(path)
    assert [row.question_id for row in rows] == ["7", "x", "mixed-3"]
    assert rows[0].messages == (Message("system", "S"), user("One\ntwo"))
    assert rows[1].messages == (Message("system", "S"), user("Q"))
    assert rows[2].messages == (user("Q"),)
    assert [row.target for row in rows] == ["A", "A", "A"]


def _says(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_a_byte_order_mark_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    lines = ["", json.dumps(OPENAI), " ", json.dumps(ALPACA), ""]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert [row.question_id for row in read_rows(path)] == ["windows-2", "windows-4"]


# Round trips


TEXT = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
CHATS = st.builds(
    lambda system, pairs, last, target: (
        (*((Message("system", system),) if system else ()), *(m for a, b in pairs for m in (user(a), assistant(b)))),
        last,
        target,
    ),
    st.one_of(st.just(""), TEXT),
    st.lists(st.tuples(TEXT, TEXT), max_size=2),
    TEXT,
    TEXT,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chat=CHATS, format=st.sampled_from(FORMATS))
def test_every_chat_survives_every_format(tmp_path: Path, chat: Any, format: RowFormat) -> None:
    before, last, target = chat
    row = TrainingRow(TASK, "chats-1", "instruction", (*before, user(last)), target)
    write_rows(tmp_path / "chats.jsonl", [row], format)
    assert read_rows(tmp_path / "chats.jsonl") == [row]


def test_rows_with_passages_keep_their_record_in_our_format_alone(tmp_path: Path) -> None:
    row = TrainingRow("facts", "q1", "raft", CHAT, "[1] two", ("a", "b"), (0,), (3,), (0.03,), ("a",))
    write_rows(tmp_path / "rows.jsonl", [row, row])
    assert read_rows(tmp_path / "rows.jsonl") == [row, row]
    assert len((tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    for format in SPELLINGS:
        write_rows(tmp_path / "rows.jsonl", [row], format)
        assert read_rows(tmp_path / "rows.jsonl") == [TrainingRow(TASK, "rows-1", "instruction", CHAT, "[1] two")]


# What is refused


GOOD = json.dumps(OPENAI)
BROKEN = {
    "no JSON": ("{", r"line 2: not valid JSON \(Expecting property name"),
    "no UTF-8": (b'{"messages": "\xff"}', r"line 2: not valid JSON \('utf-8' codec"),
    "no object": ("[1]", r"line 2: a JSON list, expected an object"),
    "no format": (
        '{"prompt": "a", "completion": "b"}',
        r"line 2: keys are prompt, completion; expected messages \(OpenAI",
    ),
    "alpaca without output": ('{"instruction": "a"}', r"line 2: no output; expected instruction and output"),
    "alpaca with a number": ('{"instruction": 3, "output": "b"}', r"line 2: instruction is 3; expected text"),
    "alpaca without question": ('{"instruction": "", "output": "b"}', r"line 2: the last question is empty"),
    "alpaca history": (
        '{"instruction": "a", "output": "b", "history": [["c"]]}',
        r"history is not a list of \[asked, answ",
    ),
    "empty answer": ('{"instruction": "a", "output": " "}', r"line 2: the last answer is empty; expected text"),
    "no list": ('{"messages": "hi"}', r"line 2: messages is not a list of objects"),
    "no turns": (
        '{"messages": []}',
        r"line 2: turns are none; expected user and assistant by turns, the assistant last",
    ),
    "question last": (
        '{"conversations": [{"from": "human", "value": "a"}]}',
        r"line 2: turns are user; expected user and assistant by turns, the assistant last",
    ),
    "unknown role": (
        '{"conversations": [{"from": "observation", "value": "a"}]}',
        r"line 2: from is 'observation'; expected one of system, developer, user, human, assistant, gpt",
    ),
    "system in the middle": (
        '{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}',
        r"turns are user, system; expected",
    ),
    "tool call": ('{"messages": [{"role": "assistant", "content": null}]}', r"line 2: content is None; expected text"),
    "picture": (
        '{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}',
        r"line 2: content is \[\{'type': 'image_url'.*; expected text",
    ),
    "not to be learned": (
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}',
        r"line 2: the last assistant turn has weight 0; expected one to learn",
    ),
    "row of ours": ('{"target": "yes", "task": "t"}', r"line 2: key question_id is missing"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_is_named_with_what_was_expected(tmp_path: Path, name: str) -> None:
    line, message = BROKEN[name]
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD.encode() + b"\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    with pytest.raises(InputError, match=rf"data\.jsonl, .*{message}"):
        read_rows(path)


def test_all_broken_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([GOOD, *["{}"] * 5, GOOD]), encoding="utf-8")
    with pytest.raises(InputError, match=r"line 2: .*; line 3: .*; line 4: .*; and 2 more broken lines$"):
        read_rows(path)


def test_files_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl cannot be read \(No such file"):
        read_rows(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"empty\.jsonl holds no rows; expected one JSON object a line"):
        read_rows(tmp_path / "empty.jsonl")
    (tmp_path / "list.json").write_text('[{"a": 1},', encoding="utf-8")
    with pytest.raises(InputError, match=r"list\.json is not valid JSON .*; expected one list, or one object a line"):
        read_rows(tmp_path / "list.json")


def test_a_chat_that_no_other_format_can_hold_is_refused_and_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = TrainingRow(TASK, "q1", "instruction", CHAT, "2")
    write_rows(path, [row], "openai")
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"row q1: turns are user, user, assistant; .* write it with --format ragtune"):
        write_rows(path, [replace(row, messages=(user("a"), user("b")))], "openai")
    assert path.read_bytes() == before
