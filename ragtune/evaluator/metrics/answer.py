"""Metrics of one answer text against the accepted answers; all in [0, 1], the best over the accepted answers.

Each takes (prediction, answers) and raises InputError when `answers` is empty.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ragtune.errors import InputError

Metric = Callable[[str, Sequence[str]], float]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and spare white space.

    Source: Rajpurkar et al. 2016, SQuAD, official evaluate-v1.1.py (v2.0 is the same). Punctuation is removed, not
    replaced by a space: "1.50" becomes "150" and "well-known" becomes "wellknown".
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 when the normalised texts are equal (SQuAD)."""
    return _best(prediction, answers, lambda p, a: float(normalise(p) == normalise(a)))


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """F1 of the bags of normalised tokens; without any token on one side, 1.0 only if both have none (SQuAD v2.0)."""
    return _best(prediction, answers, lambda p, a: _token_f1(normalise(p).split(), normalise(a).split()))


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of normalised tokens.

    Source: Lin 2004, ROUGE, section 3.1 (sentence level) with beta = 1. Tokens are those of `normalise`, without
    stemming; the `rouge_score` package keeps articles and splits at punctuation, so its numbers can differ a little.
    """
    return _best(prediction, answers, lambda p, a: _rouge_l(normalise(p).split(), normalise(a).split()))


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """1.0 when the labels are equal, apart from letter case and surrounding white space."""
    return _best(prediction, answers, lambda p, a: float(_fold(p) == _fold(a)))


def field_match(prediction: str, answers: Sequence[str]) -> float:
    """Share of the fields of a JSON record that are right, out of all that are expected or given.

    The first JSON object in the prediction counts, text around it is ignored; without one the score is 0.0. Texts are
    equal apart from letter case and surrounding white space; 12 equals 12.0, but neither "12" nor true equals 1.

    Raises: InputError when an accepted answer is not a JSON object.
    """
    return _best(prediction, answers, lambda p, a: _field_share(_first_object(p), _expected_object(a)))


def valid_json(prediction: str, answers: Sequence[str] = ()) -> float:
    """1.0 when the whole prediction is one JSON object (RFC 8259: no NaN) with nothing around it."""
    return float(isinstance(_parse(prediction), dict))


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
    "accuracy": accuracy,
    "field_match": field_match,
    "valid_json": valid_json,
}


def _best(prediction: str, answers: Sequence[str], metric: Callable[[str, str], float]) -> float:
    if not answers:
        raise InputError("no accepted answer to compare with; score unanswerable questions by refusal instead")
    return max(metric(prediction, answer) for answer in answers)


def _fold(text: str) -> str:
    return text.strip().casefold()


def _token_f1(predicted: list[str], gold: list[str]) -> float:
    if not predicted or not gold:
        return float(predicted == gold)
    return _f1((Counter(predicted) & Counter(gold)).total(), len(predicted), len(gold))


def _rouge_l(predicted: list[str], gold: list[str]) -> float:
    if not predicted or not gold:
        return float(predicted == gold)
    return _f1(_common_subsequence(predicted, gold), len(predicted), len(gold))


def _f1(shared: int, predicted: int, gold: int) -> float:
    """Harmonic mean of shared/predicted and shared/gold."""
    return 2 * shared / (predicted + gold)


def _common_subsequence(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, in O(len(a) * len(b)) steps."""
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            above = row[j]
            row[j] = diagonal + 1 if word == other else max(above, row[j - 1])
            diagonal = above
    return row[-1]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _parse(text: str) -> Any:
    """The JSON value that the whole text is; None when it is none."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):  # a model can nest brackets as deep as it likes
        return None


def _first_object(text: str) -> dict[str, Any] | None:
    """The first JSON object anywhere in the text."""
    start = text.find("{")
    while start >= 0:
        try:
            found: dict[str, Any] = _DECODER.raw_decode(text, start)[0]
            return found
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
    return None


def _expected_object(answer: str) -> dict[str, Any]:
    value = _parse(answer)
    if not isinstance(value, dict):
        raise InputError(
            f"accepted answer {answer!r} is not a JSON object, which field_match needs; correct the task file"
        )
    return value


def _field_share(found: dict[str, Any] | None, expected: dict[str, Any]) -> float:
    if found is None:
        return 0.0
    keys = found.keys() | expected.keys()
    right = sum(_canonical(found[key]) == _canonical(expected[key]) for key in found.keys() & expected.keys())
    return right / len(keys) if keys else 1.0


def _canonical(value: Any) -> Any:
    """The value in a form whose == is equality of JSON values (Python's True == 1 is not)."""
    if isinstance(value, str):
        return _fold(value)
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    return value
