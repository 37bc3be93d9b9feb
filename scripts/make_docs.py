"""`python scripts/make_docs.py` writes docs/configuration.md and docs/cli.md; `--check` only compares.

The pages are made from the models in `ragtune.config` and from the help of every command. With `--check` nothing is
written, and the exit code is 1 when a page is not what would be written.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner
from pydantic import BaseModel

from ragtune.cli import cli
from ragtune.config import OtherGeneratorConfig, ProjectConfig, TaskConfig

DOCS = Path(__file__).resolve().parents[1] / "docs"
HELP_WIDTH = 100

CONFIGURATION = """\
# Configuration

<!-- Made by scripts/make_docs.py from ragtune/config.py; edit that file instead. -->

A project is described by one file, `ragtune.toml`. `ragtune init DOCS` writes a commented one. Commands look for it in
the current folder; `--config` names another file, or the folder that holds it.

- `documents` and the tasks' `questions` are relative to the file. What ragtune writes goes below the folder it is run
  in, and a model that is named by its folder is looked for from there, too.
- An unknown key is an error, and so is a value of the wrong kind. The message names the key.
- Some keys have a flag on the command line. The flag wins over the file; [the commands](cli.md) list their flags.
- A key without a default must be given. "Not set" means that the key can be left out and has no value then.

Two environment variables matter. `XDG_CACHE_HOME` moves the folder in which prepared models lie, which is
`~/.cache/ragtune/models` without it. `NO_COLOR` turns colours off.
"""

CLI = """\
# Commands

<!-- Made by scripts/make_docs.py from the help of each command; edit ragtune/cli instead. -->

Results go to standard output, progress and warnings to standard error. `--json` prints one JSON object.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | it failed; `check`, `lint` or `doctor` found a fault; `--fail-on-regression` found a loss; the reader left |
| 2 | a flag, a setting, a document or a question file cannot be used |
| 130 | interrupted |

An error is one line that says what came, what was expected and what to do.
"""


def pages() -> dict[str, str]:
    """The name of each generated page below docs/, and its text."""
    return {"configuration.md": configuration_page(), "cli.md": cli_page()}


def configuration_page() -> str:
    """One table of keys for the top level and one for each section."""
    parts = [CONFIGURATION, "## Top level\n", _table(ProjectConfig)]
    models: list[type[BaseModel]] = [*_sections(), OtherGeneratorConfig, TaskConfig]
    for model in models:
        heading, _, meaning = (inspect.getdoc(model) or "").partition(": ")
        parts += [f"## {heading}\n", meaning[:1].upper() + meaning[1:] + "\n", _table(model)]
    return "\n".join(parts)


def _sections() -> list[type[BaseModel]]:
    found = (field.annotation for field in ProjectConfig.model_fields.values())
    return [model for model in found if isinstance(model, type) and issubclass(model, BaseModel)]


def _table(model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, item in schema["properties"].items():
        field = model.model_fields[key]
        is_section = "$ref" in json.dumps(item)
        if is_section or field.exclude:
            continue
        default = "required" if key in schema.get("required", ()) else _default(item.get("default"))
        lines.append(f"| `{key}` | {_values(item)} | {default} | {item.get('description', '')} |")
    return "\n".join(lines) + "\n"


def _default(value: Any) -> str:
    return "not set" if value is None else f"`{json.dumps(value)}`"


def _values(item: dict[str, Any]) -> str:
    """What a key may hold, in words, from its JSON schema."""
    if "enum" in item:
        return ", ".join(f"`{value}`" for value in item["enum"])
    if "anyOf" in item:
        return " or ".join(_values(part) for part in item["anyOf"] if part.get("type") != "null")
    if item["type"] == "array":
        return f"list of {_values(item['items'])}" + ("" if "enum" in item["items"] else "s")
    if item["type"] == "object":
        return "table"
    kind = {"string": "string", "integer": "whole number", "number": "number", "boolean": "true or false"}[item["type"]]
    return ", ".join([kind, *_bounds(item)])


def _bounds(item: dict[str, Any]) -> Iterator[str]:
    if "minimum" in item and "maximum" in item:
        yield f"{item['minimum']} to {item['maximum']}"
        return
    for key, word in (("minimum", "from"), ("exclusiveMinimum", "above"), ("exclusiveMaximum", "below")):
        if key in item:
            yield f"{word} {item[key]}"


def cli_page() -> str:
    """The help of every command, in the order in which `ragtune --help` lists them."""
    blocks = [f"## `{' '.join(path)}`\n\n```text\n{_help(path[1:])}```\n" for path in _commands(cli, ("ragtune",))]
    return "\n".join([CLI, *blocks])


def _commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None:
                yield from _commands(child, (*path, name))


def _help(path: tuple[str, ...]) -> str:
    result = CliRunner().invoke(
        cli, [*path, "--help"], prog_name="ragtune", terminal_width=HELP_WIDTH, catch_exceptions=False
    )
    return result.output


def stale(docs: Path) -> list[str]:
    """The pages in a folder that differ from what would be written, or are missing."""
    return [
        name
        for name, text in pages().items()
        if not (docs / name).exists() or (docs / name).read_text(encoding="utf-8") != text
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a page is stale")
    if parser.parse_args(arguments).check:
        old = stale(DOCS)
        for name in old:
            print(f"docs/{name} is not up to date; run: python scripts/make_docs.py", file=sys.stderr)
        return 1 if old else 0
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
        print(f"docs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
