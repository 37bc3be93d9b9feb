"""What arms cost: the best score for each price, when training pays off, and how long and how much they write."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ragtune.errors import InputError
from ragtune.evaluator.report import words
from ragtune.evaluator.report.data import ReportData
from ragtune.evaluator.report.tables import YES_NO, Table, by_arm
from ragtune.types import ArmSummary, Verdict


@dataclass(frozen=True, slots=True)
class Price:
    """What an arm costs in total: `training` once and `question` for each question, in the report's currency."""

    arm: str
    training: float
    question: float

    def total(self, questions: float) -> float:
        """The price of so many questions, training included."""
        return self.training + questions * self.question


@dataclass(frozen=True, slots=True)
class BreakEven:
    """When an arm is cheaper in total than the chosen one: always, never (it may cost the same), or for some numbers.

    `questions`, rounded up to a whole one, is where the two totals cross; None where they never do.
    """

    price: Price
    cheaper: Literal["always", "never", "before", "after"]
    questions: int | None


@dataclass(frozen=True, slots=True)
class Speed:
    """What one question takes an arm: (median, 95th percentile) over the n questions that it answered."""

    arm: str
    n: int
    seconds: tuple[float, float]
    prompt_tokens: tuple[float, float]
    output_tokens: tuple[float, float]


def pareto_front(verdict: Verdict) -> tuple[ArmSummary, ...]:
    """The arms that no arm of the same or a lower cost beats, cheapest first; reference arms left out."""
    front: list[ArmSummary] = []
    racing = (s for s in verdict.arms if not s.reference)
    for summary in sorted(racing, key=lambda s: (s.cost, -s.score.mean)):
        if not front or summary.score.mean > front[-1].score.mean:
            front.append(summary)
    return tuple(front)


def price(data: ReportData, summary: ArmSummary) -> Price:
    """An arm's price split into training and the questions, from which its share of the training is taken out.

    Raises: InputError when the cost of a question is less than that share.
    """
    training = data.training_cost[summary.arm]
    share = training / data.questions_paid_off
    if summary.cost < share and not math.isclose(summary.cost, share):
        raise InputError(
            f"arm {summary.arm!r} costs {summary.cost:g} a question, less than {share:g}, its share of the training; "
            "give the training costs that the verdict was decided with"
        )
    return Price(summary.arm, training, max(0.0, summary.cost - share))


def compared_prices(data: ReportData, verdict: Verdict) -> tuple[Price, ...]:
    """The chosen arm's price, then those of the arms that may be the best or are the best for their cost.

    Empty where the costs of training are not known.
    """
    if not data.training_cost:
        return ()
    front = {s.arm for s in pareto_front(verdict)}
    others = [s for s in verdict.arms if s.arm != verdict.arm and (s.in_best_set or s.arm in front)]
    return tuple(price(data, s) for s in (verdict.summary(verdict.arm), *others) if not s.reference)


def break_evens(data: ReportData, verdict: Verdict) -> tuple[BreakEven, ...]:
    """The chosen arm against each other of `compared_prices`, in their order."""
    prices = compared_prices(data, verdict)
    return tuple(break_even(prices[0], other) for other in prices[1:])


def break_even(chosen: Price, other: Price) -> BreakEven:
    """Compare two arms' totals, training + n * question, over the numbers n of questions."""
    training, question = (_sign(getattr(other, part), getattr(chosen, part)) for part in ("training", "question"))
    if training * question >= 0:
        return BreakEven(other, "always" if min(training, question) < 0 else "never", None)
    crossing = (other.training - chosen.training) / (chosen.question - other.question)
    return BreakEven(other, "before" if training < 0 else "after", math.ceil(crossing))


def _sign(a: float, b: float) -> int:
    return 0 if math.isclose(a, b) else 1 if a > b else -1


def cost_table(data: ReportData, verdict: Verdict) -> Table:
    """What stands behind the picture of cost against quality."""
    front = {s.arm for s in pareto_front(verdict)}
    ordered = sorted(verdict.arms, key=lambda s: s.cost)
    rows = [
        (
            s.arm,
            words.two_digits(s.cost),
            words.mean(s.score),
            YES_NO[s.arm in front] if not s.reference else "reference",
        )
        for s in ordered
    ]
    columns = ("Arm", f"Cost ({data.currency})", "Score", "Best for its cost")
    return by_arm(verdict.task, columns, rows, verdict)


def break_even_table(data: ReportData, verdict: Verdict) -> Table:
    """What stands behind the picture of total costs: the chosen arm, then those that it is compared with."""
    numbers = [words.MISSING, *map(_numbers, break_evens(data, verdict))]
    compared = zip(compared_prices(data, verdict), numbers, strict=True)
    rows = [(p.arm, words.money(p.training), words.money(p.question), when) for p, when in compared]
    columns = (
        "Arm",
        f"Training ({data.currency})",
        f"One question ({data.currency})",
        f"Cheaper than {verdict.arm} for (questions)",
    )
    return by_arm(verdict.task, columns, rows, verdict)


def _numbers(found: BreakEven) -> str:
    """For which numbers of questions an arm is the cheaper one."""
    if found.questions is None:
        return "all" if found.cheaper == "always" else "none"
    return f"{'below' if found.cheaper == 'before' else 'from'} {words.many(found.questions)}"


def break_even_sentence(data: ReportData, verdict: Verdict) -> str:
    """When each of the other arms is cheaper in total; that there is nothing to trade where no arm is trained."""
    found = break_evens(data, verdict)
    if not any(p.training for p in compared_prices(data, verdict)):
        return words.NO_BREAK_EVEN
    if not found:
        return words.NOTHING_TO_COMPARE
    always = [f"`{b.price.arm}`" for b in found if b.cheaper == "always"]
    never = [f"`{b.price.arm}`" for b in found if b.cheaper == "never"]
    partly = [f"`{b.price.arm}` {_numbers(b)}" for b in found if b.questions is not None]
    pieces = (
        f"{words.listed(always)} for any number of questions" if always else "",
        f"{words.listed(partly)} questions (about)" if partly else "",
        f"{words.listed(never)} for none" if never else "",
    )
    return f"Cheaper in total than `{verdict.arm}`: {'; '.join(filter(None, pieces))}."


def speeds(data: ReportData, verdict: Verdict) -> tuple[Speed, ...]:
    """Those of all arms that have answers to this task."""
    answered = {s.arm: list(data.answers(verdict.task, s.arm).values()) for s in verdict.arms}
    return tuple(
        Speed(
            arm,
            len(rows),
            _levels([row.seconds for row in rows]),
            _levels([row.prompt_tokens for row in rows]),
            _levels([row.output_tokens for row in rows]),
        )
        for arm, rows in answered.items()
        if rows
    )


def _levels(values: Sequence[float]) -> tuple[float, float]:
    median, high = np.percentile(values, (50, 95))
    return float(median), float(high)


def speed_table(data: ReportData, verdict: Verdict) -> Table:
    """Seconds and tokens of one question."""
    columns = (
        "Arm",
        "Questions",
        "Seconds, median",
        "95th percentile",
        "Prompt tokens, median",
        "95th percentile",
        "Output tokens, median",
        "95th percentile",
    )
    rows = [
        (
            s.arm,
            str(s.n),
            *map(words.two_digits, s.seconds),
            *(f"{count:.0f}" for count in (*s.prompt_tokens, *s.output_tokens)),
        )
        for s in speeds(data, verdict)
    ]
    return by_arm(verdict.task, columns, rows, verdict)
