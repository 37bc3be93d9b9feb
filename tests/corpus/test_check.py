"""The checks: one small corpus that is sound, and one fault at a time; near duplicates against brute force."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from ragtune.corpus.check import CheckReport, Finding, check_corpus, normalise
from ragtune.types import AnswerFormat, Question, Span, Split, Task

DOCUMENTS = {"a.md": "Dogs pay **£5**. Cats pay £4.", "b.md": "Boats leave at noon.", "c.md": "Bikes go free."}


def ask(
    id: str,
    text: str,
    split: Split = "test",
    answers: tuple[str, ...] = ("£5",),
    evidence: tuple[tuple[str, str], ...] = (),
    task: str = "facts",
) -> Question:
    return Question(id, text, answers, task, split, tuple(Span(d, -1, -1, quote) for d, quote in evidence))


def task(
    *questions: Question, format: AnswerFormat = "short", labels: tuple[str, ...] = (), name: str = "facts"
) -> Task:
    return Task(name, ("Answer.",), "f1", format, questions, labels)


SOUND = (
    ask("1", "What do dogs pay?", "train", ("£5",), (("a.md", "Dogs pay **£5**."),)),
    ask("2", "When do boats leave?", "dev", ("at noon",), (("b.md", "Boats leave at noon."),)),
    ask("3", "Are bikes dear?", "test", ("no", "free"), (("c.md", "Bikes go free."),)),
    ask("4", "Who owns it?", "test", ()),
)


def messages(findings: tuple[Finding, ...]) -> list[str]:
    return [f"{f.task}/{f.question_id}: {f.message}" for f in findings]


def check(*questions: Question, format: AnswerFormat = "text", labels: tuple[str, ...] = ()) -> CheckReport:
    return check_corpus([task(*questions, format=format, labels=labels)], DOCUMENTS)


def test_sound_corpus() -> None:
    report = check_corpus([task(*SOUND)], DOCUMENTS)
    assert report == CheckReport((), (), {"facts": {"train": 1, "dev": 1, "test": 2}})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  What's the FARE,\n“now”? ", "what's the fare now"),
        ("Is 3*5 = 15?", "is 3*5 = 15"),
        ("C++ or C#?", "c++ or c#"),
        ("**£5**", "£5"),
        ("Straße", "strasse"),
        ("की का", "की का"),
        ("?!", "?!"),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_evidence_that_does_not_resolve() -> None:
    report = check(ask("1", "x?", evidence=(("z.md", "x"), ("a.md", "birds"), ("b.md", "Boats"))))
    missing, wrong = messages(report.errors)
    assert missing.startswith("facts/1: question '1', document 'z.md': there is no such document")
    assert wrong.startswith("facts/1: question '1', document 'a.md': the quote 'birds' does not occur")


def test_document_used_in_two_splits_even_by_two_tasks() -> None:
    one = task(ask("1", "Dogs?", "train", evidence=(("a.md", "Dogs"),)), format="text")
    other = task(ask("9", "Cats?", "test", evidence=(("a.md", "Cats"),), task="chat"), format="text", name="chat")
    assert messages(check_corpus([one, other], DOCUMENTS).errors) == [
        "chat/9: document 'a.md' is evidence in train (facts/1) and test (chat/9); use it in one"
    ]


def test_shared_tasks_may_use_a_document_in_several_splits() -> None:
    evidence = (("a.md", "Dogs"),)
    rules = task(
        ask("1", "Dogs?", "train", evidence=evidence), ask("2", "Cats?", "test", evidence=evidence), format="text"
    )
    assert len(check_corpus([rules], DOCUMENTS).errors) == 1
    assert check_corpus([rules], DOCUMENTS, frozenset({"facts"})).errors == ()


def test_same_question_across_and_within_splits() -> None:
    report = check(ask("1", "What is it?", "train"), ask("2", "what is  it", "test"), ask("3", "What is it!", "test"))
    assert messages(report.errors) == [
        "facts/2: the same question as facts/1 (train); keep one of them",
        "facts/3: the same question as facts/1 (train); keep one of them",
    ]
    assert not any("nearly" in message for message in messages(report.warnings))


def test_same_question_in_two_tasks_is_wrong_only_across_splits() -> None:
    one = task(ask("1", "What is it?", "train"), format="text")
    for split, expected in (
        ("train", []),
        ("test", ["chat/9: the same question as facts/1 (train); keep one of them"]),
    ):
        other = task(ask("9", "What is it?", split, ("other",), task="chat"), format="text", name="chat")  # type: ignore[arg-type]
        assert messages(check_corpus([one, other], DOCUMENTS).errors) == expected


@pytest.mark.parametrize(
    ("first", "second", "format", "contradict"),
    [
        (("£5",), ("£6",), "short", True),
        (("£5", "five pounds"), ("Five pounds.",), "short", False),
        (("£5",), (), "short", True),
        ((), (), "short", False),
        (('{"a": 1, "b": 2}',), ('{"b":2,"a":1}',), "json", False),
        (('{"a": 1}',), ('{"a": "1"}',), "json", True),
    ],
)
def test_contradicting_answers(
    first: tuple[str, ...], second: tuple[str, ...], format: AnswerFormat, contradict: bool
) -> None:
    report = check(ask("1", "How much?", "train", first), ask("2", "How much?", "train", second), format=format)
    expected = ["facts/2: the same question as facts/1 (train); keep one of them"]
    assert messages(report.errors) == expected + contradict * [
        "facts/2: answers that contradict those of facts/1 (train)"
    ]


def test_near_duplicates_across_splits() -> None:
    # 4 of 5 words shared: 0.8. 4 of 6: 0.67. The same words in another order: 1, but no exact duplicate.
    report = check(
        ask("1", "when does the boat leave", "train"),
        ask("2", "when does the boat", "dev"),
        ask("3", "when does the boat sink today", "train"),
        ask("4", "leave the boat when, does?", "test"),
        ask("5", "when does the boat leave now", "train"),
    )
    assert messages(report.warnings) == [
        "facts/2: nearly the same question as facts/1 (train) (Jaccard 0.80)",
        "facts/4: nearly the same question as facts/1 (train) (Jaccard 1.00)",
    ]


def test_near_duplicates_in_a_script_without_spaces() -> None:
    report = check(
        ask("1", "東京は大きい都市ですか", "train"), ask("2", "東京は大きい都市です", "test"), ask("3", "x", "dev")
    )
    assert messages(report.warnings) == ["facts/2: nearly the same question as facts/1 (train) (Jaccard 0.91)"]


def test_near_duplicates_match_brute_force() -> None:
    rng = random.Random(0)
    splits: list[Split] = ["train", "dev", "test"]
    vocabulary = [f"w{i}" for i in range(9)]
    questions = [
        ask(str(i), " ".join(rng.choices(vocabulary, k=rng.randint(1, 9))), rng.choice(splits)) for i in range(300)
    ]
    warned = {f.question_id for f in check(*questions).warnings if "nearly" in f.message}
    bags = {q.id: set(q.text.split()) for q in questions}
    expected, repeated = set(), set()
    for one, two in itertools.permutations(questions, 2):
        if splits.index(one.split) < splits.index(two.split):
            if one.text == two.text:
                repeated.add(two.id)
            elif 5 * len(bags[one.id] & bags[two.id]) >= 4 * len(bags[one.id] | bags[two.id]):
                expected.add(two.id)
    assert len(expected) > 30
    assert warned - repeated == expected - repeated and warned <= expected


def test_thousands_of_questions_are_quick() -> None:
    rng = random.Random(1)
    vocabulary = [f"w{i}" for i in range(3000)]
    openings = ["what is the", "how much is the", "when does the", "who is the"]
    questions = [
        ask(str(i), f"{rng.choice(openings)} {' '.join(rng.choices(vocabulary, k=5))}", rng.choice(["train", "test"]))
        for i in range(5000)
    ]
    started = time.perf_counter()
    check(*questions)
    assert time.perf_counter() - started < 5


def test_labels_without_train_example() -> None:
    report = check(
        ask("1", "one", "train", ("a",)),
        ask("2", "two", "dev", ("b",)),
        ask("3", "three", "test", ("b",)),
        ask("4", "four", "test", ("a",)),
        format="label",
        labels=("a", "b", "c"),
    )
    assert messages(report.errors) == [
        "facts/2: label 'b' has no train question (1 in dev, 1 in test)",
        "facts/: label 'c' has no train question (0 in dev, 0 in test)",
    ]


def test_answers_that_are_not_in_the_evidence() -> None:
    evidence = (("a.md", "Dogs pay **£5**."),)
    questions = [
        ask("1", "one", "train", ("£6", "Yes"), evidence),
        ask("2", "two", "train", ("nothing", "pay £5"), evidence),
        ask("3", "three", "train", ("no evidence to look at",)),
    ]
    warned = [m for m in messages(check(*questions, format="short").warnings) if "evidence" in m]
    assert warned == [
        "facts/1: none of the answers ['£6', 'Yes'] stands in its evidence; right if it is to be inferred"
    ]
    assert not any("evidence" in message for message in messages(check(*questions, format="text").warnings))


def test_empty_splits() -> None:
    report = check(ask("1", "one", "train"))
    assert messages(report.warnings) == ["facts/: the dev split is empty", "facts/: the test split is empty"]
    assert report.counts == {"facts": {"train": 1, "dev": 0, "test": 0}}
