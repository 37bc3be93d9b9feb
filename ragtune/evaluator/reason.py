"""Why a verdict is what it is, in plain words with the numbers that it rests on."""

from __future__ import annotations

import math

from ragtune.evaluator.rule import Standing, costs_less
from ragtune.types import ArmSummary, Interval


def decided(standing: Standing) -> str:
    """Why the choice stands."""
    choice, leader = standing.choice, standing.leader
    if choice is leader:
        sentences = [f"`{choice.arm}` scores {_text(choice.score)}, and no arm scores higher."]
    else:
        sentences = [
            f"`{choice.arm}` scores {_text(choice.score)}, within {standing.margin:g} of the highest, "
            f"`{leader.arm}` with {leader.score.mean:.2f}, which costs {_ratio(leader, choice)}."
        ]
        if not choice.in_best_set:
            sentences.append(
                f"It is shown to be worse, by {_text(standing.difference(leader, choice))}, "
                "but by less than the margin."
            )
    sentences.append(_about_cheaper(standing))
    dearer = [s for s in standing.contenders if s.in_best_set and costs_less(choice.cost, s.cost)]
    if choice is leader and dearer:
        sentences.append(f"`{dearer[0].arm}` is not shown better and costs {_ratio(dearer[0], choice)}.")
    return " ".join((*sentences, *_about_dropped(standing)))


def undecided(standing: Standing, rival: ArmSummary, needed: int) -> str:
    """What is open: `rival` is cheaper than the choice and may be as good."""
    choice, leader = standing.choice, standing.leader
    than = "" if choice is leader else f" than `{leader.arm}`"
    open_case = (
        f"`{choice.arm}` scores {_text(choice.score)}. `{rival.arm}` would be cheaper and scores lower{than} by "
        f"{_text(standing.difference(leader, rival))}, which with {len(standing.contenders)} arms and {choice.n} "
        f"questions may still be chance; about {_two_digits(needed)} questions would tell."
    )
    return " ".join((open_case, *_about_dropped(standing)))


def _about_cheaper(standing: Standing) -> str:
    cheaper = [s for s in standing.others if costs_less(s.cost, standing.choice.cost)]
    if not cheaper:
        return "No other arm is cheaper."
    best = cheaper[0]
    which = "which would be cheaper" if len(cheaper) == 1 else f"the best of the {len(cheaper)} cheaper arms"
    than = "" if standing.choice is standing.leader else f" than `{standing.leader.arm}`"
    shared = standing.shared(standing.leader, best)
    where = "" if best.dropped_after is None else f" on the {shared} questions that both answered"
    return f"`{best.arm}`, {which}, is worse{than} by {_text(standing.difference(standing.leader, best))}{where}."


def _about_dropped(standing: Standing) -> list[str]:
    """One sentence on the arms that racing dropped; none where it dropped none."""
    after = sorted(s.dropped_after for s in standing.dropped if s.dropped_after is not None)
    if not after:
        return []
    span = f"{after[0]}" if after[0] == after[-1] else f"{after[0]} to {after[-1]}"
    if len(after) == 1:
        return [f"`{standing.dropped[0].arm}` was shown worse early and dropped after {span} questions."]
    whole = "All other arms" if len(standing.contenders) == 1 else f"{len(after)} arms"
    return [f"{whole} were shown worse early and dropped after {span} questions."]


def _text(interval: Interval) -> str:
    """`0.91 (0.86 to 0.95)`; a third decimal only where the interval is narrow enough to support it."""
    digits = 3 if interval.high - interval.low < 0.02 else 2
    mean, low, high = (f"{round(v, digits) + 0.0:.{digits}f}" for v in (interval.mean, interval.low, interval.high))
    return f"{mean} ({low} to {high})"


def _ratio(dear: ArmSummary, cheap: ArmSummary) -> str:
    """How much more `dear` costs than `cheap`, in words that follow `costs`."""
    if cheap.cost <= 0:
        return "more"
    ratio = dear.cost / cheap.cost
    if ratio < 1.95:
        return f"{100 * (ratio - 1):.0f} % more" if ratio >= 1.005 else "about as much"
    return f"{ratio:.{0 if ratio >= 9.5 else 1}f}".removesuffix(".0") + " times as much"


def _two_digits(n: int) -> int:
    """Rounded up to two significant digits."""
    unit: int = 10 ** max(0, len(str(n)) - 2)
    return math.ceil(n / unit) * unit
