"""JSON, JSON lines and Jupyter notebooks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ragtune.corpus.readers.parsed import Parsed, fence, stated
from ragtune.corpus.readers.text import read_text
from ragtune.errors import InputError


def read_json(data: bytes) -> Parsed:
    """Records as blocks of `key: value` lines; keys of nested objects are joined by dots, texts of many lines follow.

    Raises: InputError for what is no JSON.
    """
    parsed = read_text(data)
    return Parsed("\n\n".join(_records(_loads(parsed.text, "file"))), metadata=parsed.metadata)


def read_jsonl(data: bytes) -> Parsed:
    """One record a line, each read as `read_json` does.

    Raises: InputError naming the first line that is no JSON.
    """
    parsed = read_text(data)
    lines = ((number, line) for number, line in enumerate(parsed.text.split("\n"), 1) if line.strip())
    records = (record for number, line in lines for record in _records(_loads(line, f"line {number}")))
    return Parsed("\n\n".join(records), metadata=parsed.metadata)


def read_ipynb(data: bytes) -> Parsed:
    """Text cells as they stand and code cells between fences; outputs are left out.

    Raises: InputError for what is no notebook of format 4.
    """
    notebook = _loads(read_text(data).text, "file")
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise InputError("no notebook of format 4 (it has no list of cells); open it in Jupyter and save it again")
    about = notebook.get("metadata", {})
    language = str(about.get("language_info", {}).get("name") or about.get("kernelspec", {}).get("language") or "")
    cells = [_cell(cell, language) for cell in notebook["cells"]]
    return Parsed("\n\n".join(filter(None, cells)), str(about.get("title") or ""), stated(language=language))


def _cell(cell: dict[str, Any], language: str) -> str:
    source = cell.get("source", "")
    text = ("".join(map(str, source)) if isinstance(source, list) else str(source)).strip("\r\n")
    return fence(text, language) if cell.get("cell_type") == "code" and text.strip() else text


def _loads(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON ({error.msg} at column {error.colno})") from None


def _records(value: Any) -> Iterator[str]:
    """A list of objects holds a record each; anything else is one record."""
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for item in value:
            yield from _records(item)
        return
    short, long = [], []
    for key, text in _fields(value, ""):
        if "\n" in text:
            long.append(f"{key}:\n\n{text}" if key else text)
        elif text:
            short.append(f"{key}: {text}" if key else text)
    record = "\n\n".join(["\n".join(short), *long] if short else long)
    if record:
        yield record


def _fields(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _fields(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for number, inner in enumerate(value, 1):
            yield from _fields(inner, f"{path}.{number}")
    else:
        yield path, ", ".join(map(_scalar, value)) if isinstance(value, list) else _scalar(value)


def _scalar(value: Any) -> str:
    return value.strip() if isinstance(value, str) else "" if value is None else json.dumps(value)
