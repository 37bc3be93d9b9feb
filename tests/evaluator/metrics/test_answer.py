import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtune.errors import InputError
from ragtune.evaluator.metrics.answer import (
    METRICS,
    accuracy,
    exact_match,
    field_match,
    normalise,
    rouge_l,
    token_f1,
    valid_json,
)

words = st.lists(st.sampled_from(["a", "the", "cat", "sat", "mat", "Dog", "1.5", "--", "£3"]), max_size=8).map(" ".join)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat, sat!\n", "cat sat"),
        ("An apple a day", "apple day"),
        ("theatre", "theatre"),  # "the" only as a word
        ("1,000.50", "100050"),
        ("well-known", "wellknown"),
        ("a.m.", "am"),  # punctuation goes first, so no article is left behind
        ("’quoted’", "’quoted’"),  # the official script knows ASCII punctuation only
        ("The", ""),
    ],
)
def test_normalise_follows_the_squad_script(text: str, expected: str) -> None:
    assert normalise(text) == expected


@given(words)
def test_normalise_keeps_no_article_and_no_punctuation(text: str) -> None:
    assert not re.search(r"\b(a|an|the)\b|[.,!-]|\s\s", normalise(text))
    assert normalise(normalise(text)) == normalise(text)


def test_exact_match_takes_the_best_answer() -> None:
    assert exact_match("the Eiffel Tower.", ["Paris", "Eiffel tower"]) == 1.0
    assert exact_match("Eiffel Tower in Paris", ["Paris", "Eiffel tower"]) == 0.0


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("cat sat", ["the cat sat on mat"], 2 * 1 * 0.5 / 1.5),  # precision 2/2, recall 2/4
        (
            "cat cat cat",
            ["cat dog"],
            2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2),
        ),  # a token counts as often as both have it
        ("dog", ["cat", "big dog"], 2 / 3),  # the best answer
        ("dog", ["cat"], 0.0),
        ("", ["cat"], 0.0),
        ("the", ["an"], 1.0),  # both without tokens: v2.0 rule
    ],
)
def test_token_f1_by_hand(prediction: str, answers: list[str], expected: float) -> None:
    assert token_f1(prediction, answers) == pytest.approx(expected)


def _squad_f1(prediction: str, gold: str) -> float:
    """Precision and recall by striking tokens off one by one."""
    left, found = normalise(gold).split(), 0
    tokens = normalise(prediction).split()
    if not tokens or not left:
        return float(tokens == left)
    n_gold = len(left)
    for token in tokens:
        if token in left:
            left.remove(token)
            found += 1
    if not found:
        return 0.0
    precision, recall = found / len(tokens), found / n_gold
    return 2 * precision * recall / (precision + recall)


@given(words, words)
def test_token_f1_against_striking_off(prediction: str, gold: str) -> None:
    assert token_f1(prediction, [gold]) == pytest.approx(_squad_f1(prediction, gold))


@pytest.mark.parametrize(
    ("prediction", "gold", "expected"),
    [
        # the example of Lin 2004, section 3.1, gives 3/4 and 2/4; here "the" does not count
        ("police kill the gunman", "police killed the gunman", 2 / 3),
        ("the gunman kill police", "police killed the gunman", 1 / 3),
        ("x y z", "x q y r z", 2 * 3 / 8),
        ("", "x", 0.0),
    ],
)
def test_rouge_l_by_hand(prediction: str, gold: str, expected: float) -> None:
    assert rouge_l(prediction, [gold]) == pytest.approx(expected)


def _longest_by_enumeration(a: list[str], b: list[str]) -> int:
    def is_subsequence(part: list[str]) -> bool:
        rest = iter(b)
        return all(token in rest for token in part)

    picks = ([a[i] for i in range(len(a)) if mask >> i & 1] for mask in range(2 ** len(a)))
    return max(len(part) for part in picks if is_subsequence(part))


