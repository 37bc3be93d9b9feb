"""Running the command line: in this process, where it is quick, or in one of its own, where it is to be killed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from subprocess import CompletedProcess

import pytest

from ragtune.cli import main, output

Cli = Callable[..., CompletedProcess[str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """`cli("index", "--json")` runs the command and gives exit code, standard output and standard error."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # main() sets it otherwise, for this process and its children

    def run(*arguments: str) -> CompletedProcess[str]:
        output.out.cache_clear()
        output.err.cache_clear()
        monkeypatch.setattr(sys, "argv", ["ragtune", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        code = stopped.value.code
        written = capsys.readouterr()
        return CompletedProcess(arguments, code if isinstance(code, int) else 1, written.out, written.err)

    yield run
    output.out.cache_clear()
    output.err.cache_clear()
