"""ReportData -> `report.html`, `report.md` and `report.json`, all with the same values.

The HTML opens offline: a template in parts, its style sheet and its pictures in one file, no scripts and nothing to
load. Answers and documents are untrusted text, so the template escapes everything and the page's policy forbids the
rest.
"""

from __future__ import annotations

from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from ragtune.evaluator.report import cost, findings, measures, tables, training, words
from ragtune.evaluator.report.data import ReportData
from ragtune.evaluator.report.examples import Given, choose_examples, runner_up
from ragtune.evaluator.report.markdown import markdown
from ragtune.store import write_json, write_text
from ragtune.types import Verdict

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
        "tasks": [_task(data, verdict) for verdict in data.verdicts],
        "arms": [asdict(arm) | {"description": words.describe(arm)} for arm in data.arms],
        "settings": dict(data.settings),
        "statistics": list(words.STATISTICS),
        "race": asdict(data.race) if data.race else None,
        "forgetting": [asdict(found) for found in data.forgetting],
        "router": asdict(data.router) if data.router else None,
        "freshness": dict(data.freshness),
        "training_cost": dict(data.training_cost),
        "questions_paid_off": data.questions_paid_off,
        "training": [asdict(facts) for facts in data.training],
        "provenance": dict(data.provenance),
    }


def _task(data: ReportData, verdict: Verdict) -> dict[str, Any]:
    return {
        "facts": asdict(data.task(verdict.task)),
        "verdict": asdict(verdict),
        "runner_up": runner_up(verdict),
        "findings": asdict(data.findings_of(verdict.task)),
        "pareto_front": [s.arm for s in cost.pareto_front(verdict)],
        "break_even": [asdict(found) for found in cost.break_evens(data, verdict)],
        "speed": [asdict(s) for s in cost.speeds(data, verdict)],
        "measures": [asdict(m) for m in measures.measures(data, verdict)],
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


def _given(given: Given) -> dict[str, Any]:
    passages = [asdict(read.passage) | {"gold": read.gold, "cited": read.cited} for read in given.passages]
    return {"row": asdict(given.row), "passages": passages}


def html(data: ReportData) -> str:
    """The whole page."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_read)
    )
    environment.filters["code"] = code
    return environment.get_template(HTML).render(
        data=data,
        words=words,
        tables=tables,
        cost=cost,
        findings=findings,
        measures=measures,
        training=training,
        pictures=_pictures(data),
        examples=choose_examples,
        runner_up=runner_up,
        css=Markup(_read("report.css")),
    )


def _pictures(data: ReportData) -> dict[str, dict[str, Markup]]:
    """By kind and task (losses: by adapter); only those for which there is something to draw."""
    from ragtune.evaluator.report import charts  # matplotlib: only when there is something to draw

    found: dict[str, dict[str, Markup]] = {
        kind: {} for kind in ("scores", "shares", "causes", "costs", "totals", "losses")
    }
    for i, verdict in enumerate(data.verdicts):
        why = data.findings_of(verdict.task)
        prices = cost.compared_prices(data, verdict)
        found["scores"][verdict.task] = Markup(charts.scores_chart(verdict, f"scores-{i}"))
        found["costs"][verdict.task] = Markup(charts.cost_chart(verdict, data.currency, f"cost-{i}"))
        if why.ingredients:
            found["shares"][verdict.task] = Markup(charts.shares_chart(why.ingredients, f"shares-{i}"))
        if why.diagnosis:
            found["causes"][verdict.task] = Markup(charts.causes_chart(why.diagnosis, f"causes-{i}"))
        if any(p.training > 0 for p in prices):
            chart = charts.totals_chart(verdict, prices, data.questions_paid_off, data.currency, f"total-{i}")
            found["totals"][verdict.task] = Markup(chart)
    for i, facts in enumerate(data.training):
        found["losses"][facts.adapter] = Markup(charts.losses_chart(facts, f"losses-{i}"))
    return found


def code(text: str) -> Markup:
    """Escaped text in which `...` becomes a code element, and no line ends between a number and its %."""
    text = text.replace(" %", "\N{NO-BREAK SPACE}%")
    pieces = text.split("`")
    if len(pieces) % 2 == 0:  # a backtick without its pair is a character like any other
        return escape(text)
    marked = (Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(pieces))
    return Markup("").join(marked)


def _read(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
