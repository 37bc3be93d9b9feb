"""The findings in plain words and as tables: what each ingredient adds, why answers fail, what the model knows.

An effect is called clear when its interval leaves out 0; of any other a sentence says that it may be nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from ragtune.evaluator.attribute import CauseCount, Diagnosis, Remedy
from ragtune.evaluator.ingredients import Effect, Ingredients
from ragtune.evaluator.knowledge import Forgetting, KnowledgeCount
from ragtune.evaluator.report import words
from ragtune.evaluator.report.data import RaceFacts, ReportData
from ragtune.evaluator.report.measures import Mean, measures
from ragtune.evaluator.report.tables import Table, unmarked
from ragtune.types import Interval, RouterFacts, Row, Verdict

_KNOWN_ALREADY = 0.9


def clear(value: Interval) -> bool:
    """True when the interval leaves out 0."""
    return value.low > 0 or value.high < 0


# what each ingredient adds


def ingredients_sentence(found: Ingredients) -> str:
    """What the ingredients add together, which of them bring it, and how they go together."""
    shares = sorted(found.shares, key=lambda e: -e.value.mean)
    certain = [f"{e.name} {words.interval(e.value, signed=True)}" for e in shares if clear(e.value)]
    open_shares = [e.name for e in shares if not clear(e.value)]
    sentences = [_gain_sentence(found.gain)]
    if certain:
        sentences.append(f"The shares: {words.listed(certain)}.")
    if open_shares:
        sentences.append(
            f"What {words.listed(open_shares)} {'adds' if len(open_shares) == 1 else 'add'} may be nothing."
        )
    pairs = [e for e in found.effects if " x " in e.name and clear(e.value)]
    return " ".join((*sentences, *map(_pair_sentence, pairs)))


def _gain_sentence(gain: Interval) -> str:
    change = words.interval(gain, signed=True)
    if not clear(gain):
        return f"All three together change the score of the bare prompt by {change}, which may be nothing."
    return f"All three together {'raise' if gain.mean > 0 else 'lower'} the score of the bare prompt by {change}."


def _pair_sentence(effect: Effect) -> str:
    first, second = effect.name.split(" x ")
    how = "do more together than apart" if effect.value.mean > 0 else "partly replace each other"
    return f"{first.capitalize()} and {second} {how}: {words.interval(effect.value, signed=True)}."


def ingredients_table(found: Ingredients) -> Table:
    """What stands behind the picture of shares, and the effects measured between single arms."""
    rows = [
        *((f"share of {e.name}", e.value) for e in found.shares),
        ("all together", found.gain),
        *((times(e.name) if " x " in e.name else f"effect of {e.name}", e.value) for e in found.effects),
    ]
    cells = [(name, words.interval(value, signed=True)) for name, value in rows]
    return unmarked(f"{found.task}, {found.n} questions", ("Share or effect", "Adds to the score (interval)"), cells)


def times(name: str) -> str:
    """`retrieval x tuning` with a sign of multiplication."""
    return name.replace(" x ", " × ")


# why answers fail


def diagnosis_sentence(found: Diagnosis) -> str:
    """How many answers are right, and what the others fail by most."""
    right = sum(c.count for c in found.causes if c.cause == "right")
    failures = [c for c in found.causes if c.cause != "right"]
    sentence = f"Of {found.n} answers of `{found.arm}` {right} are right"
    if not failures:
        return f"{sentence}."
    cause, count = failures[0].cause, failures[0].count
    return f"{sentence}; the most frequent failure is {'an' if cause[0] in 'aeiou' else 'a'} {cause} ({count})."


def causes_table(found: Diagnosis) -> Table:
    """What stands behind the picture of causes."""
    rows = [(c.cause, str(c.count), words.interval(c.share)) for c in found.causes]
    columns = ("Cause", f"Answers of {found.n}", "Share (interval)")
    return unmarked(f"{found.task}: {found.arm}", columns, rows)


def _remedy_sentence(remedy: Remedy) -> str:
    doubt = "" if clear(remedy.gain) else ", which may be nothing"
    name = f"{remedy.name[:1].upper()}{remedy.name[1:]}"
    return f"{name} would add {words.interval(remedy.gain, signed=True)}{doubt}."


def remedy_sentences(found: Diagnosis) -> list[str]:
    """What would help, the largest gain first; why that is not known where something fails and nothing is listed."""
    failed = any(c.cause != "right" for c in found.causes)
    return [words.NO_REMEDY] if failed and not found.remedies else [_remedy_sentence(r) for r in found.remedies]


def failure_examples(data: ReportData, found: Diagnosis) -> list[tuple[CauseCount, list[Row]]]:
    """Each cause of failure with the arm's answers to its example questions."""
    answers = data.answers(found.task, found.arm)
    failures = [c for c in found.causes if c.cause != "right"]
    return [(c, [answers[id] for id in c.examples]) for c in failures]


