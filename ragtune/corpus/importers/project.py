"""An imported task on the disk: a new project folder, or one more task beside those of a project.

Everything is built in a hidden folder first. Then documents, question file and README are put into place, and
`ragtune.toml`, without which there is no task, comes last; an error takes back what was put there before.
"""

from __future__ import annotations

import glob
import json
import re
import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragtune import store
from ragtune.config import CONFIG_NAME, ProjectConfig, build_config, load_config
from ragtune.corpus.importers.shape import Shape
from ragtune.errors import BusyError, ConfigError, InputError, StoreError

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_TEMPLATE = """\
# What ragtune knows about this project. Every key is optional but name, documents and a task's questions and
# instruction.
name = {name}
documents = "documents"

[index]
embedder = "all-minilm-l6-v2"       # embedded default; or a local folder, or a hub id
passage_tokens = 120                # largest passage, in the embedder's tokens
# exclude = ["drafts/*"]

[retrieval]
k = 3                               # passages given to the model

[generator]
model = "smollm2-135m-instruct"     # embedded default, 135M parameters; or a local folder, or a hub id

# [evaluate]
# margin = 0.02                     # a cheaper arm this close to the best is as good

# [prices]                          # per 1,000 tokens, in one currency of yours
# prompt = 0.05
# output = 0.20

# Tasks. Several instructions compete on the dev questions.
"""
_STAND_IN = """\
# {task}

This task came without documents. This page stands in for them, so that there is something to index. It answers no
question.
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a task goes. `config` and `toml` are those of the project that is there, or None and empty."""

    folder: Path
    task: str
    config: ProjectConfig | None
    toml: str

    @property
    def documents(self) -> Path:
        """The folder of the project's documents; those that are imported go into a folder named after the task."""
        return self.config.documents_path if self.config else self.folder / "documents"


def find_place(folder: Path, task: str) -> Place:
    """The place for a task in `folder`, after making sure that nothing would be overwritten.

    Raises: InputError when the folder holds something else, or the task's files already; ConfigError when its
    ragtune.toml is wrong.
    """
    if not _NAME.fullmatch(task):
        raise InputError(f"task name {task!r} cannot be used; expected small letters, digits, - and _ (set --name)")
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder to make, or one with a {CONFIG_NAME}")
    path = folder / CONFIG_NAME
    if not path.exists():
        if folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise InputError(f"{folder} is not empty and holds no {CONFIG_NAME}; name a new folder, or a project")
        return Place(folder, task, None, "")
    config = load_config(path)
    # Not read_text, which would turn CRLF into LF.
    place = Place(folder, task, config, path.read_bytes().decode("utf-8"))
    if task in config.tasks:
        raise InputError(f"{path} has a task {task!r} already; choose another --name")
    for taken in (place.documents / task, *(folder / "tasks" / name for name in _files(task))):
        if taken.exists():
            raise InputError(f"{taken} exists already; choose another --name, or move it away")
    _with_task(place, _section(task, Shape("short", "token_f1", (), ("?",), 8), False))
    return place


def _files(task: str) -> tuple[str, str]:
    return f"{task}.jsonl", f"{task}.documents.jsonl"


def check_documents_inside(place: Place) -> None:
    """Refuse to write documents where the project only reads them.

    Raises: InputError when the project's documents lie outside its folder.
    """
    if not place.documents.resolve().is_relative_to(place.folder):
        raise InputError(
            f"the documents of {place.folder} lie outside it, in {place.documents}, where import writes nothing; "
            "import into a folder of its own"
        )


@contextmanager
def building(place: Place) -> Iterator[Path]:
    """An empty hidden folder to build in, on the disk of the place; nobody else imports there meanwhile.

    Raises: BusyError when another import is writing there, or was since `find_place`; StoreError when the disk is full
    or read-only.
    """
    target = place.folder / CONFIG_NAME if place.folder.exists() else place.folder
    with store.locked(target):
        if find_place(place.folder, place.task) != place:
            raise BusyError(f"{place.folder} was changed by another process; run the command again")
        for leftover in target.parent.glob(f".{glob.escape(target.name)}.*.building"):
            shutil.rmtree(leftover, ignore_errors=True)
        folder: Path | None = None
        try:
            folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".building", dir=target.parent))
            for name in ("documents", "tasks"):
                (folder / "project" / name).mkdir(parents=True)
            yield folder / "project"
        except OSError as error:
            raise StoreError(
                f"cannot write {place.folder}: {error.strerror or error}; nothing that was there before is changed"
            ) from error
        finally:
            if folder:
                shutil.rmtree(folder, ignore_errors=True)


