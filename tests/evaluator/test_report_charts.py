"""The pictures of a report."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_sample import DATA, DECIDED, DIAGNOSIS, INGREDIENTS, summary

from ragtune.evaluator.report import canvas, charts, cost
from ragtune.evaluator.report.cost import Price

PRICES = cost.compared_prices(DATA, DECIDED)
PICTURES = {
    "scores": charts.scores_chart(DECIDED, "a"),
    "shares": charts.shares_chart(INGREDIENTS, "b"),
    "causes": charts.causes_chart(DIAGNOSIS, "c"),
    "costs": charts.cost_chart(DECIDED, "units", "d"),
    "totals": charts.totals_chart(DECIDED, PRICES, 1000, "units", "e"),
}


def texts(picture: str) -> list[str | None]:
    return [element.text for element in ElementTree.fromstring(picture).iter("text")]


def test_pictures_take_colours_font_and_size_from_the_page() -> None:
    for picture in PICTURES.values():
        root = ElementTree.fromstring(picture)
        assert set(root.attrib) == {"class", "viewBox", "role", "aria-labelledby"}
        assert root[0].tag == "title" and root[0].attrib["id"] == root.attrib["aria-labelledby"]
        colours = re.findall(r"(?:fill|stroke): ([^;\"]+)", picture)
        assert set(colours) <= {
            "none",
            *(f"var(--{name})" for name in ("ink", "muted", "soft", "line", "accent", "paper")),
        }
        assert "font-family" not in picture and "http" not in picture


def test_pictures_name_what_they_show() -> None:
    assert {"prompt", "retrieve", "raft", "oracle"} <= set(texts(PICTURES["scores"])) & set(texts(PICTURES["costs"]))
    assert {"prompting", "+0.02", "retrieval", "+0.38", "all together", "+0.60"} <= set(texts(PICTURES["shares"]))
    assert {"right", "5 of 7", "retrieval miss", "1 of 7"} <= set(texts(PICTURES["causes"]))
    assert {"prompt", "retrieve", "raft", "1,000", "10,000"} <= set(texts(PICTURES["totals"]))
    assert "oracle" not in texts(PICTURES["totals"])


def test_dropped_arms_are_grey_diamonds_with_their_number_of_questions() -> None:
    assert "0.10 (n 24)" in texts(PICTURES["scores"]) and "0.52" in texts(PICTURES["scores"])
    all_asked = replace(DECIDED, arms=tuple(replace(s, dropped_after=None) for s in DECIDED.arms))
    root = ElementTree.fromstring(charts.scores_chart(all_asked, "a"))
    dropped = ElementTree.fromstring(PICTURES["scores"])
    markers = [{e.attrib["d"] for e in tree.iter("path") if "id" in e.attrib} for tree in (root, dropped)]
    assert len(markers[1] - markers[0]) == 1  # one shape more: the diamond


def _horizontal(picture: str, colour: str) -> list[list[float]]:
    """x of the ends of each bar of a colour; bars are the only closed paths."""
    found = [
        e for e in ElementTree.fromstring(picture).iter("path") if f"fill: var(--{colour})" in e.attrib.get("style", "")
    ]
    numbers = ([float(n) for n in re.findall(r"[-\d.]+", e.attrib["d"])] for e in found if " z" in e.attrib["d"])
    return [[min(n[::2]), max(n[::2])] for n in numbers]


def test_bars_are_as_long_as_their_values() -> None:
    (right,), failures = _horizontal(PICTURES["causes"], "accent"), _horizontal(PICTURES["causes"], "soft")
    lengths = [end - start for start, end in [right, *failures]]
    assert lengths == pytest.approx([5 * lengths[1], lengths[1], lengths[1]], rel=1e-4)
    clear, unclear = _horizontal(PICTURES["shares"], "soft"), _horizontal(PICTURES["shares"], "line")
    lengths = [end - start for start, end in [*clear, *unclear]]
    assert lengths == pytest.approx([lengths[2] * share / 0.6 for share in (0.38, 0.2, 0.6, 0.02)], rel=1e-3)


def test_lines_of_total_cost_cross_at_the_rings() -> None:
    crossings = [b.questions for b in cost.break_evens(DATA, DECIDED)]
    rings = [e for e in ElementTree.fromstring(PICTURES["totals"]).iter("use") if "fill" in e.attrib["style"]]
    assert len(rings) == len(crossings) == 2
    decade = _tick(PICTURES["totals"], "10,000") - _tick(PICTURES["totals"], "1,000")
    apart = abs(float(rings[0].attrib["x"]) - float(rings[1].attrib["x"]))
    assert apart == pytest.approx(decade * abs(np.log10(crossings[0] / crossings[1])), rel=1e-3)


def _tick(picture: str, text: str) -> float:
    """The middle of a label below the picture's base line."""
    (label,) = (
        e for e in ElementTree.fromstring(picture).iter("text") if e.text == text and "middle" in e.attrib["style"]
    )
    return float(label.attrib["x"])