# what the model knows, and where its citations point


def knowledge_sentence(found: KnowledgeCount) -> str:
    """What the base model answers without documents, and whether that leaves tuning anything to teach.

    Little is left where it knows 9 of 10 questions. Of the rest, tuning teaches best what the model answers sometimes
    (Gekhman et al. 2024, arXiv:2405.05904, section 5), and slowly what it never does (section 4.3).
    """
    n = found.known + found.maybe + found.unknown
    counts = (
        f"Asked {n} dev questions without documents, each with several draws of worked examples, the base model is "
        f"always right on {found.known}, sometimes on {found.maybe} and never on {found.unknown}."
    )
    if found.known >= _KNOWN_ALREADY * n:
        return f"{counts} Tuning has little left to teach here."
    if found.unknown <= found.maybe:
        return f"{counts} Tuning has something to teach: much of it is half known, which is what tuning teaches best."
    return f"{counts} Tuning has something to teach, but most of it is new to the model, which is learnt slowly."


def knowledge_table(data: ReportData) -> Table | None:
    """The counts of all tasks; None where no task was probed."""
    found = {task: f.knowledge for task, f in data.findings.items() if f.knowledge}
    rows = [
        (task, str(k.known), str(k.maybe), str(k.unknown), str(k.known + k.maybe + k.unknown))
        for task, k in found.items()
    ]
    columns = ("Task", "Always right", "Sometimes", "Never", "Questions")
    return unmarked("Questions by how often the base model is right", columns, rows) if rows else None


def grounding_sentence(data: ReportData, verdict: Verdict) -> str | None:
    """Where the chosen arm's citations point; None for an arm or task where there is nothing to cite."""
    chosen = next(m for m in measures(data, verdict) if m.arm == verdict.arm)
    precision = chosen.means.get("citation_precision", Mean(None, 0))
    recall = chosen.means.get("citation_recall", Mean(None, 0))
    if recall.value is None:
        return None
    if precision.value is None:
        return f"`{verdict.arm}` cites nothing in its {words.count(recall.n, 'answer')} to questions with evidence."
    wrong, right = chosen.wrong_citations
    sentence = (
        f"Of what `{verdict.arm}` cites, {precision.value:.2f} holds evidence ({precision.n} answers), and "
        f"{recall.value:.2f} of the evidence is cited ({recall.n})."
    )
    return f"{sentence} {_wrong(wrong, right)}" if right else sentence


def _wrong(wrong: int, right: int) -> str:
    return f"{wrong} of the {right} right answers that cite name{'s' if wrong == 1 else ''} no passage with evidence."


# how it was measured


def race_sentence(race: RaceFacts) -> str:
    """How many answers racing saved, and at which risk."""
    if race.asked == race.in_full:
        return f"All arms answered all questions: {race.asked:,} answers."
    share = words.percent(1 - race.asked / race.in_full)
    saved = f"{race.asked:,} of {race.in_full:,} answers were asked for ({share} saved)"
    if not race.error:
        return f"{saved}: the budget ended before the questions did."
    return (
        f"{saved}: an arm was asked no more once bets on its differences from the others, which may be looked at any "
        f"time (Waudby-Smith and Ramdas 2024), showed it to be worse. The probability that this ever dropped a task's "
        f"best arm is at most {100 * race.error:g} %."
    )


def forgetting_sentence(found: Forgetting) -> str:
    """What tuning did to general knowledge."""
    change = words.interval(found.change, signed=True)
    if not clear(found.change):
        return f"`{found.weights}` shows no clear forgetting: {change}."
    return f"`{found.weights}` {'forgot' if found.change.mean < 0 else 'gained'} general knowledge: {change}."


def forgetting_table(found: Iterable[Forgetting]) -> Table:
    """General questions that have nothing to do with the documents, before and after tuning."""
    rows = [
        (f.weights, str(f.n), f"{f.before:.2f}", f"{f.after:.2f}", words.interval(f.change, signed=True)) for f in found
    ]
    columns = ("Weights", "Questions", "Right before", "Right after", "Change (interval)")
    return unmarked("General knowledge before and after tuning", columns, rows)


def router_sentence(found: RouterFacts) -> str:
    """How well questions find their task."""
    return (
        f"Without being told, the router finds the right task for {words.percent(found.accuracy)} of the questions "
        f"(cross-validation over {found.n:,} questions, tasks weighing alike). It is sure enough to route "
        f"{words.percent(found.covered)}, of which {words.percent(found.precision)} are right; the others go to the "
        "default task."
    )


def router_table(found: RouterFacts) -> Table:
    """The same for each task."""
    rows = [(task, words.percent(share)) for task, share in found.per_task.items()]
    return unmarked("Questions whose task the router finds", ("Task", "Found"), rows)
