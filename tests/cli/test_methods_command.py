"""`ragtune methods`: every method is listed, for people and for machines, and no model library is loaded for it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from subprocess import CompletedProcess

from ragtune.generator.methods import METHODS

Cli = Callable[..., CompletedProcess[str]]


def test_every_method_is_listed(cli: Cli) -> None:
    shown = cli("methods").stdout
    starts = [line.split()[0] for line in shown.splitlines() if line[:1].strip()]
    assert [name for name in starts if name in METHODS] == list(METHODS)


def test_for_machines(cli: Cli) -> None:
    listed = json.loads(cli("methods", "--json").stdout)
    assert [method["name"] for method in listed] == list(METHODS)
    (qlora,) = (method for method in listed if method["name"] == "qlora")
    assert (qlora["nf4"], qlora["weight_bytes"], qlora["learning_rate"]) == (True, 0.516, 1e-3)


def test_it_is_light() -> None:
    code = "import sys; from ragtune.cli import cli; cli(['methods'], standalone_mode=False)"
    code += "; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.splitlines()[-1] == "False"
