"""Values -> the words and rounded numbers that all three forms of the report share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal

from ragtune.evaluator.report.data import ReportData
from ragtune.types import Arm, ArmSummary, Interval, Question, Row, Verdict

MISSING = "–"

STATISTICS = (
    "The arms that may be the best form a simultaneous confidence set by a paired max-t bootstrap over the questions "
    "(Hsu 1984; Hothorn, Bretz and Westfall 2008; Westfall and Young 1993), and single intervals are bias-corrected "
    "and accelerated bootstrap intervals (Efron and Tibshirani 1993). Where a task is split by source document, "
    "questions about one document are drawn together.",
    "Differences between two arms are tested by a paired permutation test (Good 2005; Phipson and Smyth 2010), and the "
    "p-values of one task are corrected together (Holm 1979). The probability of being the best is that of a Bayesian "
    "bootstrap (Rubin 1981).",
)

REFERENCE = " (reference: measured for what it explains, cannot win)"
SCORES = (
    "Mean score of each arm on the test questions, from 0 to 1, with its interval. An arm that racing dropped stands "
    "for the questions that it was asked until then."
)
ARMS = (
    "An arm may be the best as long as it is not shown worse than another. Probabilities are judged by these questions "
    "alone."
)
INGREDIENTS = (
    "Prompting (worked examples), retrieval and tuning can be used alone or together. A share (Shapley 1953) is what "
    "one of them adds to the score, averaged over the orders in which they can be added; the shares sum to the gain of "
    "all together. An effect is what it adds beside the others, averaged over arms that differ by it alone; an "
    "interaction is how much more two do together than apart. All three together means the model tuned to read "
    "passages, where there is one; tuned models are not given worked examples."
)
NO_INGREDIENTS = (
    "The arms that this takes (with and without worked examples, passages and tuning) were not all measured on the "
    "same questions."
)
CAUSES_OF_FAILURE = (
    "Each answer of the chosen arm is right (a score of at least 0.5) or has one cause of failure, by fixed rules that "
    "look at what it had read and at what the reference arm with the gold evidence made of the question."
)
REMEDIES = (
    "What a remedy adds is what the mean score would rise by if this one part were perfect. Perfect retrieval is "
    "measured with the gold evidence; the others are upper bounds. They do not add up."
)
NO_REMEDY = (
    "What would help cannot be seen here: no question names evidence, or the reference arm with the gold evidence was "
    "not measured."
)
NO_DIAGNOSIS = "The causes were not looked for in this run."
CAUSES: Mapping[str, str] = {
    "right": "scores at least 0.5",
    "retrieval miss": "evidence was not among the passages, and with it the answer is better",
    "reading failure": "the evidence was there, or does not help, and the answer is wrong",
    "knowledge gap": "it had no passages, or the question names no evidence, and it does not know",
    "format failure": "only the form is wrong",
    "wrong refusal": "it refused, though nothing was missing",
    "unjustified answer": "it answered, though the documents do not say",
}
GROUNDING = (
    "Citation precision is the share of the cited passages that hold evidence, citation recall the share of the "
    "evidence that is cited; the number of answers is in brackets. A right answer with a wrong citation scores at "
    "least 0.5 and cites no passage with evidence."
)
COST = "What one question costs, with its share of the training and without indexing, against the mean score."
BREAK_EVEN = (
    "Training is paid once, each question again, so what is dear to train and cheap to ask pays off late. Compared are "
    "the arms that may be the best or are the best for their cost. Where a line crosses that of the chosen arm, the "
    "other becomes the cheaper one in total."
)
NO_BREAK_EVEN = (
    "None of the arms to compare is trained, so that the cheaper one is the cheaper for any number of questions."
)
NOTHING_TO_COMPARE = "No other arm may be the best or is the best for its cost."
TRAINING = (
    "Loss at each optimiser step (points) and its mean over the tenth of the steps around it (line), in nats per "
    "answer token: how little the model expected the right answer. A falling line says that the training rows are "
    "being learned; whether answers get better, the scores say. A dashed line marks the step whose weights were kept, "
    "where dev questions chose it."
)
SPEED = "Over all questions that an arm answered. A batch's seconds are shared evenly among its questions."
EXAMPLES = (
    "Where the chosen arm and the best other arm differ most: up to two questions won and up to two lost for each task."
)
NO_EXAMPLES = "No question on which the two differ."
MEASURES = "Means over the questions that an arm answered and that have the measure; their number is in brackets."

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
    model = _WEIGHTS[arm.weights] if arm.generator is None else f"model {arm.generator}"
    given = " and ".join(filter(None, (_GIVEN[arm.passages], "worked examples" if arm.few_shot else "")))
    alone = "instruction only" if arm.weights == "base" else "without passages"
    return f"{model}, {'given ' + given if given else alone}"


def accepted(question: Question) -> str:
    """The accepted answers of a question."""
    return " · ".join(question.answers) if question.answerable else "that the documents do not say"


def outcome(row: Row) -> str:
    """How an answer fared."""
    score = "not scored" if row.score is None else f"score {row.score:.2f}"
    return f"{score}, refused" if row.refused else score


def reason(verdict: Verdict) -> str:
    """The verdict's reason and, where it is open, which arms are probably the best."""
    likely = sorted((s for s in verdict.arms if s.probability_best >= 0.05), key=lambda s: -s.probability_best)
    if verdict.status == "decided" or not likely:
        return verdict.reason
    shown = ", ".join(f"`{s.arm}` {probability(s.probability_best)}" for s in likely)
    return f"{verdict.reason} Probability of being the best: {shown}."


