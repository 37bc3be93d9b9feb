"""The pictures of a report: matplotlib figures as inline SVG that takes its colours and font from the page.

Colours are drawn as sentinels and become CSS variables, so that one SVG serves light and dark pages; text stays text.
The same verdict gives the same bytes. Loads matplotlib, so import it only to draw.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

import matplotlib.style
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ragtune.evaluator.report import words
from ragtune.evaluator.report.tables import pareto_front
from ragtune.types import ArmSummary, Verdict

Array = npt.NDArray[np.float64]

INK, MUTED, SOFT, LINE, ACCENT, PAPER = (f"#01020{digit}" for digit in range(6))
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    SOFT: "var(--soft)",
    LINE: "var(--line)",
    ACCENT: "var(--accent)",
    PAPER: "var(--paper)",
}
_RC = {"svg.fonttype": "none", "text.parse_math": False, "figure.dpi": 72, "font.size": 11, "path.simplify": False}
_WIDTH = 400  # pixels of one panel, as are all lengths below
_ROW = 23
_MARKER = 7  # a label's distance from the middle of a point


def scores_chart(verdict: Verdict, chart_id: str) -> str:
    """One row an arm: its mean score as a point, its interval as a line. Returns an `<svg>` element."""
    with matplotlib.style.context(["default", _RC]):
        height = _ROW * len(verdict.arms) + 30
        figure = _figure(height)
        left = max(_width_of(figure, s, verdict) for s in verdict.arms) + 14
        axes = _axes(figure, left, 24, _WIDTH - left - 44, height - 30)
        axes.set(xlim=(0, 1), ylim=(len(verdict.arms) - 0.5, -0.5), yticks=[])
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.50", "0.75", "1"])
        axes.grid(axis="x", color=LINE, linewidth=0.8)
        for y, s in enumerate(verdict.arms):
            text = _label_style(s, verdict)
            axes.plot([s.score.low, s.score.high], [y, y], **_line_style(s, verdict))
            axes.plot([s.score.mean], [y], **_point_style(s, verdict))
            axes.annotate(s.arm, (0, y), (-12, 0), textcoords="offset pixels", ha="right", va="center_baseline", **text)
            axes.annotate(
                words.mean(s.score), (1, y), (12, 0), textcoords="offset pixels", va="center_baseline", **text
            )
        return _svg(figure, chart_id, f"{verdict.task}: score of each arm with its interval")


def cost_chart(verdict: Verdict, currency: str, chart_id: str) -> str:
    """Cost per question (logarithmic unless something is free) against mean score. Returns an `<svg>` element.

    The step line is the Pareto front: the best score that each cost can buy.
    """
    with matplotlib.style.context(["default", _RC]):
        figure = _figure(300)
        axes = _axes(figure, 36, 42, _WIDTH - 46, 300 - 68)
        logarithmic = min(s.cost for s in verdict.arms) > 0
        room = max(_width_of(figure, s, verdict) for s in verdict.arms) + _MARKER + 4
        _cost_scale(axes, [s.cost for s in verdict.arms], min(room / (_WIDTH - 46), 0.45), logarithmic)
        _score_scale(axes, [s.score.mean for s in verdict.arms])
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        scale = "logarithmic scale" if logarithmic else "linear scale"
        axes.set_xlabel(f"cost per question ({currency}), {scale}", color=MUTED, labelpad=6)
        figure.text(0, 1 - 14 / 300, "mean score", color=MUTED)
        front = _draw_front(axes, verdict)
        for s in verdict.arms:
            axes.plot([s.cost], [s.score.mean], **_point_style(s, verdict))
        _draw_labels(axes, verdict, front)
        return _svg(figure, chart_id, f"{verdict.task}: cost per question against score of each arm")


def _figure(height: float) -> Any:
    figure = Figure(figsize=(_WIDTH / 72, height / 72))
    FigureCanvasAgg(figure)
    figure.patch.set_visible(False)
    return figure


def _axes(figure: Any, left: float, bottom: float, width: float, height: float) -> Any:
    """Axes at a place in pixels from the lower left corner, with nothing but their ticks' texts and a base line."""
    whole = figure.get_figheight() * 72
    axes = figure.add_axes((left / _WIDTH, bottom / whole, width / _WIDTH, height / whole))
    axes.patch.set_visible(False)
    axes.spines[["left", "top", "right"]].set_visible(False)
    axes.spines["bottom"].set(color=LINE, linewidth=0.8)
    axes.tick_params(length=0, labelcolor=MUTED, pad=6)
    axes.set_axisbelow(True)
    return axes


