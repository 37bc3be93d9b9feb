"""A folder of files -> documents, and a list of the files that could not be used, each with the reason.

result = load_documents(Path("documents"), exclude=["drafts"])
for file in result.skipped:
    print(file.path, file.reason)
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from ragtune.corpus.markdown import first_heading
from ragtune.corpus.readers import READERS, clean
from ragtune.errors import InputError
from ragtune.store import sha256_of_text
from ragtune.types import Document

_MAX_LINE = 1_000_000
_HARMLESS = ("unknown type", "symlink to ")
"""Beginnings of reasons that `strict` lets pass: nothing is lost, or it was never meant to be read."""


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


def load_documents(
    root: Path,
    *,
    strict: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    max_bytes: int = 20_000_000,
) -> LoadResult:
    """Read every file below `root` that a reader knows; a document's id is its path below `root`.

    `include` and `exclude` are shell patterns on that path (`*` also crosses `/`; the name of a folder stands for all
    that is in it). Hidden files are passed over. A document's `sha256` covers its title and text. Symlinks are
    followed inside `root` only, and each file is loaded once.

    Raises: InputError when `root` is no folder, when nothing can be loaded, or, if `strict`, when any file of a known
    type is skipped.
    """
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise InputError(f"{root} {found}; expected a folder of documents")
    documents: list[Document] = []
    skipped: list[Skipped] = []
    for name, problem in sorted(_find(root)):
        if (include and not _matches(name, include)) or _matches(name, exclude):
            continue
        try:
            if problem:
                raise InputError(problem)
            documents.append(_read(root, name, max_bytes))
        except InputError as refusal:
            skipped.append(Skipped(name, str(refusal)))
        except Exception as error:
            # The border to the parsers: a hostile or damaged file can make them raise anything, and one bad file must
            # not lose the others. Nothing is hidden: the file and the error stand in the result.
            message = " ".join(str(error).split())[:200]
            skipped.append(Skipped(name, f"cannot be read ({type(error).__name__}: {message})"))
    serious = [file for file in skipped if not file.reason.startswith(_HARMLESS)]
    if strict and serious:
        raise InputError(f"{root}: {_summary(serious)}; mend or exclude them, or load without strict")
    if not documents:
        raise InputError(f"{root} holds no document that can be loaded ({_summary(skipped)}); expected {_types()}")
    return LoadResult(tuple(documents), tuple(skipped))


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


def _read(root: Path, name: str, max_bytes: int) -> Document:
    path = root / name
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise InputError(f"unknown type {suffix or '(no suffix)'}")
    size = path.stat().st_size
    if size == 0:
        raise InputError("empty")
    if size > max_bytes:
        raise InputError(f"{size} bytes, more than the limit of {max_bytes}")
    parsed = READERS[suffix](path.read_bytes())
    text = clean(parsed.text)
    if not text.strip():
        raise InputError("empty (nothing but whitespace)")
    longest = max(map(len, text.split("\n")))
    if longest > _MAX_LINE:
        raise InputError(f"a line of {longest} characters, more than the limit of {_MAX_LINE}")
    title = first_heading(text) or clean(parsed.title) or path.stem
    return Document(name, text, title, sha256_of_text(title, text), parsed.metadata)


def _summary(files: Sequence[Skipped]) -> str:
    shown = "; ".join(f"{file.path}: {file.reason}" for file in files[:5])
    return f"{len(files)} skipped" + (f": {shown}" if shown else "") + ("; ..." if len(files) > 5 else "")


def _types() -> str:
    return "files of type " + " ".join(READERS)
