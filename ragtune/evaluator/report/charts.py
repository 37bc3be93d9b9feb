"""The pictures of a report, each as one `<svg>` element. Loads matplotlib, so import it only to draw."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from ragtune.evaluator.attribute import Diagnosis
from ragtune.evaluator.ingredients import Effect, Ingredients
from ragtune.evaluator.report import words
from ragtune.evaluator.report.canvas import (
    ACCENT,
    INK,
    LINE,
    MARKER,
    MUTED,
    PAPER,
    ROW,
    SOFT,
    WIDTH,
    Array,
    canvas,
    gap,
    place_axes,
    place_labels,
    row_axes,
    spread,
    svg,
    text_width,
    ticks,
)
from ragtune.evaluator.report.cost import Price, break_even, pareto_front
from ragtune.evaluator.report.data import TrainingFacts
from ragtune.evaluator.report.findings import clear
from ragtune.evaluator.report.training import best_step, smoothed
from ragtune.types import ArmSummary, Interval, Verdict


def scores_chart(verdict: Verdict, chart_id: str) -> str:
    """One row an arm: its mean score as a point, its interval as a line. Returns an `<svg>` element.

    Arms that racing dropped are greyed diamonds with the number of questions that they answered.
    """
    with canvas(ROW * len(verdict.arms) + 30) as figure:
        values = [words.mean(s.score) + (f" (n {s.n})" if _dropped(s) else "") for s in verdict.arms]
        styles = [_label_style(s, verdict) for s in verdict.arms]
        axes = row_axes(figure, [words.short(s.arm) for s in verdict.arms], values, styles)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.50", "0.75", "1"])
        for y, s in enumerate(verdict.arms):
            axes.plot([s.score.low, s.score.high], [y, y], **_line_style(s, verdict))
            axes.plot([s.score.mean], [y], **_point_style(s, verdict))
        return svg(figure, chart_id, f"{verdict.task}: score of each arm with its interval")


def shares_chart(found: Ingredients, chart_id: str) -> str:
    """One row an ingredient: its share of the gain as a bar from 0, its interval as a line; then the whole gain."""
    bars = [*found.shares, Effect("all together", found.gain)]
    with canvas(ROW * len(bars) + 30) as figure:
        styles = [{"color": INK if clear(e.value) else MUTED} for e in bars]
        styles[-1]["fontweight"] = "bold"
        axes = row_axes(figure, [e.name for e in bars], [words.mean(e.value, signed=True) for e in bars], styles)
        low, high = min(0.0, *(e.value.low for e in bars)), max(0.0, *(e.value.high for e in bars))
        low, high = math.floor(low * 10) / 10, math.ceil(high * 10) / 10
        step = next(s for s in (0.1, 0.2, 0.25, 0.5, 1.0) if (high - low) / s <= 6)
        at = np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1) * step
        axes.set_xlim(low, high)
        axes.set_xticks(at, [words.signed(tick) for tick in at])
        axes.axvline(0, color=SOFT, linewidth=1, zorder=1)
        for y, effect in enumerate(bars):
            _bar(axes, y, effect.value, SOFT if clear(effect.value) else LINE)
        return svg(figure, chart_id, f"{found.task}: share of each ingredient in the gain, with its interval")


def causes_chart(found: Diagnosis, chart_id: str) -> str:
    """One row a cause: its share of the chosen arm's answers as a bar, its interval as a line."""
    with canvas(ROW * len(found.causes) + 30) as figure:
        styles = [{"color": ACCENT if c.cause == "right" else INK} for c in found.causes]
        names, values = [c.cause for c in found.causes], [f"{c.count} of {found.n}" for c in found.causes]
        axes = row_axes(figure, names, values, styles)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        for y, c in enumerate(found.causes):
            _bar(axes, y, c.share, ACCENT if c.cause == "right" else SOFT)
        return svg(figure, chart_id, f"{found.task}: causes of failure among the answers of {found.arm}")