def _width_of(figure: Any, s: ArmSummary, verdict: Verdict) -> float:
    # in DejaVu Sans, which is wider than most fonts that the page may use
    drawn = figure.text(0, 0, s.arm, **_label_style(s, verdict))
    width: float = drawn.get_window_extent(figure.canvas.get_renderer()).width
    drawn.remove()
    return width


def _tone(s: ArmSummary, verdict: Verdict) -> str:
    if s.arm == verdict.arm:
        return ACCENT
    return INK if s.in_best_set and not s.reference else SOFT


def _point_style(s: ArmSummary, verdict: Verdict) -> dict[str, Any]:
    tone = _tone(s, verdict)
    face = PAPER if s.reference else tone
    size = 10 if s.arm == verdict.arm else 7.5
    return {
        "marker": "o", "markersize": size, "color": tone, "markerfacecolor": face, "markeredgewidth": 1.5,
        "zorder": 4.5 if s.arm == verdict.arm else 4, "clip_on": False, "linestyle": "none",
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
    ticks = next(found for found in (_ticks(low, high, steps) for steps in _STEPS) if len(found) <= 6)
    axes.set_xticks(ticks, [format(tick, "g") if tick >= 1e-4 else words.two_digits(tick) for tick in ticks])
    axes.set_xticks([], minor=True)


_STEPS = ((1, 2, 5), (1, 3), (1,), ())


def _ticks(low: float, high: float, steps: Sequence[int]) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    # parsed, not multiplied, so that 3 hundredths are 0.03 and not 0.030000000000000002
    return [
        t for t in (float(f"{step}e{decade}") for decade in decades for step in steps) if 1.02 * low <= t <= high / 1.06
    ]


def _score_scale(axes: Any, scores: Sequence[float]) -> None:
    """The part of [0, 1] that the scores fill, in tenths, at least 0.3 of it."""
    low = math.floor(10 * min(scores) - 0.3) / 10
    high = math.ceil(10 * max(scores) + 0.3) / 10
    low = max(0.0, min(low, high - 0.3))
    high = min(1.0, max(high, low + 0.3))
    low = min(low, high - 0.3)
    step = 0.1 if high - low < 0.65 else 0.2
    ticks = np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1) * step
    axes.set_ylim(low, high)
    axes.set_yticks(ticks, [f"{tick:.1f}" for tick in ticks])


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
    sizes = np.array([(_width_of(axes.figure, s, verdict), 13.0) for s in order])
    area = axes.get_window_extent()
    bounds = (area.x0 + 2, area.y0 + 2, _WIDTH - 2.0, area.y1 + 8)
    for s, point, size, middle in zip(order, points, sizes, place_labels(points, sizes, bounds, front), strict=True):
        half = size / 2
        gap = _gap(point, middle, half)
        if np.hypot(*gap) > 1.6 * _MARKER:
            ends = np.array([point, point + gap])
            axes.plot(
                *axes.transData.inverted().transform(ends).T, color=SOFT, linewidth=0.8, zorder=2.5, clip_on=False
            )
        anchor = {"xy": middle - (half[0], 0), "xycoords": "figure pixels", "va": "center_baseline", "zorder": 5}
        axes.annotate(s.arm, **anchor, **_label_style(s, verdict), annotation_clip=False)


