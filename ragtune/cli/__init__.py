"""The command line: one thin command a file, parse -> pipeline -> print; nothing heavy is loaded before its time."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import click

from ragtune import __version__
from ragtune.cli.output import fail
from ragtune.errors import RagtuneError

COMMANDS = (
    "init",
    "import",
    "doctor",
    "models",
    "synth",
    "check",
    "index",
    "search",
    "ask",
    "examples",
    "lint",
    "methods",
    "plan",
    "tune",
    "evaluate",
    "compare",
    "report",
    "merge",
    "export",
)
_MODULES = {"import": "import_data"}  # a module cannot be called like a word of the language


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"ragtune.cli.{_MODULES.get(cmd_name, cmd_name)}").command
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="ragtune")
def cli() -> None:
    """Find out, with evidence, whether to prompt, retrieve, fine-tune or combine, for your documents and tasks.

    \b
    Start with your own folder:      ragtune init DOCS, then ragtune index, ragtune ask "..."
    With questions to judge by:      ragtune tune, ragtune evaluate, ragtune report
    """


def _share_cores() -> None:
    """Let OpenMP threads sleep while they wait if another process is at work here.

    Spinning threads that lose a core to somebody else slow a 2-core machine down tenfold; sleeping ones cost about a
    quarter when nobody else is there, hence the look first. A value set by the user stands.
    """
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
        running = next(int(line.split()[1]) for line in lines if line.startswith("procs_running"))
    except (OSError, StopIteration):
        return
    if running > 1:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> None:
    """Entry point: our errors become one line and an exit code; an interrupt leaves what was finished in place."""
    _share_cores()
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except RagtuneError as error:
        fail(str(error))
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        fail("interrupted; finished work is kept: run the same command again to go on (tune: with --resume)")
        sys.exit(130)
