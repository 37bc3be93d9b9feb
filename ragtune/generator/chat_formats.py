"""Instruction data in the field's formats <-> training rows: our own rows, OpenAI chat, Alpaca, ShareGPT.

ragtune   {"task": ..., "messages": [...], "target": ..., "passage_ids": [...], ...}           nothing is lost
openai    {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}
alpaca    {"instruction": ..., "input": ..., "output": ..., "system": ..., "history": [[asked, answered], ...]}
sharegpt  {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}], "system": ...}

The last answer of a chat is the target; earlier turns are its prompt. Of Alpaca's keys `instruction` and `output` are
those of the original; `system` and `history` are how LLaMA-Factory extended it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from ragtune import store
from ragtune.errors import InputError
from ragtune.generator.examples import TrainingRow, row_from_json
from ragtune.types import Message

RowFormat = Literal["ragtune", "openai", "alpaca", "sharegpt"]
FORMATS: tuple[RowFormat, ...] = get_args(RowFormat)
TASK = "instructions"
"""The task of a row that came from instruction data, which belongs to none of the project's."""

_EXPECTED = "messages (OpenAI), conversations (ShareGPT), instruction and output (Alpaca), or a row of ragtune's own"
_SHOWN = 3
_ROLES: Mapping[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
_SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}


def read_rows(path: Path) -> list[TrainingRow]:
    """The rows of a file in any of the formats, one JSON object a line, or one JSON list of objects.

    Raises: InputError naming the file and its broken lines, what came and what was expected.
    """
    rows, broken = [], []
    for place, value in _objects(path):
        try:
            rows.append(_read(value, f"{path.stem}-{place.rpartition(' ')[2]}"))
        except ValueError as fault:
            broken.append(f"{place}: {fault}")
    if broken:
        more = f"; and {len(broken) - _SHOWN} more broken lines" if len(broken) > _SHOWN else ""
        raise InputError(f"{path}, {'; '.join(broken[:_SHOWN])}{more}")
    if not rows:
        raise InputError(f"{path} holds no rows; expected one JSON object a line with {_EXPECTED}")
    return rows


def write_rows(path: Path, rows: Iterable[TrainingRow], format: RowFormat = "ragtune") -> None:
    """Write rows, one JSON object a line, replacing the file in one step.

    Raises: StoreError when it cannot be written; InputError for a chat that the format cannot hold.
    """
    write = _WRITERS[format]
    lines = [json.dumps(write(row), ensure_ascii=False) for row in rows]
    store.write_text(path, "".join(line + "\n" for line in lines))


def _objects(path: Path) -> Iterator[tuple[str, object]]:
    """Place and value of each item where the file is one list; else place and bytes of each line that is not blank."""
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected a file of training rows") from None
    if data.lstrip().startswith(b"["):
        try:
            items = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not valid JSON ({error}); expected one list, or one object a line") from None
        yield from ((f"item {number}", item) for number, item in enumerate(items, 1))
        return
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            yield f"line {number}", line


def _read(value: object, name: str) -> TrainingRow:
    """The row in an object (or in a line's bytes); a chat without an id is called `name`.

    Raises: ValueError saying what is wrong.
    """
    if isinstance(value, bytes):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}, expected an object")
    if "target" in value:
        return row_from_json(value)
    for key, turns in (("messages", _openai), ("conversations", _sharegpt), ("instruction", _alpaca)):
        if key in value:
            return _chat(turns(value), _name(value, name))
    raise ValueError(f"keys are {', '.join(map(str, value))}; expected {_EXPECTED}")


def _name(value: Mapping[str, Any], name: str) -> str:
    given = value.get("id")
    return str(given) if isinstance(given, (str, int)) and given != "" else name