def publish(
    place: Place, built: Path, rows: Sequence[Mapping[str, Any]], section: tuple[Shape, bool], origin: str
) -> None:
    """Write what is missing in `built` and put it into place; `section` is the task's shape and shared_documents.

    Raises: StoreError when something cannot be written; what was put into place before is taken back.
    """
    store.write_jsonl(built / "tasks" / f"{place.task}.jsonl", rows)
    toml = _with_task(place, _section(place.task, *section))
    documents = built / "documents" / place.task
    if place.config is None and not documents.exists():
        documents.mkdir()
        stand_in = _STAND_IN.format(task=place.task)
        (documents / "about.md").write_text(stand_in, encoding="utf-8")
    if not place.folder.exists():
        store.write_text(built / "README.md", f"# {place.folder.name}\n\n{origin}")
        store.write_text(built / CONFIG_NAME, toml)
        built.rename(place.folder)
    else:
        _put(place, built, toml, origin)


def _put(place: Place, built: Path, toml: str, origin: str) -> None:
    moves = [(built / "documents" / place.task, place.documents / place.task)]
    moves += [(built / "tasks" / name, place.folder / "tasks" / name) for name in _files(place.task)]
    readme = place.folder / "README.md"
    before = readme.read_bytes().decode("utf-8", "replace") if readme.exists() else f"# {place.folder.name}\n"
    with ExitStack() as undo:
        for source, target in moves:
            if source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                source.rename(target)
                undo.callback(_remove, target)
        undo.callback(_restore, readme, readme.read_bytes() if readme.exists() else None)
        store.write_text(readme, f"{before.rstrip()}\n\n{origin}")
        store.write_text(place.folder / CONFIG_NAME, toml)
        undo.pop_all()


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _restore(path: Path, data: bytes | None) -> None:
    if data is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(data)


def _with_task(place: Place, section: str) -> str:
    """The project's ragtune.toml with one more section at its end; all that stood there before stays as it was.

    Raises: ConfigError when a section cannot be added to it.
    """
    path = place.folder / CONFIG_NAME
    if place.config is None:
        name = re.sub(r"[^a-z0-9._-]+", "-", place.folder.name.lower()).strip("-._") or place.task
        before = _TEMPLATE.format(name=_toml(name))
    else:
        newline = "\r\n" if "\r\n" in place.toml else "\n"
        section = f"\n{section}".replace("\n", newline)
        before = place.toml if place.toml.endswith("\n") or not place.toml else place.toml + newline
    text = before + section
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: no [tasks.{place.task}] can be added ({error}); write tasks as sections") from None
    config = build_config(values, path)
    if place.config and config.model_copy(update={"tasks": place.config.tasks}) != place.config:
        raise ConfigError(f"{path}: adding [tasks.{place.task}] would change other settings; write tasks as sections")
    return text


def _section(task: str, shape: Shape, shared: bool) -> str:
    lines = [
        f"[tasks.{task}]",
        f'questions = "tasks/{task}.jsonl"',
        f'format = "{shape.format}"'.ljust(36) + "# short, label, json or text",
        f'metric = "{shape.metric}"',
        "instruction = [",
        *(f"    {_toml(text)}," for text in shape.instructions),
        "]",
    ]
    if shape.labels:
        lines += ["labels = [", *(f"    {_toml(label)}," for label in shape.labels), "]"]
    lines.append(f"max_answer_tokens = {shape.max_answer_tokens}".ljust(36) + "# room for 95 of 100 answers, estimated")
    if shared:
        lines.append("shared_documents = true".ljust(36) + "# the splits share documents, see README.md")
    return "\n".join(lines) + "\n"


def _toml(value: str) -> str:
    # A JSON string is a TOML string, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