def test_free_and_extreme_arms_can_be_drawn() -> None:
    arms = (summary("prompt", 0.1, 0.0), summary("raft", 0.7, 1e4))
    verdict = replace(DECIDED, arms=arms)
    prices = (Price("raft", 1e7, 0.0), Price("prompt", 0.0, 0.0))
    drawn = texts(charts.totals_chart(verdict, prices, 1000, "units", "a"))
    assert "raft" in drawn and "prompt" not in drawn
    far = texts(charts.totals_chart(verdict, (prices[0], Price("prompt", 0.0, 1e-6)), 1000, "units", "a"))
    assert {"raft", "prompt"} <= set(far) and len(far) <= 2 + 2 + 6 + 6  # arms, titles, ticks of both axes


def test_long_names_leave_room_for_the_picture() -> None:
    name = f"{'m' * 60}:retrieve+few-shot"
    verdict = replace(DECIDED, arm=name, arms=(summary(name, 0.7, 0.1), summary("raft", 0.1, 0.1)))
    prices = (Price(name, 1.0, 0.1), Price("raft", 2.0, 0.01))
    for picture in (
        charts.scores_chart(verdict, "a"),
        charts.cost_chart(verdict, "units", "a"),
        charts.totals_chart(verdict, prices, 10, "units", "a"),
    ):
        assert "mmmmmmmmmmmmmm…ieve+few-shot" in texts(picture)


@given(st.lists(st.floats(0, 200), min_size=1, max_size=9))
def test_spread_keeps_order_and_distance(heights: list[float]) -> None:
    placed = canvas.spread(heights, 220.0)
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    steps = np.diff([placed[i] for i in order])
    assert (steps >= 14 - 1e-9).all() and max(placed) <= 220
    if len(heights) == 1 or np.diff(sorted(heights)).min() >= 14:
        assert placed == heights


def test_the_chosen_arm_stands_out_and_references_are_hollow() -> None:
    root = ElementTree.fromstring(charts.scores_chart(DECIDED, "a"))
    (label,) = (element for element in root.iter("text") if element.text == "raft")
    assert "var(--accent)" in label.attrib["style"] and "font-weight: 700" in label.attrib["style"]
    fills = [
        re.findall(r"fill: (\S+?)(?:;|$)", e.attrib["style"])[0]
        for e in root.iter("use")
        if "fill" in e.attrib["style"]
    ]
    assert fills == ["var(--soft)", "var(--ink)", "var(--paper)", "var(--accent)"]  # the chosen one on top


def test_two_pictures_on_a_page_share_no_ids() -> None:
    first, second = (set(re.findall(r'id="([^"]+)"', charts.scores_chart(DECIDED, i))) for i in ("a", "b"))
    assert first and second and not first & second
    assert charts.scores_chart(DECIDED, "a") == charts.scores_chart(DECIDED, "a")


def test_names_with_markup_are_drawn_as_they_are() -> None:
    odd = replace(DECIDED, task="a<b & $c$", arm="$x$<b>", arms=(summary("$x$<b>", 1.0, 1e-7), summary("b", 1.0, 1e-7)))
    for picture in (charts.scores_chart(odd, "a"), charts.cost_chart(odd, "units", "b")):
        assert "$x$<b>" in [element.text for element in ElementTree.fromstring(picture).iter("text")]


@given(
    st.lists(st.tuples(st.floats(0, 400), st.floats(0, 230)), min_size=1, max_size=9),
    st.lists(st.integers(20, 110), min_size=9, max_size=9),
)
@settings(max_examples=15, deadline=None)
def test_labels_overlap_neither_each_other_nor_points(points: list[tuple[float, float]], widths: list[int]) -> None:
    bounds = (0.0, 0.0, 440.0, 240.0)
    sizes = np.array([(width, 13.0) for width in widths[: len(points)]])
    middles = canvas.place_labels(np.array(points), sizes, bounds, np.array([(200.0, 100.0)]))
    low, high = middles - sizes / 2, middles + sizes / 2
    assert (low >= -1e-6).all() and (high[:, 0] <= 440 + 1e-6).all() and (high[:, 1] <= 240 + 1e-6).all()
    for i in range(len(points)):
        for j in range(i):
            assert ((low[i] >= high[j] - 1e-6) | (low[j] >= high[i] - 1e-6)).any()
        for x, y in points:
            assert not (low[i, 0] < x < high[i, 0] and low[i, 1] < y < high[i, 1])


def test_a_lone_label_stands_right_beside_its_point() -> None:
    (middle,) = canvas.place_labels(
        np.array([(50.0, 50.0)]), np.array([(40.0, 12.0)]), (0, 0, 440, 240), np.empty((0, 2))
    )
    assert tuple(middle) == (50 + 7 + 20, 50)