@settings(max_examples=50)
@given(words, words)
def test_rouge_l_against_enumeration(prediction: str, gold: str) -> None:
    a, b = normalise(prediction).split(), normalise(gold).split()
    expected = 2 * _longest_by_enumeration(a, b) / (len(a) + len(b)) if a and b else float(a == b)
    assert rouge_l(prediction, [gold]) == pytest.approx(expected)
    assert rouge_l(prediction, [gold]) <= token_f1(prediction, [gold]) + 1e-12


def test_accuracy_ignores_case_and_surrounding_space_only() -> None:
    assert accuracy(" Complaint\n", ["complaint"]) == 1.0
    assert accuracy("complaint.", ["complaint"]) == 0.0
    assert accuracy("STRASSE", ["straße"]) == 1.0


RECORD = '{"port": "Orrin", "price": 12, "pets": true, "stops": ["A", "B"]}'


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        (RECORD, 1.0),
        ('{"port": " orrin ", "price": 12.0, "pets": true, "stops": ["a", "B"]}', 1.0),
        ('{"port": "Orrin", "price": "12", "pets": 1, "stops": ["B", "A"]}', 0.25),  # types and order of a list count
        ('{"port": "Orrin", "price": 12}', 0.5),
        ('{"port": "Orrin", "price": 12, "pets": true, "stops": ["A", "B"], "note": ""}', 0.8),  # 4 of 5 keys
        (f"Sure! Here it is:\n```json\n{RECORD}\n``` {{}}", 1.0),
        (f"Fill {{port}} first: {RECORD}", 1.0),  # the first that parses
        ("{}", 0.0),
        ('{"port": "Orrin", "price": NaN}', 0.0),
        ('{"port": "Orrin", "pri', 0.0),
        ("Orrin, 12", 0.0),
        ('{"a":' * 5000, 0.0),  # deeper than the parser can go
    ],
)
def test_field_match(prediction: str, expected: float) -> None:
    assert field_match(prediction, [RECORD]) == pytest.approx(expected)


def test_field_match_takes_the_best_record_and_refuses_a_broken_one() -> None:
    assert field_match('{"a": 1}', ['{"a": 2}', '{"a": 1}']) == 1.0
    assert field_match("{}", ["{}"]) == 1.0
    assert field_match('{"a": {"b": ["X"]}}', ['{"a": {"b": ["x"]}}']) == 1.0
    assert field_match('{"a": {"b": [1]}}', ['{"a": {"b": [true]}}']) == 0.0
    with pytest.raises(InputError, match="'twelve' is not a JSON object"):
        field_match('{"a": 1}', ["twelve"])


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        (' {"a": [1, null]}\n', 1.0),
        ("[1]", 0.0),
        ('"a"', 0.0),
        ('{"a": Infinity}', 0.0),
        ('{"a": 1} done', 0.0),
        ("```json\n{}\n```", 0.0),
        ("", 0.0),
    ],
)
def test_valid_json_wants_one_object_and_nothing_else(prediction: str, expected: float) -> None:
    assert valid_json(prediction) == expected


@settings(max_examples=50)
@given(st.text(max_size=30), st.lists(st.text(max_size=30), min_size=1, max_size=3))
def test_every_metric_is_between_0_and_1_and_takes_the_best_answer(prediction: str, answers: list[str]) -> None:
    for name, metric in METRICS.items():
        accepted = [json.dumps({"a": text}) for text in answers] if name == "field_match" else answers
        each = [metric(prediction, [answer]) for answer in accepted]
        assert all(0.0 <= value <= 1.0 for value in each)
        assert metric(prediction, accepted) == max(each)
        if name not in ("field_match", "valid_json"):
            assert metric(answers[0], answers) == 1.0


@pytest.mark.parametrize("name", sorted(METRICS.keys() - {"valid_json"}))
def test_without_an_accepted_answer_there_is_nothing_to_compare(name: str) -> None:
    with pytest.raises(InputError, match="no accepted answer"):
        METRICS[name]("x", [])
