"""ReportData -> `report.html`, `report.md` and `report.json`, all with the same values.

The HTML opens offline: one template, its style sheet and its pictures in one file, no scripts and nothing to load.
Answers and documents are untrusted text, so the template escapes everything and the page's policy forbids the rest.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from ragtune.evaluator.report import tables, words
from ragtune.evaluator.report.data import ReportData
from ragtune.evaluator.report.examples import Given, choose_examples, runner_up
from ragtune.evaluator.report.markdown import markdown
from ragtune.store import write_json, write_text

HTML = "report.html"
MARKDOWN = "report.md"
JSON = "report.json"


def write_report(data: ReportData, folder: Path) -> Path:
    """Write the report's three forms into `folder`, which exists, and return the path of the HTML.

    Equal data give equal bytes. Raises: StoreError when the folder cannot be written.
    """
    write_json(folder / JSON, as_json(data))
    write_text(folder / MARKDOWN, markdown(data))
    write_text(folder / HTML, html(data))
    return folder / HTML


def as_json(data: ReportData) -> dict[str, Any]:
    """All values of the report, unrounded; a row that is not among the examples stays in the run."""
    return {
        "project": data.project,
        "currency": data.currency,
        "tasks": [
            {
                "facts": asdict(data.task(verdict.task)),
                "verdict": asdict(verdict),
                "runner_up": runner_up(verdict),
                "pareto_front": [s.arm for s in tables.pareto_front(verdict)],
                "measures": [asdict(m) for m in tables.measures(data, verdict)],
                "examples": [
                    {
                        "question": asdict(example.question),
                        "won": example.won,
                        "chosen": _given(example.chosen),
                        "other": _given(example.other),
                    }
                    for example in choose_examples(data, verdict)
                ],
            }
            for verdict in data.verdicts
        ],
        "arms": [asdict(arm) | {"description": words.describe(arm)} for arm in data.arms],
        "settings": dict(data.settings),
        "statistics": list(words.STATISTICS),
        "provenance": dict(data.provenance),
    }


def _given(given: Given) -> dict[str, Any]:
    passages = [asdict(read.passage) | {"gold": read.gold, "cited": read.cited} for read in given.passages]
    return {"row": asdict(given.row), "passages": passages}


def html(data: ReportData) -> str:
    """The whole page."""
    from ragtune.evaluator.report import charts  # matplotlib: only when there is something to draw

    pictures: Mapping[str, Any] = {
        "scores": {v.task: Markup(charts.scores_chart(v, f"scores-{i}")) for i, v in enumerate(data.verdicts)},
        "costs": {
            v.task: Markup(charts.cost_chart(v, data.currency, f"cost-{i}")) for i, v in enumerate(data.verdicts)
        },
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["code"] = code
    template = environment.from_string(_read("report.html"))
    return template.render(
        data=data,
        words=words,
        tables=tables,
        pictures=pictures,
        cost_table=functools.partial(tables.cost_table, data),
        examples=choose_examples,
        runner_up=runner_up,
        css=Markup(_read("report.css")),
    )


def code(text: str) -> Markup:
    """Escaped text in which `...` becomes a code element."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:  # a backtick without its pair is a character like any other
        return escape(text)
    marked = (Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(pieces))
    return Markup("").join(marked)


def _read(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
