"""Parsers in processes of their own, with limits: a hostile file costs itself, never the others or the program.

    with Sandbox(Limits()) as sandbox:
        parsed = sandbox.read(Path("report.pdf"))   # InputError when it cannot be read; threads may call it together

A worker reads one file after the other. Requests and answers are lines of JSON on its pipes (never pickle: a worker
that was taken over must not get code to run here). It loads no torch, sees no secret in its environment, may write no
file, and has a limit on memory and, a file, on processor time. The parent watches the clock, ten times that time. A
worker that dies or overruns costs the file that it was reading, and the next file gets a new one.

What holds where: on Linux everything. macOS does not enforce the limit on memory; Windows has no such limits at all.
There the clock still holds, and so do the readers' own limits on sizes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ragtune.corpus.readers import Parsed, read_file
from ragtune.errors import InputError

if TYPE_CHECKING:
    from ragtune.config import IndexConfig

_PATIENCE = 10
_MAX_ANSWER = 200_000_000
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "HOME", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "TEMP")
_ROOT = str(Path(__file__).parents[2])
# `-P`: nothing is imported from the working folder, which may hold anything; `-B`: nothing is written.
WORKER = (sys.executable, "-P", "-B", "-c", "import sys; sys.path.append(sys.argv.pop(1))\n"
          "from ragtune.corpus.sandbox import main; main()", _ROOT)  # fmt: skip
"""The command of a worker."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one file may take: its size, processor time, and memory (of a worker, its libraries included)."""

    max_bytes: int = 20_000_000
    seconds: int = 30
    memory_mb: int = 1024

    @classmethod
    def from_config(cls, config: IndexConfig) -> Limits:
        """The limits of the settings in `[index]`."""
        return cls(config.max_file_mb * 1_000_000, config.file_seconds, config.file_memory_mb)


@dataclass
class Sandbox:
    """Workers at work, started when they are needed and as many as read at once. Use it as a context manager."""

    limits: Limits
    command: Sequence[str] = WORKER
    _idle: queue.SimpleQueue[_Worker] = field(default_factory=queue.SimpleQueue)
    _alive: set[_Worker] = field(default_factory=set)
    _closed: bool = False

    def read(self, path: Path) -> Parsed:
        """Read a file of a known type.

        Raises: InputError with the reason when it cannot be read within the limits.
        """
        worker = self._take()
        answer: dict[str, Any] = {"last": True}
        try:
            answer = worker.ask(path)
        finally:
            if answer["last"]:
                self._alive.discard(worker)
                worker.stop()
            else:
                self._idle.put(worker)
        if "refused" in answer:
            raise InputError(answer["refused"])
        return Parsed(answer["text"], answer["title"], answer["metadata"])

    def _take(self) -> _Worker:
        if self._closed:
            raise InputError("not read: the sandbox is closed")
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            worker = _Worker(self.limits, self.command)
            self._alive.add(worker)
            return worker

    def __enter__(self) -> Sandbox:
        """Itself; no worker runs yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Stop the workers, the busy ones, too."""
        self._closed = True
        while self._alive:
            self._alive.pop().stop()


class _Worker:
    """One process that reads files for us."""

    def __init__(self, limits: Limits, command: Sequence[str]) -> None:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        self.limits = limits
        self.process = subprocess.Popen(
            [*command, json.dumps(asdict(limits))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self.requests, self.answers = cast(BinaryIO, self.process.stdin), cast(BinaryIO, self.process.stdout)

    def ask(self, path: Path) -> dict[str, Any]:
        """The worker's answer about a file.

        Raises: InputError when it dies, or is killed for taking too long.
        """
        late = threading.Event()

        def kill() -> None:
            late.set()
            self.process.kill()

        clock = threading.Timer(_PATIENCE * self.limits.seconds, kill)
        clock.daemon = True
        clock.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # It is dead, and nothing can be read from it.
                self.requests.write(json.dumps(str(path)).encode() + b"\n")
                self.requests.flush()
            line = self.answers.readline(_MAX_ANSWER)
        finally:
            clock.cancel()
        if not line.endswith(b"\n"):
            raise InputError(self._cause(late.is_set()))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _cause(self, late: bool) -> str:
        """Why it died."""
        self.process.kill()  # It is dead, unless its answer had no end.
        code = self.process.wait()
        if late:
            return f"took more than {_PATIENCE * self.limits.seconds} s to read"
        if code == -getattr(signal, "SIGXCPU", 0):
            return f"took more than {self.limits.seconds} s of processor time to read"
        name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return f"its parser crashed ({name}), as it may for want of memory (the limit is {self.limits.memory_mb} MB)"

    def stop(self) -> None:
        """End the process at once; it has nothing to lose."""
        self.process.kill()
        for pipe in (self.requests, self.answers):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self.process.wait()


# --- the worker's side -----------------------------------------------------------------------------------------------


def main() -> None:
    """Answer requests until there are no more. `sys.argv[1]` holds the limits as JSON."""
    limits = Limits(**json.loads(sys.argv[1]))
    _limit_process(limits)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a parser prints must not stand among the answers
    for request in requests:
        _limit_time(limits.seconds)
        _send(answers, _answer(Path(json.loads(request)), limits))


def _answer(path: Path, limits: Limits) -> dict[str, Any]:
    """What the file holds or why it is refused. `last`: this worker has grown too much to read another file."""
    try:
        answer: dict[str, Any] = asdict(read_file(path, limits.max_bytes))
    except InputError as refusal:
        answer = {"refused": str(refusal)}
    except MemoryError:
        return {"refused": f"needs more than {limits.memory_mb} MB of memory to read", "last": True}
    except Exception as error:
        # The border to the parsers: a hostile or damaged file can make them raise anything. Nothing is hidden: the
        # file and the error stand in the result.
        message = " ".join(str(error).split())[:200]
        answer = {"refused": f"cannot be read ({type(error).__name__}: {message})"}
    return {**answer, "last": 2 * _address_space() > limits.memory_mb * 2**20}


def _send(answers: BinaryIO, answer: dict[str, Any]) -> None:
    # Half a UTF-16 pair, as in a file's name, becomes its JSON escape.
    answers.write(json.dumps(answer, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
    answers.flush()


def _limit_process(limits: Limits) -> None:
    with contextlib.suppress(ImportError):
        import resource

        size = limits.memory_mb * 2**20
        with contextlib.suppress(ValueError, OSError):  # macOS refuses it.
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_time(seconds: int) -> None:
    """Let the kernel end this process after that much processor time from now on."""
    with contextlib.suppress(ImportError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + seconds), hard))


def _address_space() -> int:
    """Bytes of address space in use; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
