"""A folder of files -> documents, and a list of the files that could not be used, each with the reason.

result = load_documents(Path("documents"), exclude=["drafts"])
for file in result.skipped:
    print(file.path, file.reason)

for document in stream_documents(Path("documents")):   # one after the other, in bounded memory
    ...
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from ragtune.corpus.markdown import first_heading
from ragtune.corpus.readers import PLAIN, READERS, Parsed, tidy
from ragtune.corpus.sandbox import Limits, Sandbox
from ragtune.errors import InputError
from ragtune.store import sha256_of_text
from ragtune.types import Document

_HARMLESS = ("unknown type", "symlink to ")
"""Beginnings of reasons that `strict` lets pass: nothing is lost, or it was never meant to be read."""

_WINDOW = 32
"""Files a processor that are held at a time."""

_LARGE = 1_000_000
"""Bytes from which on plain text, too, is read in a sandbox."""

_DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was not loaded. `path` is relative to the folder, with forward slashes."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a folder holds: `documents` sorted by id, `skipped` sorted by path."""

    documents: tuple[Document, ...]
    skipped: tuple[Skipped, ...]

    @property
    def formats(self) -> Mapping[str, int]:
        """How many documents there are of each suffix (in small letters), the most frequent first."""
        return dict(Counter(PurePosixPath(d.id).suffix.lower() for d in self.documents).most_common())

    @property
    def summary(self) -> str:
        """What was read and how much was not, in one line."""
        read = ", ".join(f"{count} {suffix}" for suffix, count in self.formats.items())
        return read + (f"; left out {len(self.skipped)}" if self.skipped else "")

    @property
    def warnings(self) -> tuple[Skipped, ...]:
        """Documents of which a part could not be read, and which part that is."""
        return tuple(Skipped(d.id, d.metadata["warning"]) for d in self.documents if "warning" in d.metadata)


def load_documents(
    root: Path,
    *,
    strict: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    limits: Limits = _DEFAULT_LIMITS,
) -> LoadResult:
    """Read every file below `root` that a reader knows; a document's id is its path below `root`.

    `include` and `exclude` are shell patterns on that path (`*` also crosses `/`; the name of a folder stands for all
    that is in it). Hidden files are passed over. A document's `sha256` covers its title and text. Symlinks are
    followed inside `root` only, and each file is loaded once.

    Raises: InputError when `root` is no folder, when nothing can be loaded, or, if `strict`, when any file of a known
    type is skipped.
    """
    documents: list[Document] = []
    skipped: list[Skipped] = []
    for found in stream_documents(root, include=include, exclude=exclude, limits=limits):
        (documents if isinstance(found, Document) else skipped).append(found)  # type: ignore[arg-type]
    serious = [file for file in skipped if not file.reason.startswith(_HARMLESS)]
    if strict and serious:
        raise InputError(f"{root}: {_summary(serious)}; mend or exclude them, or load without strict")
    if not documents:
        raise InputError(f"{root} holds no document that can be loaded ({_summary(skipped)}); expected {_types()}")
    return LoadResult(tuple(documents), tuple(skipped))


def stream_documents(
    root: Path, *, include: Sequence[str] = (), exclude: Sequence[str] = (), limits: Limits = _DEFAULT_LIMITS
) -> Iterator[Document | Skipped]:
    """What `load_documents` gives, file by file in the order of their paths, read on all processors.

    At most a few dozen files a processor are held at a time, however many there are.

    Raises: InputError when `root` is no folder.
    """
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise InputError(f"{root} {found}; expected a folder of documents")
    files = [file for file in sorted(_find(root)) if _is_wanted(file[0], include, exclude)]
    threads = os.cpu_count() or 1
    waiting: deque[Future[Document | Skipped]] = deque()
    with ThreadPoolExecutor(threads) as pool, Sandbox(limits) as sandbox:
        try:
            for name, problem in files:
                waiting.append(pool.submit(_load, root, name, problem, sandbox))
                if len(waiting) >= _WINDOW * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _load(root: Path, name: str, problem: str, sandbox: Sandbox) -> Document | Skipped:
    try:
        if problem:
            raise InputError(problem)
        return _read(root, name, sandbox)
    except InputError as refusal:
        return Skipped(name, str(refusal))
    except OSError as error:
        return Skipped(name, f"cannot be read ({error.strerror})")


def _is_wanted(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    return (not include or _matches(name, include)) and not _matches(name, exclude)


def _find(root: Path) -> Iterator[tuple[str, str]]:
    """Each file's path below `root`, with what is wrong with it or an empty string. Links come after real entries."""
    top = Path(os.path.realpath(root))
    plain, links = deque([root]), deque[Path]()
    seen: set[Path] = set()
    while plain or links:
        is_link = not plain
        path = (plain or links).popleft()
        name = _printable(path.relative_to(root).as_posix())
        real = Path(os.path.realpath(path))
        try:
            if not real.is_relative_to(top):
                yield name, "a symlink out of the folder, not followed"
            elif real in seen:
                if is_link:
                    yield name, f"symlink to {_printable(real.relative_to(top).as_posix())}, loaded by that name"
            elif path.is_dir():
                seen.add(real)
                for child in sorted(path.iterdir()):
                    if not child.name.startswith((".", "~$")):  # `~$` marks the lock file of an open Word document.
                        (links if child.is_symlink() else plain).append(child)
            elif path.is_file():
                seen.add(real)
                yield name, "" if name == path.relative_to(root).as_posix() else "its name is not valid UTF-8"
            else:
                yield name, "a broken symlink" if is_link else "not a regular file"
        except OSError as error:
            yield name, f"cannot be read ({error.strerror})"


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    # The added slash lets `**/x.md` match at the top, too.
    candidates = [name, f"/{name}", *(parent.as_posix() for parent in PurePosixPath(name).parents)]
    return any(fnmatchcase(candidate, pattern.rstrip("/")) for pattern in patterns for candidate in candidates)


def _read(root: Path, name: str, sandbox: Sandbox) -> Document:
    path = root / name
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise InputError(f"unknown type {suffix or '(no suffix)'}")
    size, limit = path.stat().st_size, sandbox.limits.max_bytes
    if size == 0:
        raise InputError("empty")
    if size > limit:
        raise InputError(f"{size} bytes, more than the limit of {limit}")
    parsed = (suffix in PLAIN and size < _LARGE and _read_plain(path)) or sandbox.read(path)
    title = first_heading(parsed.text) or parsed.title or path.stem
    return Document(name, parsed.text, title, sha256_of_text(title, parsed.text), parsed.metadata)


def _read_plain(path: Path) -> Parsed | None:
    """A small file in UTF-8, which needs no parser; None for any other."""
    data = path.read_bytes()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return tidy(READERS[path.suffix.lower()](data))


def _summary(files: Sequence[Skipped]) -> str:
    shown = "; ".join(f"{file.path}: {file.reason}" for file in files[:5])
    return f"{len(files)} skipped" + (f": {shown}" if shown else "") + ("; ..." if len(files) > 5 else "")


def _types() -> str:
    return "files of type " + " ".join(READERS)