def _bar(axes: Any, y: int, value: Interval, colour: str) -> None:
    axes.barh(y, value.mean, height=0.5, color=colour, zorder=2)
    ends = {"marker": "|", "markersize": 7, "markeredgewidth": 1.6, "solid_capstyle": "butt"}
    axes.plot([value.low, value.high], [y, y], color=INK, linewidth=1.6, zorder=3, clip_on=False, **ends)


def cost_chart(verdict: Verdict, currency: str, chart_id: str) -> str:
    """Cost per question (logarithmic unless something is free) against mean score. Returns an `<svg>` element.

    The step line is the Pareto front: the best score that each cost can buy.
    """
    with canvas(300) as figure:
        axes = place_axes(figure, 36, 42, WIDTH - 46, 300 - 68)
        logarithmic = min(s.cost for s in verdict.arms) > 0
        room = max(text_width(figure, words.short(s.arm), _label_style(s, verdict)) for s in verdict.arms) + MARKER + 4
        _cost_scale(axes, [s.cost for s in verdict.arms], min(room / (WIDTH - 46), 0.45), logarithmic)
        _score_scale(axes, [s.score.mean for s in verdict.arms])
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        scale = "logarithmic scale" if logarithmic else "linear scale"
        axes.set_xlabel(f"cost per question ({currency}), {scale}", color=MUTED, labelpad=6)
        figure.text(0, 1 - 14 / 300, "mean score", color=MUTED)
        front = _draw_front(axes, verdict)
        for s in verdict.arms:
            axes.plot([s.cost], [s.score.mean], **_point_style(s, verdict))
        _draw_labels(axes, verdict, front)
        return svg(figure, chart_id, f"{verdict.task}: cost per question against score of each arm")


def totals_chart(verdict: Verdict, prices: Sequence[Price], paid_off: int, currency: str, chart_id: str) -> str:
    """Total cost against the number of questions, both logarithmic: one line an arm, the chosen arm's price first.

    Rings mark where a line crosses that of the chosen arm, a dashed line the number of questions over which costs per
    question spread the training. An arm that costs nothing has no place on such a scale and is left out.
    """
    drawn = [p for p in prices if p.training + p.question > 0]
    styles = [_label_style(verdict.summary(p.arm), verdict) for p in drawn]
    crossings = [b.questions for b in (break_even(prices[0], p) for p in prices[1:]) if b.questions is not None]
    numbers = _decades([paid_off, *crossings], 4)
    with canvas(300) as figure:
        right = max(text_width(figure, words.short(p.arm), style) for p, style in zip(drawn, styles, strict=True)) + 16
        axes = place_axes(figure, 52, 42, WIDTH - 52 - right, 300 - 68)
        axes.set(xscale="log", yscale="log", xlim=(numbers[0], numbers[-1]))
        totals = [p.total(n) for p in drawn for n in (numbers[0], numbers[-1])]
        axes.set_ylim(10 ** (math.log10(min(totals)) - 0.1), 10 ** (math.log10(max(totals)) + 0.1))
        _decade_ticks(axes, numbers)
        axes.grid(color=LINE, linewidth=0.8)
        axes.set_xlabel("number of questions, logarithmic scale", color=MUTED, labelpad=6)
        figure.text(0, 1 - 14 / 300, f"total cost ({currency}), logarithmic scale", color=MUTED)
        axes.axvline(paid_off, color=SOFT, linewidth=1.2, dashes=(4, 3), zorder=1)
        _draw_totals(axes, verdict, drawn, styles, numbers)
        for n in crossings:
            axes.plot([n], [prices[0].total(n)], "o", markersize=8, markerfacecolor=PAPER, color=INK, zorder=5)
        return svg(figure, chart_id, f"{verdict.task}: total cost of each arm against the number of questions")


