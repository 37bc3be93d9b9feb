"""What can go wrong, in one tree. Each message says what came, what was expected and what to do.

RagtuneError
├── ConfigError          a setting that is unknown, missing or out of range
├── InputError           documents, questions or flags that cannot be used
│   └── QuestionError    a broken line in a question file (file and line number in the message)
├── ModelError           a model that is missing, incomplete or not what it claims to be
│   └── UnfinishedError  some prompts could not be answered
├── StoreError           a folder of ours that is missing, damaged or of another version
│   ├── MismatchError    made with another embedder, base model or index than the one at hand
│   └── BusyError        another process is writing the same folder
└── TrainingError        rows that lint refuses, or a run that cannot go on
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ragtune.types import Reply


class RagtuneError(Exception):
    """Base of all errors that ragtune raises on purpose; the command line prints it as one line."""

    exit_code = 1


class ConfigError(RagtuneError):
    """A setting that is unknown, missing or out of range."""

    exit_code = 2


class InputError(RagtuneError):
    """Documents, questions or flags that cannot be used."""

    exit_code = 2


class QuestionError(InputError):
    """A broken line in a question file."""


class ModelError(RagtuneError):
    """A model that is missing, incomplete or not what it claims to be."""


class UnfinishedError(ModelError):
    """Some prompts could not be answered.

    `replies` are the answers that came, by the prompt's place.
    """

    def __init__(self, message: str, replies: Mapping[int, Reply]) -> None:
        super().__init__(message)
        self.replies = replies


class StoreError(RagtuneError):
    """A folder of ours that is missing, damaged or of another version."""


class MismatchError(StoreError):
    """Made with another embedder, base model or index than the one at hand."""


class BusyError(StoreError):
    """Another process is writing the same folder."""


class TrainingError(RagtuneError):
    """Training rows that lint refuses, or a run that cannot go on."""
