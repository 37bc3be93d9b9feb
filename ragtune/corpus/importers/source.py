"""What every format is read into, and the ledger of all that could not be used as it came."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args

from ragtune.corpus.readers import clean
from ragtune.errors import InputError
from ragtune.types import Split

SPLITS: tuple[Split, ...] = get_args(Split)
Format = Literal["jsonl", "csv", "squad", "beir", "chat", "faq"]
FORMATS: tuple[Format, ...] = get_args(Format)

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class SourceDocument:
    """A text as the source has it. `origin` is where the source took it from, `where` its file and line."""

    id: str
    title: str
    text: str
    where: str
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Quote:
    """Evidence as the source states it: words (`text`), offsets in characters of the document's text, or both.

    Without words `text` is empty, without offsets `start` is -1.
    """

    document_id: str
    text: str
    start: int = -1
    end: int = -1


@dataclass(frozen=True, slots=True)
class SourceQuestion:
    """A question as the source has it. No answers: the documents do not say. `split` is None where none is stated.

    `documents` are the ids of its gold documents; `is_label` says that the source calls its answers labels.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    where: str
    split: Split | None = None
    documents: tuple[str, ...] = ()
    quotes: tuple[Quote, ...] = ()
    is_label: bool = False

    @property
    def gold(self) -> tuple[str, ...]:
        """The ids of all documents that it names, in its order."""
        return tuple(dict.fromkeys((*self.documents, *(quote.document_id for quote in self.quotes))))


@dataclass(frozen=True, slots=True)
class About:
    """What a source says of itself; an empty string or tuple where it says nothing."""

    title: str = ""
    licence: str = ""
    instruction: str = ""
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """A source that was read. `documents` reads from the beginning at each call, so that none need stay in memory."""

    format: Format
    questions: tuple[SourceQuestion, ...]
    documents: Callable[[Ledger], Iterable[SourceDocument]] = lambda _: ()
    about: About = About()


@dataclass(frozen=True, slots=True)
class Count:
    """How often something happened, and the file and line of the first time."""

    what: str
    count: int
    first: str


@dataclass(slots=True)
class Ledger:
    """Rows left out (`skip`) and rows used with a change (`note`), each kind counted, with its first place.

    Broken rows (not even readable) stop the import, unless `skip_broken` lets them be counted, too.
    """

    skip_broken: bool = False
    _kinds: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)

    def skip(self, what: str, where: str) -> None:
        """Count a row that was left out."""
        self._add("skip", what, where)

    def note(self, what: str, where: str) -> None:
        """Count something that was changed or is missing in a row that was used."""
        self._add("note", what, where)

    def broken(self, fault: Broken, where: str) -> None:
        """Count a broken row.

        Raises: InputError naming the place, unless broken rows are to be skipped.
        """
        if not self.skip_broken:
            detail = f" ({fault.detail})" if fault.detail else ""
            raise InputError(f"{where}: {fault}{detail}; mend it, or leave such rows out with --skip-broken") from None
        self._add("skip", str(fault), where)

    def _add(self, kind: str, what: str, where: str) -> None:
        count, first = self._kinds.get((kind, what), (0, where))
        self._kinds[kind, what] = count + 1, first

    @property
    def skipped(self) -> tuple[Count, ...]:
        """The kinds of rows left out, in the order of their first cases."""
        return tuple(Count(what, *counted) for (kind, what), counted in self._kinds.items() if kind == "skip")

    @property
    def notes(self) -> tuple[Count, ...]:
        """The kinds of changes, in the order of their first cases."""
        return tuple(Count(what, *counted) for (kind, what), counted in self._kinds.items() if kind == "note")


class Unusable(Exception):
    """A row that is sound and of no use; the message is the kind under which it is counted."""


class Broken(Exception):
    """A row that cannot be read. The message is its kind; `detail` what is wrong with this one."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind)
        self.detail = detail


def convert_rows(
    rows: Iterable[tuple[str, Item]], convert: Callable[[Item, str], Made], ledger: Ledger
) -> Iterator[Made]:
    """What `convert` makes of each (place, row); rows that it refuses go into the ledger."""
    for where, row in rows:
        try:
            yield convert(row, where)
        except Unusable as reason:
            ledger.skip(str(reason), where)
        except Broken as fault:
            ledger.broken(fault, where)


def json_lines(path: Path, ledger: Ledger) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place and the object of each line of a JSONL file, one line in memory at a time; blank lines are passed over.

    Raises: InputError when the file cannot be read, or naming the line that is no JSON object.
    """
    return convert_rows(_lines(path), lambda line, where: (where, _object(line)), ledger)


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield f"{path}, line {number}", line
    except OSError as error:
        raise cannot_read(path, error) from None


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Broken("not valid JSON", str(error)) from None
    if not isinstance(value, dict):
        raise Broken("not a JSON object", f"a {type(value).__name__}")
    return value


def read_json_file(path: Path) -> Any:
    """The one JSON value in a file.

    Raises: InputError naming file and line.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise cannot_read(path, error) from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}); mend the file") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); mend the file") from None


def cannot_read(path: Path, error: OSError) -> InputError:
    """The error for a file that the system refuses."""
    return InputError(f"{path} cannot be read ({error.strerror or error}); name a file or folder that can")


def one_line(text: str) -> str:
    """The text with clean characters and single spaces."""
    return " ".join(clean(text).split())


def broken_type(key: str, value: object, expected: str) -> NoReturn:
    """Refuse a value of the wrong type.

    Raises: Broken.
    """
    raise Broken(f"{key} is not {expected}", f"a {type(value).__name__}")