def losses_chart(facts: TrainingFacts, chart_id: str) -> str:
    """Loss against steps: a point for each step (at most 500 of them), their running mean as a line.

    A dashed line marks the step that dev questions chose.
    """
    n = len(facts.losses)
    steps = np.unique(np.linspace(1, n, min(n, 500)).round().astype(int))
    with canvas(300) as figure:
        axes = place_axes(figure, 44, 42, WIDTH - 60, 300 - 68)
        axes.set(xlim=(0, n + 1), ylim=(0, 1.05 * max(facts.losses)))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        axes.set_xlabel("optimiser step", color=MUTED, labelpad=6)
        figure.text(0, 1 - 14 / 300, "loss (nats per answer token)", color=MUTED)
        axes.plot(steps, np.array(facts.losses)[steps - 1], ".", markersize=5, color=SOFT, markeredgewidth=0, zorder=2)
        axes.plot(steps, np.array(smoothed(facts.losses))[steps - 1], color=ACCENT, linewidth=2, zorder=3)
        if (best := best_step(facts)) is not None:
            axes.axvline(best, color=INK, linewidth=1.2, dashes=(4, 3), zorder=1)
        return svg(figure, chart_id, f"{facts.adapter}: loss at each optimiser step of training")


def _decades(numbers: Sequence[float], least: int) -> list[float]:
    """Powers of ten around the numbers, `least` or more of them."""
    low = max(0, math.floor(math.log10(min(numbers)) - 0.3))
    high = max(math.ceil(math.log10(max(numbers)) + 0.3), low + least - 1)
    return [10.0**exponent for exponent in range(low, high + 1)]


def _decade_ticks(axes: Any, numbers: Sequence[float]) -> None:
    """At most six labels across and as many up, each a power of ten."""
    low, high = axes.get_ylim()
    for axis, values in ((axes.xaxis, list(numbers)), (axes.yaxis, ticks(low, high, (1,)))):
        shown = values[:: math.ceil(len(values) / 6)] or values
        axis.set_ticks(shown, [words.power(value) for value in shown])
        axis.set_ticks([], minor=True)


def _draw_totals(
    axes: Any, verdict: Verdict, prices: Sequence[Price], styles: Sequence[dict[str, Any]], numbers: Sequence[float]
) -> None:
    """The lines, each named at its right end."""
    across = np.geomspace(numbers[0], numbers[-1], 60)
    area = axes.get_window_extent()
    ends = [axes.transData.transform((numbers[-1], p.total(numbers[-1])))[1] for p in prices]
    for p, style, end, height in zip(prices, styles, ends, spread(ends, area.y1), strict=True):
        axes.plot(across, [p.total(n) for n in across], **_line_style(verdict.summary(p.arm), verdict))
        corner = axes.transData.inverted().transform([(area.x1, end), (area.x1 + 10, height)])
        axes.plot(*corner.T, color=SOFT, linewidth=0.8, clip_on=False)
        axes.annotate(
            words.short(p.arm), (area.x1 + 13, height), xycoords="figure pixels", va="center_baseline", **style
        )


def _dropped(s: ArmSummary) -> bool:
    return s.dropped_after is not None


def _tone(s: ArmSummary, verdict: Verdict) -> str:
    if s.arm == verdict.arm:
        return ACCENT
    return INK if s.in_best_set and not s.reference else SOFT


def _point_style(s: ArmSummary, verdict: Verdict) -> dict[str, Any]:
    tone = _tone(s, verdict)
    face = PAPER if s.reference else tone
    size = 10 if s.arm == verdict.arm else 7.5
    return {
        "marker": "D" if _dropped(s) else "o", "markersize": 5.5 if _dropped(s) else size, "color": tone,
        "markerfacecolor": face, "markeredgewidth": 1.5, "zorder": 4.5 if s.arm == verdict.arm else 4,
        "clip_on": False, "linestyle": "none",
    }  # fmt: skip


def _line_style(s: ArmSummary, verdict: Verdict) -> dict[str, Any]:
    width = 3 if s.arm == verdict.arm else 1.6
    return {"color": _tone(s, verdict), "linewidth": width, "zorder": 3, "clip_on": False, "solid_capstyle": "butt"}


