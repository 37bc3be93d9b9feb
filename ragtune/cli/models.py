"""`ragtune models`: which models can be used, and making them ready."""

from __future__ import annotations

from dataclasses import asdict

import click

from ragtune.cli.output import json_option, out, print_json, say


@click.group("models")
def command() -> None:
    """List, show and prepare models.

    A model is an embedded default (a Python package, no hub needed), a local folder, or a hub id owner/name.

    \b
    Example:
      ragtune models list
    """


@command.command("list")
@json_option
def list_models(as_json: bool) -> None:
    """List the embedded models and whether they are ready.

    \b
    Example:
      ragtune models list --json
    """
    from ragtune.generator import models

    found = [models.status(name) for name in models.EMBEDDED]
    if as_json:
        print_json([{**asdict(s), "folder": str(s.folder) if s.folder else None} for s in found])
        return
    for status in found:
        out().print(f"{status.name:24} {status.kind:10} {status.licence:12} {status.state}", markup=False)
        if status.state == "not installed":
            out().print(f"  install with: {status.install}", markup=False)


@command.command("show")
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show one model: where it lies, its licence, its fingerprint.

    \b
    Example:
      ragtune models show smollm2-135m-instruct
    """
    from ragtune.generator import models

    status = models.status(name)
    value = {**asdict(status), "folder": str(status.folder) if status.folder else None}
    value["fingerprint"] = models.fingerprint(status.folder) if status.folder else None
    if as_json:
        print_json(value)
        return
    for key, item in value.items():
        out().print(f"{key:12} {item if item is not None else '-'}", markup=False)


@command.command("prepare")
@click.argument("names", nargs=-1)
def prepare(names: tuple[str, ...]) -> None:
    """Make models ready (all embedded ones when none is named) and print their folders.

    The embedded generator is dequantised once into the user's cache.

    \b
    Example:
      ragtune models prepare
    """
    from ragtune.generator import models

    for name in names or tuple(models.EMBEDDED):
        out().print(f"{name}: {models.resolve(name, say)}", markup=False)
