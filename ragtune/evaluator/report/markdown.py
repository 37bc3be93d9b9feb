"""The report as Markdown: the same tables and examples, with tables in the place of pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ragtune.evaluator.attribute import Diagnosis
from ragtune.evaluator.report import cost, findings, measures, tables, training, words
from ragtune.evaluator.report.data import ReportData
from ragtune.evaluator.report.examples import Example, Given, choose_examples, runner_up
from ragtune.evaluator.report.tables import Table
from ragtune.types import Verdict

_SPECIAL = re.compile(r"([\\`*_\[\]<>|&~$#])")


def markdown(data: ReportData) -> str:
    """The whole report."""
    return "\n".join(_lines(data)) + "\n"


def _lines(data: ReportData) -> Iterator[str]:
    yield f"# {plain(data.project)}: which way of answering to use"
    yield from ("", f"{words.tally(data.verdicts)} {plain(words.size(data))}", "")
    yield from verdict_lines(data)
    yield from ("", "## The arms", "")
    for arm in data.arms:
        yield f"- `{arm.name}`: {words.describe(arm)}{words.REFERENCE if arm.reference else ''}"
    yield from ("", "## Scores", "", words.SCORES, "", words.ARMS, "")
    for verdict in data.verdicts:
        yield from table_lines(tables.arms_table(data, verdict))
        yield from table_lines(tables.comparisons_table(verdict))
    yield from _ingredient_lines(data)
    yield from _cause_lines(data)
    yield from _cost_lines(data)
    yield from _training_lines(data)
    yield from ("## Examples", "", words.EXAMPLES, "")
    for verdict in data.verdicts:
        yield from _example_lines(data, verdict)
    yield from ("## Further measures", "", words.MEASURES, "")
    for verdict in data.verdicts:
        yield from table_lines(measures.measures_table(data, verdict))
    yield from _method_lines(data)
    yield from ("", "## Provenance", "")
    yield from pair_lines(data.provenance)


def verdict_lines(data: ReportData) -> Iterator[str]:
    """The verdict table: one line a task."""
    yield f"| Task | Use | Score (interval) | Cost ({plain(data.currency)}) | Status | Why |"
    yield "|---|---|---|---|---|---|"
    for verdict in data.verdicts:
        chosen = verdict.summary(verdict.arm)
        arm = f"{words.describe(data.arm(verdict.arm))} (`{verdict.arm}`)"
        cells = (plain(verdict.task), arm, words.interval(chosen.score), words.two_digits(chosen.cost), verdict.status)
        yield f"| {' | '.join(cells)} | {_cell(words.reason(verdict))} |"


def table_lines(table: Table) -> Iterator[str]:
    """One table under its caption; the chosen arm is bold."""
    yield from (f"**{plain(table.caption)}**", "")
    yield "| " + " | ".join(plain(column) for column in table.columns) + " |"
    yield "|---|" + "---:|" * (len(table.columns) - 1)
    for row, mark in zip(table.rows, table.marks, strict=True):
        name = f"**{plain(row[0])}**" if mark == "chosen" else plain(row[0])
        yield "| " + " | ".join((name, *map(plain, row[1:]))) + " |"
    yield ""


def pair_lines(pairs: Mapping[str, str]) -> Iterator[str]:
    """A list of names and values."""
    for name, value in pairs.items():
        yield f"- {plain(words.heading(name))}: {plain(value)}"


def _ingredient_lines(data: ReportData) -> Iterator[str]:
    yield from ("## What each ingredient adds", "", words.INGREDIENTS, "")
    for verdict in data.verdicts:
        found = data.findings_of(verdict.task).ingredients
        if found:
            yield from table_lines(findings.ingredients_table(found))
            yield from (findings.ingredients_sentence(found), "")
        else:
            yield from (f"**{plain(verdict.task)}**", "", words.NO_INGREDIENTS, "")


def _cause_lines(data: ReportData) -> Iterator[str]:
    yield from ("## Why answers fail, and what would help", "", words.CAUSES_OF_FAILURE, "", words.REMEDIES, "")
    yield from pair_lines(words.CAUSES)
    yield ""
    for verdict in data.verdicts:
        found = data.findings_of(verdict.task)
        yield from (f"### {plain(verdict.task)}: `{verdict.arm}`", "")
        if found.diagnosis:
            yield from _diagnosis_lines(data, found.diagnosis)
        else:
            yield from (words.NO_DIAGNOSIS, "")
        if found.knowledge:
            yield from (findings.knowledge_sentence(found.knowledge), "")
        if grounding := findings.grounding_sentence(data, verdict):
            yield from (grounding, "")
    if known := findings.knowledge_table(data):
        yield from ("### What the base model knows without documents", "")
        yield from table_lines(known)
    if grounded := measures.grounding_tables(data):
        yield from ("### Where citations point", "", words.GROUNDING, "")
        for table in grounded:
            yield from table_lines(table)


def _diagnosis_lines(data: ReportData, found: Diagnosis) -> Iterator[str]:
    yield from (f"{findings.diagnosis_sentence(found)}", "")
    yield from table_lines(findings.causes_table(found))
    yield from (f"- {sentence}" for sentence in findings.remedy_sentences(found))
    yield from ("", "Questions that failed:", "")
    for cause, rows in findings.failure_examples(data, found):
        yield f"- {cause.cause}"
        for row in rows:
            question = data.questions[row.question_id]
            yield f"  - {plain(question.text)}"
            yield f"    - answered ({words.outcome(row)}): {plain(row.text) or words.MISSING}"
            yield f"    - accepted: {plain(words.accepted(question))}"
    yield ""


def _cost_lines(data: ReportData) -> Iterator[str]:
    yield from ("## Cost against quality", "", words.COST, "")
    for verdict in data.verdicts:
        yield from table_lines(cost.cost_table(data, verdict))
    if data.training_cost:
        yield from ("### When training pays off", "", words.break_even(data.questions_paid_off), "")
        for verdict in data.verdicts:
            yield from table_lines(cost.break_even_table(data, verdict))
            yield from (cost.break_even_sentence(data, verdict), "")
    yield from ("### Seconds and tokens of a question", "", words.SPEED, "")
    for verdict in data.verdicts:
        yield from table_lines(cost.speed_table(data, verdict))


def _method_lines(data: ReportData) -> Iterator[str]:
    yield from ("## Data and method", "")
    yield from (" ".join(words.STATISTICS), "")
    if data.race:
        yield from (findings.race_sentence(data.race), "")
    yield from pair_lines(data.settings)
    yield ""
    yield from table_lines(tables.tasks_table(data))
    for verdict in data.verdicts:
        facts = data.task(verdict.task)
        yield f"- {plain(facts.name)}: {plain(facts.split_note)}"
        yield f"  - instruction: {plain(facts.instruction)}"
        yield f"  - worked examples: {plain(', '.join(facts.few_shot_ids)) or 'none'}"
    yield ""
    if data.forgetting:
        yield from (" ".join(map(findings.forgetting_sentence, data.forgetting)), "")
        yield from table_lines(findings.forgetting_table(data.forgetting))
    if data.router:
        yield from (findings.router_sentence(data.router), "")
        yield from table_lines(findings.router_table(data.router))
    yield from pair_lines(data.freshness)


def _training_lines(data: ReportData) -> Iterator[str]:
    if not data.training:
        return
    yield from ("## Training", "", words.TRAINING, "")
    yield from table_lines(training.training_table(data))
    for facts in data.training:
        yield from table_lines(training.losses_table(facts))


def _example_lines(data: ReportData, verdict: Verdict) -> Iterator[str]:
    other = runner_up(verdict)
    against = f"`{verdict.arm}` against `{other}`" if other else f"`{verdict.arm}` alone"
    yield from (f"### {plain(verdict.task)}: {against}", "")
    examples = choose_examples(data, verdict)
    for example in examples:
        yield from _one_example(example)
    if not examples:
        yield from (words.NO_EXAMPLES, "")


def _one_example(example: Example) -> Iterator[str]:
    yield f"- **{'Won' if example.won else 'Lost'}**: {plain(example.question.text)}"
    yield f"  - accepted: {plain(words.accepted(example.question))}"
    for given in (example.chosen, example.other):
        yield f"  - `{given.row.arm}` ({words.outcome(given.row)}): {plain(given.row.text) or words.MISSING}"
        yield from (f"    - {line}" for line in _passage_lines(given))
    yield ""


def _passage_lines(given: Given) -> Iterator[str]:
    for read in given.passages:
        marks = "".join(f" ({mark})" for mark, on in (("gold evidence", read.gold), ("cited", read.cited)) if on)
        yield f"{plain(read.passage.document_id)}{marks}: {plain(read.passage.text)}"


def plain(text: str) -> str:
    """Text on one line in which nothing is Markdown or HTML, so that it can't draw, link or load anything."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _cell(text: str) -> str:
    """Our own sentence with its code marks, made safe for a table's cell."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        return plain(text)
    return "".join(f"`{p.replace('|', '/')}`" if i % 2 else _SPECIAL.sub(r"\\\1", p) for i, p in enumerate(pieces))
