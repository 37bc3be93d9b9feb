"""Values -> the words and rounded numbers that all three forms of the report share."""

from __future__ import annotations

import math
from decimal import Decimal

from ragtune.evaluator.report.data import ReportData
from ragtune.types import Arm, Interval, Question, Row, Verdict

MISSING = "–"

STATISTICS = (
    "The arms that may be the best form a simultaneous confidence set by a paired max-t bootstrap over the questions "
    "(Hsu 1984; Hothorn, Bretz and Westfall 2008; Westfall and Young 1993), and single intervals are bias-corrected "
    "and accelerated bootstrap intervals (Efron and Tibshirani 1993).",
    "Differences between two arms are tested by a paired permutation test (Good 2005; Phipson and Smyth 2010), and the "
    "p-values of one task are corrected together (Holm 1979).",
)

REFERENCE = " (reference: measured for what it explains, cannot win)"
SCORES = "Mean score of each arm on the test questions, from 0 to 1, with its interval."
COST = "What one question costs, with its share of the training and without indexing, against the mean score."
EXAMPLES = (
    "Where the chosen arm and the best other arm differ most: up to two questions won and up to two lost for each task."
)
NO_EXAMPLES = "No question on which the two differ."
MEASURES = "Means over the questions that an arm answered and that have the measure."

_NAMES = {
    "token_f1": "token F1",
    "rouge_l": "ROUGE-L",
    "valid_json": "valid JSON",
    "recall_at_k": "recall@k",
    "ndcg_at_k": "nDCG@k",
}
_WEIGHTS = {"base": "base model", "tune": "fine-tuned model", "raft": "model fine-tuned to read passages"}
_GIVEN = {"none": "", "retrieved": "retrieved passages", "gold": "the gold evidence"}


def describe(arm: Arm) -> str:
    """An arm in words: `base model, given retrieved passages and worked examples`."""
    given = " and ".join(filter(None, (_GIVEN[arm.passages], "worked examples" if arm.few_shot else "")))
    alone = "instruction only" if arm.weights == "base" else "without passages"
    return f"{_WEIGHTS[arm.weights]}, {'given ' + given if given else alone}"


def accepted(question: Question) -> str:
    """The accepted answers of a question."""
    return " · ".join(question.answers) if question.answerable else "that the documents do not say"


def outcome(row: Row) -> str:
    """How an answer fared."""
    score = "not scored" if row.score is None else f"score {row.score:.2f}"
    return f"{score}, refused" if row.refused else score


def read(n: int, n_gold: int, n_evidence: int) -> str:
    """What an arm had read; where a question has no evidence there is none to find."""
    found = f", {n_gold or 'none'} with the gold evidence" if n_evidence else ""
    return f"{_count(n, 'passage')} read{found}"


def tally(verdicts: tuple[Verdict, ...]) -> str:
    """How many tasks are decided, as a sentence."""
    decided = sum(verdict.status == "decided" for verdict in verdicts)
    if not decided:
        return "No task is decided."
    if decided == len(verdicts):
        return "Every task is decided."
    return f"{decided} of {len(verdicts)} tasks {'is' if decided == 1 else 'are'} decided."


def size(data: ReportData) -> str:
    """How much was measured, as a sentence."""
    questions = sum(task.n_test for task in data.tasks)
    return f"{_count(len(data.tasks), 'task')}, {_count(len(data.arms), 'arm')}, {_count(questions, 'test question')}."


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def interval(value: Interval, signed: bool = False) -> str:
    """`0.91 (0.86 to 0.95)`: two decimals, three only where the interval is narrow enough to support them."""
    return f"{mean(value, signed)} {ends(value, signed)}"


def ends(value: Interval, signed: bool = False) -> str:
    """`(0.86 to 0.95)`, rounded as in `interval`."""
    return f"({_decimals(value.low, value, signed)} to {_decimals(value.high, value, signed)})"


def mean(value: Interval, signed: bool = False) -> str:
    """The mean alone, rounded as in `interval`."""
    return _decimals(value.mean, value, signed)


def _decimals(number: float, within: Interval, signed: bool) -> str:
    digits = 3 if within.high - within.low < 0.02 else 2
    number = round(number, digits) + 0.0  # no "-0.00"
    return f"{number:+.{digits}f}".replace("-", "−") if signed and number else f"{number:.{digits}f}"


def two_digits(value: float) -> str:
    """Two significant digits, never in powers of ten: 0.017, 1200, 0."""
    return format(Decimal(f"{value:.1e}"), "f") if value else "0"


def two_digits_up(n: int) -> str:
    """A count of questions rounded up to two significant digits, as verdicts give it: 3356 -> 3400."""
    unit: int = 10 ** max(0, len(str(n)) - 2)
    return str(math.ceil(n / unit) * unit)


def share(count: int, n: int) -> str:
    """`3 of 48`; nothing of nothing is a dash."""
    return f"{count} of {n}" if n else MISSING


def p_value(value: float) -> str:
    """Two digits of it, or that it is below 0.001."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def plain(name: str) -> str:
    """A measure's or setting's name for people: `token_f1` -> `token F1`."""
    return _NAMES.get(name, name.replace("_", " "))


def heading(name: str) -> str:
    """The same at the head of a column or line: `Token F1`, `nDCG@k`."""
    text = plain(name)
    return text if text[1:2].isupper() else text[:1].upper() + text[1:]
