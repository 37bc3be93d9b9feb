"""What the base knows and what tuning forgets, with scripted models whose knowledge is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ragtune.config import EvaluateConfig, RetrievalConfig
from ragtune.evaluator.knowledge import KnowledgeCount, general_probe
from ragtune.measure import AnswerLog, Bench, Choices
from ragtune.probes import probe_forgetting, probe_knowledge
from ragtune.store import JsonlLog
from ragtune.testing import ScriptedGenerator
from ragtune.types import Message, Question, Split, Task

CHOICES = Choices("Name the colour.", "Name the colour.", (), {})


def bench(folder: Path, dev_questions: int = 16) -> Bench:
    config = EvaluateConfig(shots=2, example_sets=3, dev_questions=dev_questions)
    log = AnswerLog(JsonlLog(folder / "log.jsonl"))
    return Bench(log, {}, {}, RetrievalConfig(), config, lambda label, done, total: None)


def question(number: int, split: Split, *answers: str) -> Question:
    return Question(f"{split}-{number}", f"Which colour has thing {number}?", answers, "colours", split)


TASK = Task(
    name="colours",
    instructions=("Name the colour.",),
    metric="exact_match",
    format="short",
    questions=tuple(question(i, "train", "red") for i in range(10)),
)


def asking(*dev: Question) -> Task:
    """The task with these dev questions."""
    return replace(TASK, questions=(*TASK.questions, *dev))


def scripted(knows: Callable[[str, int], bool]) -> ScriptedGenerator:
    """Right when `knows(question, examples shown)`."""

    def reply(messages: Sequence[Message]) -> str:
        return "blue" if knows(messages[-1].content, (len(messages) - 2) // 2) else "green"

    return ScriptedGenerator(reply)


def test_always_sometimes_and_never_right_are_told_apart(tmp_path: Path) -> None:
    task = asking(*(question(i, "dev", "blue") for i in range(3)))
    # Thing 0 is known, thing 1 only with two examples, thing 2 never.
    generator = scripted(lambda text, shots: "thing 0" in text or ("thing 1" in text and shots == 2))
    assert probe_knowledge(task, CHOICES, generator, bench(tmp_path)) == KnowledgeCount(1, 1, 1)


def test_unanswerable_questions_are_not_probed(tmp_path: Path) -> None:
    generator = scripted(lambda text, shots: True)
    blank, known = question(0, "dev"), question(1, "dev", "blue")
    assert probe_knowledge(asking(blank, known), CHOICES, generator, bench(tmp_path)) == KnowledgeCount(1, 0, 0)
    assert probe_knowledge(asking(blank), CHOICES, generator, bench(tmp_path)) is None


def test_at_most_so_many_questions_are_probed(tmp_path: Path) -> None:
    generator = scripted(lambda text, shots: True)
    task = asking(*(question(i, "dev", "blue") for i in range(9)))
    assert probe_knowledge(task, CHOICES, generator, bench(tmp_path, 4)) == KnowledgeCount(4, 0, 0)


def test_what_tuning_lost_is_counted_on_the_general_questions(tmp_path: Path) -> None:
    answers = {q.text: q.answers[0] for q in general_probe()}
    lost = set(list(answers)[:12])
    base = ScriptedGenerator(lambda messages: f"I think it is {answers[messages[-1].content]}.")
    tuned = ScriptedGenerator(
        lambda messages: "no idea" if messages[-1].content in lost else answers[messages[-1].content],
        name="tuned",
    )
    found = probe_forgetting("tune", base, tuned, bench(tmp_path))
    n = len(answers)
    assert (found.weights, found.n, found.before, found.after) == ("tune", n, 1.0, (n - 12) / n)
    assert found.change.low <= -12 / n <= found.change.high < 0