def _gap(point: Array, middle: Array, half: Array) -> Array:
    """The way from a point to the nearest edge of a box, (0, 0) inside; works on arrays of shape (..., 2)."""
    offset = middle - point
    return np.asarray(np.sign(offset) * np.maximum(np.abs(offset) - half, 0))


def place_labels(points: Array, sizes: Array, bounds: tuple[float, float, float, float], avoid: Array) -> Array:
    """Middles of labels near their points, free of each other and of all points; shapes (n, 2) -> (n, 2), pixels.

    Each label in turn takes the free place nearest to its point inside `bounds` (x0, y0, x1, y1), rather to the right
    and level with it, and rather off the points `avoid`, shape (m, 2). Only in a picture so full that nothing is free
    does a label lie over another.
    """
    placed: list[Array] = []
    for i, (point, size) in enumerate(zip(points, sizes, strict=True)):
        half = size / 2
        middles = _candidates(point, half, bounds)
        own = _distance(point, middles, half)
        others = np.delete(points, i, axis=0)
        nearest = _distance(others[:, None], middles, half).min(axis=0, initial=np.inf)
        free = (own >= _MARKER - 1e-9) & (nearest >= _MARKER)
        for other, other_size in zip(placed, sizes, strict=False):
            free &= (np.abs(middles - other) >= half + other_size / 2).any(axis=1)
        offset = middles - point
        cost = own + 0.1 * np.abs(offset[:, 1]) + 2.0 * (offset[:, 0] < 0)
        cost += 12.0 * (nearest < own + 2)  # it would seem to name another point
        cost += 8.0 * (_distance(avoid[:, None], middles, half) == 0).any(axis=0)
        placed.append(middles[np.argmin(np.where(free, cost, cost + 1e6))])
    return np.array(placed)


def _candidates(point: Array, half: Array, bounds: tuple[float, float, float, float]) -> Array:
    """Middles of boxes inside the bounds on a grid of 4 pixels that holds the place right beside the point."""
    right = np.add(point, (_MARKER + half[0], 0.0))
    axes = []
    for beside, reach, low, high in zip(right, half, bounds[:2], bounds[2:], strict=True):
        steps = np.arange(math.ceil((low + reach - beside) / 4), math.floor((high - reach - beside) / 4) + 1)
        axes.append(beside + 4 * steps)
    return np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)


def _distance(point: Array, middle: Array, half: Array) -> Array:
    return np.asarray(np.hypot(*np.moveaxis(_gap(point, middle, half), -1, 0)))


def _svg(figure: Any, chart_id: str, title: str) -> str:
    """The figure as one `<svg>` element without fixed size, colours, font or links to anything outside."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": chart_id}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    root = ET.fromstring(file.getvalue())
    links = re.findall(r'(?:href="|url\()#([^")]+)', file.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        _clean(element, links)
    named = ET.Element("title", {"id": f"{chart_id}-title"})
    named.text = title
    root.insert(0, named)
    root.attrib = {
        "class": "chart", "viewBox": root.attrib["viewBox"], "role": "img", "aria-labelledby": f"{chart_id}-title"
    }  # fmt: skip
    return ET.tostring(root, encoding="unicode")


def _clean(element: ET.Element, links: Sequence[str]) -> None:
    element.tag = element.tag.partition("}")[2]
    element.attrib = {name.partition("}")[2] or name: value for name, value in element.attrib.items()}
    if element.attrib.get("id") not in links:
        element.attrib.pop("id", None)
    if element.attrib.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    if "style" in element.attrib:
        style = re.sub(r"font-family: [^;]*; ?", "", element.attrib["style"])
        element.attrib["style"] = re.sub("#01020[0-5]", lambda match: _VARIABLES[match[0]], style)
    if "d" in element.attrib:
        element.attrib["d"] = " ".join(element.attrib["d"].split())
    if element.tag != "text":
        element.text = None
    element.tail = None
