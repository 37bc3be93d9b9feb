"""What scripts/bench_raft.py shows: tables in Markdown, and the curves as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
COLOURS = {"base": "#8a8f98", "closed-book": "#c98b2b", "gold-only": "#4f9d69", "raft": "#2f6fb3"}


def picture(figures: Mapping[str, Any]) -> Path:
    """Where the curves of a set are drawn to."""
    return IMAGES / f"raft-{figures['set']}.svg"


def lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """The headline, then exact match by number of passages and by share of rows with gold."""
    yield from _headline(figures)
    yield ""
    yield f"![Exact match by passages and by share of rows with gold](images/{picture(figures).name})"
    yield ""
    yield from _by_k(figures["by_k"])
    yield ""
    yield "| rows with gold | exact match | more than with gold in all rows |"
    yield "|---|---|---|"
    for line in figures["by_share"]:
        yield f"| {line['share']} % | {cell(line['score'])} | {signed(line['leads_100'])} |"
    yield ""
    learned = signed(figures["learned_from_distractors"])
    yield f"Trained with distractors instead of gold alone, over all k: {learned}."


def _headline(figures: Mapping[str, Any]) -> Iterator[str]:
    asked = f"{figures['questions']} {figures['split']} questions"
    yield f"`{figures['set']}`, {asked} with 3 retrieved passages, gold among them for {figures['recall']:.0%}:"
    yield f"exact match {figures['em_before']:.2f} before and {figures['em_after']:.2f} after {figures['minutes']:.0f}"
    yield f"minutes of training on {figures['rows']} rows ({signed(figures['difference'])})."
    yield f"F1 is then {figures['f1_after']:.2f}."


def _by_k(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    names = list(found[0]["scores"])
    yield "| passages | " + " | ".join(names) + " | " + " | ".join(f"raft - {n}" for n in names if n != "raft") + " |"
    yield "|---" * (2 * len(names)) + "|"
    for line in found:
        scores = [cell(line["scores"][name]) for name in names]
        leads = [signed(line["raft_leads"][name]) for name in names if name != "raft"]
        yield f"| {line['k']} | " + " | ".join(scores + leads) + " |"
    last = found[-1]
    changes = [signed(last["since_one"][name]) for name in names]
    yield f"| {last['k']} - 1 | " + " | ".join(changes + [""] * (len(names) - 1)) + " |"


def cell(interval: Mapping[str, float]) -> str:
    """A mean with its interval."""
    return f"{interval['mean']:.2f} ({interval['low']:.2f} to {interval['high']:.2f})"


def signed(interval: Mapping[str, float]) -> str:
    """A difference with its interval; bold where the interval leaves out 0."""
    text = f"{interval['mean']:+.2f} ({interval['low']:+.2f} to {interval['high']:+.2f})"
    return f"**{text}**" if interval["low"] > 0 or interval["high"] < 0 else text


def draw(figures: Mapping[str, Any], target: Path) -> None:
    """The curves as an SVG that is the same for the same figures."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "raft", "svg.fonttype": "path", "font.size": 9}):
        figure = Figure(figsize=(8.4, 3.4), layout="constrained", facecolor="white")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        ks = [line["k"] for line in figures["by_k"]]
        for name, colour in COLOURS.items():
            _curve(left, ks, [line["scores"][name] for line in figures["by_k"]], (name, colour))
        left.set(xlabel="passages given, gold among them", ylabel="exact match", xticks=ks, ylim=(0, None))
        left.legend(frameon=False)
        shares = [line["share"] for line in figures["by_share"]]
        _curve(right, shares, [line["score"] for line in figures["by_share"]], ("raft", COLOURS["raft"]))
        right.set(xlabel="% of training rows with gold", xticks=shares)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, metadata={"Date": None})


def _curve(axes: Any, x: Sequence[float], intervals: Sequence[Mapping[str, float]], style: tuple[str, str]) -> None:
    name, colour = style
    axes.plot(x, [i["mean"] for i in intervals], marker="o", markersize=4, color=colour, label=name)
    axes.fill_between(x, [i["low"] for i in intervals], [i["high"] for i in intervals], color=colour, alpha=0.12, lw=0)
