import json
from importlib import resources

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragtune.errors import InputError
from ragtune.evaluator.compare import paired_difference
from ragtune.evaluator.knowledge import (
    KnowledgeCount,
    classify_knowledge,
    forgetting,
    general_probe,
    states_answer,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The capital is Paris, France.", "paris"),
        ("It is the north pier!", "The North Pier"),
        ("3 times 3 is 3*3=9.", "9"),
        ("80% of the fare", "80%"),
        ("It costs £1,250.50 in all.", "1250.50"),
        ("about 1,000,000 people", "1000000"),
        ("a well known fact", "well-known"),
        ("НА БЕРЕГУ Волги", "волги"),
    ],
)
def test_an_answer_stands_in_a_text(text: str, answer: str) -> None:
    assert states_answer(text, ("something else", answer))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Parisian cafés", "Paris"),
        ("80.5 kg", "80"),
        ("pier on the north side", "north pier"),
        ("1,5 metres", "15"),
        ("seven", "7"),
        ("north", "north pier"),
        ("", "Paris"),
        ("the text of an answer", "the"),  # nothing is left of it to look for
    ],
)
def test_an_answer_does_not_stand_in_a_text(text: str, answer: str) -> None:
    assert not states_answer(text, (answer,))


def test_no_answer_stands_nowhere() -> None:
    assert not states_answer("anything", ())


@given(st.text(max_size=20), st.text("abc 12.,", min_size=1, max_size=8), st.text(max_size=20))
def test_words_around_an_answer_change_nothing(before: str, answer: str, after: str) -> None:
    assert states_answer(f"{before} — {answer} — {after}", (answer,)) == states_answer(answer, (answer,))


def test_knowledge_is_counted_by_question() -> None:
    outcomes = [[True, True, True], [True, False, True], [False, False, False], [False, True, False], [True] * 3]
    assert classify_knowledge(outcomes) == KnowledgeCount(known=2, maybe=2, unknown=1)
    assert classify_knowledge([[True], [False]]) == KnowledgeCount(1, 0, 1)
    assert classify_knowledge([]) == KnowledgeCount(0, 0, 0)
    with pytest.raises(InputError, match="no closed-book outcome"):
        classify_knowledge([[True], []])


def test_forgetting_is_a_paired_change() -> None:
    before, after = [1.0] * 40 + [0.0] * 20, [1.0] * 30 + [0.0] * 26 + [1.0] * 4  # ten forgotten, four learned
    result = forgetting("raft", before, after, seed=3)
    assert (result.weights, result.n) == ("raft", 60)
    assert (result.before, result.after) == pytest.approx((40 / 60, 34 / 60))
    assert result.change == paired_difference(np.array(after), np.array(before), seed=3)
    assert result.change.mean == pytest.approx(-0.1)
    assert result.change.low < -0.1 < result.change.high


def test_forgetting_needs_the_same_questions_twice() -> None:
    with pytest.raises(InputError, match="2 scores before tuning and 1 after"):
        forgetting("tune", [1.0, 0.0], [1.0])
    with pytest.raises(InputError, match="no question is scored"):
        forgetting("tune", [], [])


def test_the_general_probe_is_whole() -> None:
    probe = general_probe()
    assert len(probe) == 60
    assert len({q.text for q in probe}) == len({q.id for q in probe}) == 60
    assert all(q.text[-1] in ".?" and not q.evidence and (q.task, q.split) == ("general", "test") for q in probe)
    assert (probe[0].id, probe[0].answers) == ("general-01", ("Paris",))
    lines = (resources.files("ragtune.evaluator") / "general_probe.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(list(json.loads(line)) == ["question", "answers"] for line in lines)


def test_every_question_of_the_probe_can_be_answered_and_not_by_repeating_it() -> None:
    for question in general_probe():
        assert question.answers
        assert all(states_answer(f"The answer is {answer}.", (answer,)) for answer in question.answers)
        assert not states_answer(question.text, question.answers), question.text