def _label_style(s: ArmSummary, verdict: Verdict) -> dict[str, Any]:
    if s.arm == verdict.arm:
        return {"color": ACCENT, "fontweight": "bold"}
    return {"color": INK if s.in_best_set and not s.reference else MUTED}


def _cost_scale(axes: Any, costs: Sequence[float], room: float, logarithmic: bool) -> None:
    """Limits that leave `room`, a share of the axis, free on the right, where the labels of the dearest arms stand.

    A logarithmic axis spans a factor of 4 at least, so that it has some ticks.
    """
    low, high = min(costs), max(costs)
    if not logarithmic:
        axes.set_xlim(0, high / (1 - room) or 1)
        return
    spare = max(1.0, math.sqrt(2.5 * low / high))
    low, high = low / spare, high * spare
    axes.set_xscale("log")
    low, high = low * (low / high) ** 0.06, high * (high / low) ** (room / (1 - room))
    axes.set_xlim(low, high)
    at = next(found for found in (ticks(low, high, steps) for steps in _STEPS) if len(found) <= 6)
    axes.set_xticks(at, [format(tick, "g") if tick >= 1e-4 else words.two_digits(tick) for tick in at])
    axes.set_xticks([], minor=True)


_STEPS = ((1, 2, 5), (1, 3), (1,), ())


def _score_scale(axes: Any, scores: Sequence[float]) -> None:
    """The part of [0, 1] that the scores fill, in tenths, at least 0.3 of it."""
    low = math.floor(10 * min(scores) - 0.3) / 10
    high = math.ceil(10 * max(scores) + 0.3) / 10
    low = max(0.0, min(low, high - 0.3))
    high = min(1.0, max(high, low + 0.3))
    low = min(low, high - 0.3)
    step = 0.1 if high - low < 0.65 else 0.2
    at = np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1) * step
    axes.set_ylim(low, high)
    axes.set_yticks(at, [f"{tick:.1f}" for tick in at])


def _draw_front(axes: Any, verdict: Verdict) -> Array:
    """The step line; returns points along it in pixels, shape (n, 2)."""
    front = pareto_front(verdict)
    x = [s.cost for s in front] + [axes.get_xlim()[1]]
    y = [s.score.mean for s in front] + [front[-1].score.mean]
    axes.plot(x, y, drawstyle="steps-post", color=SOFT, linewidth=1.2, dashes=(4, 3), zorder=2, clip_on=False)
    corners = axes.transData.transform(np.column_stack([np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]]))
    pieces = itertools.pairwise(corners)
    return np.concatenate([np.linspace(a, b, 2 + int(np.abs(b - a).max() / 6)) for a, b in pieces])


def _draw_labels(axes: Any, verdict: Verdict, front: Array) -> None:
    """Each arm's name beside its point, joined to it by a thin line where it had to move away."""
    # who comes first gets the better place: the chosen arm, then from the right, where room is scarce
    order = sorted(verdict.arms, key=lambda s: (s.arm != verdict.arm, -s.cost, s.score.mean))
    points = axes.transData.transform([(s.cost, s.score.mean) for s in order])
    sizes = np.array([(text_width(axes.figure, words.short(s.arm), _label_style(s, verdict)), 13.0) for s in order])
    area = axes.get_window_extent()
    bounds = (area.x0 + 2, area.y0 + 2, WIDTH - 2.0, area.y1 + 8)
    for s, point, size, middle in zip(order, points, sizes, place_labels(points, sizes, bounds, front), strict=True):
        half = size / 2
        way = gap(point, middle, half)
        if np.hypot(*way) > 1.6 * MARKER:
            ends = np.array([point, point + way])
            axes.plot(
                *axes.transData.inverted().transform(ends).T, color=SOFT, linewidth=0.8, zorder=2.5, clip_on=False
            )
        anchor = {"xy": middle - (half[0], 0), "xycoords": "figure pixels", "va": "center_baseline", "zorder": 5}
        axes.annotate(words.short(s.arm), **anchor, **_label_style(s, verdict), annotation_clip=False)