def break_even(questions_paid_off: int) -> str:
    """What the comparison of total costs shows."""
    return f"{BREAK_EVEN} Costs per question spread the training over {questions_paid_off:,} questions (dashed line)."


def read(n: int, n_gold: int, n_evidence: int) -> str:
    """What an arm had read; where a question has no evidence there is none to find."""
    found = f", {n_gold or 'none'} with the gold evidence" if n_evidence else ""
    return f"{count(n, 'passage')} read{found}"


def tally(verdicts: tuple[Verdict, ...]) -> str:
    """How many tasks are decided, as a sentence."""
    decided = sum(verdict.status == "decided" for verdict in verdicts)
    if not decided:
        return "No task is decided."
    if decided == len(verdicts):
        return "Every task is decided."
    return f"{decided} of {len(verdicts)} tasks {'is' if decided == 1 else 'are'} decided."


def size(data: ReportData) -> str:
    """How much was measured, as sentences."""
    answered = [verdict.task for verdict in data.verdicts]
    questions = sum(map(data.asked, answered))
    counts = (count(len(answered), "task"), count(len(data.arms), "arm"), count(questions, "test question"))
    left = [task.name for task in data.tasks if task.name not in answered]
    return f"{', '.join(counts)}." + (f" Not asked: {', '.join(left)}." if left else "")


def count(n: int, noun: str) -> str:
    """`1 answer`, `2 answers`."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


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


def many(n: int) -> str:
    """The same with a comma between thousands: 3356 -> 3,400."""
    return format(int(two_digits_up(n)), ",")


def short(name: str) -> str:
    """A name of at most 28 characters: of a longer one, such as `GENERATOR:ARM`, the beginning and the end."""
    return name if len(name) <= 28 else f"{name[:14]}…{name[-13:]}"


def signed(value: float) -> str:
    """One decimal, two where it takes them, with its sign: `+0.2`, `−0.25`, `0`."""
    return f"{round(value, 2):+g}".replace("-", "−") if round(value, 2) else "0"


def power(value: float) -> str:
    """A power of ten: `0.001`, `1,000`, `10 million`."""
    return (
        f"{value / 1e6:,.0f} million" if value >= 1e6 else f"{value:,.0f}" if value >= 1 else f"{Decimal(str(value)):f}"
    )


def money(value: float) -> str:
    """An amount with two significant digits and a comma between thousands: 0.017, 1,200."""
    return f"{Decimal(two_digits(value)):,f}"


def probability(value: float) -> str:
    """In whole hundredths, but for what is nearly sure."""
    return "< 1 %" if value < 0.01 else "> 99 %" if value > 0.99 else f"{100 * value:.0f} %"


def percent(value: float) -> str:
    """A share in whole hundredths: `40 %`."""
    return f"{100 * value:.0f} %"


def questions_scored(s: ArmSummary) -> str:
    """On how many questions an arm's numbers rest."""
    n = str(s.n) if s.dropped_after is None else f"dropped after {s.dropped_after}"
    return f"{n} ({s.unscored} unscored)" if s.unscored else n


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
