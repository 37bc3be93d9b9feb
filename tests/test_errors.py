"""The tree in the docstring of `errors` is the tree of the classes."""

from __future__ import annotations

import inspect
import re

from ragtune import errors
from ragtune.errors import RagtuneError

CLASSES: dict[str, type[RagtuneError]] = dict(
    inspect.getmembers(errors, lambda value: inspect.isclass(value) and issubclass(value, Exception))
)


def drawn_tree() -> dict[str, str | None]:
    """Class -> the class that it hangs from, read off the drawing by its depth."""
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"((?:[│├└─ ]{4})*)([A-Z]\w+Error)\b", line)
        if match:
            depth = len(match[1]) // 4
            path = [*path[:depth], match[2]]
            parents[match[2]] = path[depth - 1] if depth else None
    return parents


def test_the_drawing_shows_every_class_below_its_parent() -> None:
    expected = {name: None if cls is RagtuneError else cls.__bases__[0].__name__ for name, cls in CLASSES.items()}
    assert drawn_tree() == expected
    assert len(expected) == 10


def test_the_drawing_says_what_the_classes_say() -> None:
    drawing = errors.__doc__ or ""
    for name, cls in CLASSES.items():
        if cls is not RagtuneError:
            first = (cls.__doc__ or "").splitlines()[0].rstrip(".").lower().removeprefix("training ")
            line = next(line for line in drawing.splitlines() if re.search(rf"\b{name}\b", line))
            assert line.lower().split(name.lower(), 1)[1].strip().startswith(first)


def test_every_error_is_one_of_ours_with_an_exit_code() -> None:
    for cls in CLASSES.values():
        assert issubclass(cls, RagtuneError)
        assert len(cls.__bases__) == 1
    codes = {name: cls.exit_code for name, cls in CLASSES.items()}
    assert {name for name, code in codes.items() if code == 2} == {"ConfigError", "InputError", "QuestionError"}
    assert set(codes.values()) == {1, 2}