def _chat(turns: Sequence[Message], name: str) -> TrainingRow:
    """The row of a chat: a system turn or none, then user and assistant by turns, the assistant last."""
    roles = [turn.role for turn in turns]
    talk = roles[1:] if roles[:1] == ["system"] else roles
    if not talk or talk != ["user", "assistant"] * (len(talk) // 2):
        came = ", ".join(roles) or "none"
        raise ValueError(f"turns are {came}; expected user and assistant by turns, the assistant last")
    for turn, what in zip(turns[-2:], ("question", "answer"), strict=True):
        if not turn.content.strip():
            raise ValueError(f"the last {what} is empty; expected text")
    return TrainingRow(TASK, name, "instruction", tuple(turns[:-1]), turns[-1].content)


def _openai(value: Mapping[str, Any]) -> list[Message]:
    turns = _list(value["messages"], "messages")
    if turns and turns[-1].get("weight") == 0:
        raise ValueError("the last assistant turn has weight 0; expected one to learn")
    return [Message(_role(turn.get("role"), "role"), _content(turn.get("content"))) for turn in turns]


def _content(value: object) -> str:
    """The text of an OpenAI turn: a string, or a list of parts that are all text."""
    if isinstance(value, list):
        parts = [part for part in value if isinstance(part, dict) and part.get("type") == "text"]
        if len(parts) == len(value):
            return "\n".join(_text(part.get("text"), "text") for part in parts)
    return _text(value, "content")


def _sharegpt(value: Mapping[str, Any]) -> list[Message]:
    turns = _list(value["conversations"], "conversations")
    chat = [Message(_role(turn.get("from"), "from"), _text(turn.get("value"), "value")) for turn in turns]
    return [*_system(value), *chat]


def _alpaca(value: Mapping[str, Any]) -> list[Message]:
    if "output" not in value:
        raise ValueError("no output; expected instruction and output (Alpaca)")
    asked = "\n".join(part for key in ("instruction", "input") if (part := _text(value.get(key) or "", key)))
    history = value.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise ValueError("history is not a list of [asked, answered]")
    chat = [_text(text, "history") for pair in history for text in pair]
    turns = [*chat, asked, _text(value["output"], "output")]
    return [*_system(value), *(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(turns))]


def _system(value: Mapping[str, Any]) -> list[Message]:
    text = _text(value.get("system") or "", "system")
    return [Message("system", text)] if text else []


def _role(value: object, key: str) -> Literal["system", "user", "assistant"]:
    if not isinstance(value, str) or value not in _ROLES:
        raise ValueError(f"{key} is {value!r}; expected one of {', '.join(_ROLES)}")
    return _ROLES[value]


def _list(value: object, key: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise ValueError(f"{key} is not a list of objects")
    return value


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{key} is {value!r:.60}; expected text")
    return value


def _to_openai(row: TrainingRow) -> dict[str, Any]:
    return {"messages": [{"role": m.role, "content": m.content} for m in _whole(row)]}


def _to_sharegpt(row: TrainingRow) -> dict[str, Any]:
    return {"conversations": [{"from": _SHAREGPT[m.role], "value": m.content} for m in _whole(row)]}


def _to_alpaca(row: TrainingRow) -> dict[str, Any]:
    """The chat as Alpaca; keys of the extension only where they are needed."""
    turns = _whole(row)
    system = turns[0].content if turns[0].role == "system" else ""
    texts = [turn.content for turn in turns if turn.role != "system"]
    pairs = [list(pair) for pair in zip(texts[::2], texts[1::2], strict=True)]
    written: dict[str, Any] = {"instruction": pairs[-1][0], "input": "", "output": pairs[-1][1]}
    return written | ({"system": system} if system else {}) | ({"history": pairs[:-1]} if pairs[:-1] else {})


def _whole(row: TrainingRow) -> tuple[Message, ...]:
    """Prompt and target as one chat.

    Raises: InputError when its turns do not alternate, since no reader of such a file would take it.
    """
    turns = (*row.messages, Message("assistant", row.target))
    try:
        _chat(turns, row.question_id)
    except ValueError as fault:
        raise InputError(f"row {row.question_id}: {fault}; write it with --format ragtune") from None
    return turns


_WRITERS: Mapping[RowFormat, Callable[[TrainingRow], dict[str, Any]]] = {
    "ragtune": TrainingRow.to_json,
    "openai": _to_openai,
    "alpaca": _to_alpaca,
    "sharegpt": _to_sharegpt,
}
