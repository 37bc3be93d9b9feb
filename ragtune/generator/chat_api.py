"""What OpenAI-compatible chat endpoints say: answers, errors, when to come back, and labels within sentences."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from pydantic import BaseModel, Field

_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 30.0


class _Message(BaseModel):
    content: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class Completion(BaseModel):
    """A whole answer. Token counts are demanded: without them arms cannot be compared by cost."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage


class _Piece(BaseModel):
    delta: _Message = _Message()
    finish_reason: str | None = None


class Chunk(BaseModel):
    """One event of a streamed answer."""

    choices: list[_Piece] = Field(default_factory=list)
    usage: _Usage | None = None
    error: Any = None


def backoff(tries: int, wait_s: float = 0.0) -> float:
    """Seconds before try number `tries + 1`: what the server asks for, and a random part of a doubling span.

    "Full jitter" (Brooker 2015, Exponential Backoff And Jitter): uniform over (0, min(30, 0.5 * 2^(tries - 1))), so
    that requests that failed together don't come again together.
    """
    return wait_s + random.uniform(0, min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** (tries - 1)))


def retry_after(header: str) -> float:
    """Seconds that a Retry-After header asks for, given in seconds or as a date (RFC 9110, 10.2.3); 0 for neither."""
    if re.fullmatch(r"\s*\d+(\.\d+)?\s*", header):
        return float(header)
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def match_label(text: str, labels: Sequence[str]) -> str:
    """The label that a text names, else the text as it is.

    It is the label itself, the label in other case, or holds exactly one label as whole words in any case. Of labels
    within each other (`retrieval`, `retrieval+tuning`) the longest counts.
    """
    said = " ".join(text.split())
    if said in labels:
        return said
    same = [label for label in labels if label.lower() == said.lower()]
    longest_first = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
    held = {m.lower() for m in re.findall(rf"(?<!\w)(?:{longest_first})(?!\w)", said, re.IGNORECASE)}
    found = same or [label for label in labels if label.lower() in held]
    return found[0] if len(found) == 1 else text


def complaint(text: str) -> str:
    """The sentence in a server's error: {"error": {"message": ...}}, {"detail": ...}, {"message": ...} or as it is."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    while isinstance(value, Mapping):
        inner = next((value[name] for name in ("error", "detail", "message") if value.get(name)), None)
        if inner is None:
            break
        value = inner
    return str(value) or "no reason given"
