"""Drawing with matplotlib for inline SVG that takes its colours and font from the page.

Colours are drawn as sentinels and become CSS variables, so that one SVG serves light and dark pages; text stays text.
The same figure gives the same bytes. Loads matplotlib, so import it only to draw.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.style
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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
WIDTH = 400  # pixels of one panel, as are all lengths below
ROW = 23
MARKER = 7  # a label's distance from the middle of a point
_LEAST = 14  # between two labels above each other


@contextmanager
def canvas(height: float) -> Iterator[Any]:
    """An empty figure, `WIDTH` by `height`, to be drawn and saved in this context."""
    with matplotlib.style.context(["default", _RC]):
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        FigureCanvasAgg(figure)
        figure.patch.set_visible(False)
        yield figure


def place_axes(figure: Any, left: float, bottom: float, width: float, height: float) -> Any:
    """Axes at a place in pixels from the lower left corner, with nothing but their ticks' texts and a base line."""
    whole = figure.get_figheight() * 72
    axes = figure.add_axes((left / WIDTH, bottom / whole, width / WIDTH, height / whole))
    axes.patch.set_visible(False)
    axes.spines[["left", "top", "right"]].set_visible(False)
    axes.spines["bottom"].set(color=LINE, linewidth=0.8)
    axes.tick_params(length=0, labelcolor=MUTED, pad=6)
    axes.set_axisbelow(True)
    return axes


def row_axes(figure: Any, names: Sequence[str], values: Sequence[str], styles: Sequence[dict[str, Any]]) -> Any:
    """Axes with one row for each name, which stands on the left; its value on the right. The caller scales x."""
    left = max(text_width(figure, name, style) for name, style in zip(names, styles, strict=True)) + 14
    right = max(text_width(figure, value, style) for value, style in zip(values, styles, strict=True)) + 16
    axes = place_axes(figure, left, 24, WIDTH - left - right, figure.get_figheight() * 72 - 30)
    axes.set(ylim=(len(names) - 0.5, -0.5), yticks=[])
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    across = axes.get_yaxis_transform()
    beside = {"xycoords": across, "textcoords": "offset pixels", "va": "center_baseline"}
    for y, (name, value, style) in enumerate(zip(names, values, styles, strict=True)):
        axes.annotate(name, (0, y), (-12, 0), ha="right", **beside, **style)
        axes.annotate(value, (1, y), (12, 0), **beside, **style)
    return axes


def text_width(figure: Any, text: str, style: dict[str, Any]) -> float:
    """Pixels, in DejaVu Sans, which is wider than most fonts that the page may use."""
    drawn = figure.text(0, 0, text, **style)
    width: float = drawn.get_window_extent(figure.canvas.get_renderer()).width
    drawn.remove()
    return width


def ticks(low: float, high: float, steps: Sequence[int]) -> list[float]:
    """The numbers between `low` and `high` that begin with one of the digits `steps`: 0.1, 0.3, 1, 3, ..."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    # parsed, not multiplied, so that 3 hundredths are 0.03 and not 0.030000000000000002
    return [
        t for t in (float(f"{step}e{decade}") for decade in decades for step in steps) if 1.02 * low <= t <= high / 1.06
    ]


def spread(heights: Sequence[float], top: float) -> list[float]:
    """The heights of labels, moved to stand at least 14 pixels apart and none above `top`; their order stays."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    for below, above in itertools.pairwise(order):
        placed[above] = max(placed[above], placed[below] + _LEAST)
    placed[order[-1]] = min(placed[order[-1]], top)
    for above, below in itertools.pairwise(reversed(order)):
        placed[below] = min(placed[below], placed[above] - _LEAST)
    return placed


def gap(point: Array, middle: Array, half: Array) -> Array:
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
        free = (own >= MARKER - 1e-9) & (nearest >= MARKER)
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
    right = np.add(point, (MARKER + half[0], 0.0))
    axes = []
    for beside, reach, low, high in zip(right, half, bounds[:2], bounds[2:], strict=True):
        steps = np.arange(math.ceil((low + reach - beside) / 4), math.floor((high - reach - beside) / 4) + 1)
        axes.append(beside + 4 * steps)
    return np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)


def _distance(point: Array, middle: Array, half: Array) -> Array:
    return np.asarray(np.hypot(*np.moveaxis(gap(point, middle, half), -1, 0)))


def svg(figure: Any, chart_id: str, title: str) -> str:
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
