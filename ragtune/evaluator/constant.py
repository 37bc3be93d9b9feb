"""What one answer given to every question would score: the least that an arm has to beat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from ragtune.types import Question, Verdict


def constant_answer(train: Sequence[Question], asked: Sequence[Question]) -> tuple[str | None, float]:
    """The most frequent answer in training, None for refusing, and the share of the asked questions it answers exactly.

    Source: the majority class, the usual floor of a classification. ("", 0.0) without training or asked questions.
    """
    if not train or not asked:
        return "", 0.0
    answers, _ = Counter(q.answers[:1] for q in train).most_common(1)[0]
    if not answers:
        return None, fmean(not q.answerable for q in asked)
    return answers[0], fmean(answers[0] in q.answers for q in asked)


def constant_sentence(verdict: Verdict, constant: str | None, score: float) -> str:
    """A warning where the verdict's arm is not shown to beat the constant answer, else nothing."""
    if score == 0 or verdict.summary(verdict.arm).score.low > score:
        return ""
    always = "Always refusing" if constant is None else f"Always answering '{constant}', as most often in training,"
    return f"{always} would score {score:.2f}, which `{verdict.arm}` is not shown to beat."
