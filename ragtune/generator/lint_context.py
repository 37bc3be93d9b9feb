"""Lint of the passages in training rows: gold is whole and may stand anywhere, distractors are hard and honest."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

from scipy import stats

from ragtune.generator.examples import TrainingRow, states
from ragtune.generator.findings import Known, Level, LintFinding, Numbered, counted, finding, folded

_SIGNIFICANCE = 0.001
_FEW_ROWS = 50
_MARKS = re.compile(r"(\[\d{1,2}\])+")


def check_context(rows: Numbered, known: Known) -> list[LintFinding]:
    """All findings about rows with passages, and about what should be in them."""
    with_passages = [(number, row) for number, row in rows if row.passage_ids]
    whole = [(number, row) for number, row in with_passages if not _misfit(row)]
    return [
        *_check_records(with_passages),
        *_check_texts(whole, known),
        *_check_citations(whole),
        *_check_gold_positions(whole),
        *_check_gold_share(with_passages, known),
        *_check_hardness(whole, known),
        *_check_answers(whole, known),
    ]


def _misfit(row: TrainingRow) -> str:
    """What contradicts itself in the row's record of its passages; empty where nothing does."""
    places = len(row.passage_ids)
    distractors = places - len(row.gold)
    if not set(row.gold) <= set(range(places)) or len(set(row.gold)) < len(row.gold):
        return f"gold is {list(row.gold)}, expected different places from 0 to {places - 1}"
    if row.gold_ids and not {row.passage_ids[i] for i in row.gold} <= set(row.gold_ids):
        return "gold names the place of a passage that is not among gold_ids"
    if {len(row.distractor_ranks), len(row.distractor_scores)} - {0, distractors}:
        ranks, scores = len(row.distractor_ranks), len(row.distractor_scores)
        return f"{distractors} distractors, but {ranks} ranks and {scores} scores"
    return ""


def _check_records(rows: Numbered) -> Iterable[LintFinding]:
    for number, row in rows:
        if message := _misfit(row):
            yield finding("error", "record", message, (number, row))


def _check_texts(rows: Numbered, known: Known) -> Iterable[LintFinding]:
    """The passages that a row claims must stand in its prompt, gold above all, and a question after them."""
    unknown = []
    for number, row in rows:
        prompt = folded(row.messages[-1].content) if row.messages else ""
        lost = [i for i in row.passage_ids if i in known.passages and folded(known.passages[i].text) not in prompt]
        gold = {row.passage_ids[i] for i in row.gold}
        if lost_gold := gold.intersection(lost):
            message = f"gold passage {min(lost_gold)} is cut or missing in the prompt"
            yield finding("error", "gold-cut", message, (number, row))
        elif lost:
            message = f"passage {lost[0]} is cut or missing in the prompt; the question was written without its context"
            yield finding("error", "context", message, (number, row))
        in_index = [known.passages[i] for i in row.passage_ids if i in known.passages]
        if any(prompt.endswith(folded(passage.text)) for passage in in_index):
            yield finding("error", "context", "the prompt ends with a passage; it lost its question", (number, row))
        if known.passages and len(in_index) < len(row.passage_ids):
            unknown.append((number, row))
    message = "passages are not in the index that will serve; build the rows again"
    yield from counted("warning", "context", message, unknown, rows)


def _check_citations(rows: Numbered) -> Iterable[LintFinding]:
    """Marks like [2] at the beginning of a target must name the gold passages: shuffled too late, they name others."""
    for number, row in rows:
        marks = _MARKS.match(row.target)
        if marks is None or not row.gold:
            continue
        cited = {int(mark) - 1 for mark in re.findall(r"\d+", marks[0])}
        if cited != set(row.gold):
            gold = ", ".join(f"[{place + 1}]" for place in row.gold)
            yield finding("error", "citation", f"the target cites {marks[0]}, gold is {gold}", (number, row))


def _check_gold_positions(rows: Numbered) -> Iterable[LintFinding]:
    """Gold must stand anywhere with equal chance; gold always first is the bug.

    For n rows with g gold among s passages, each place holds gold in E = n g / s of them. As the g places of a row
    differ, (s - 1) / (s - g) * sum (O - E)^2 / E is about chi-square with s - 1 degrees of freedom; for g = 1 this is
    Pearson's test. The significance level is shared by all pairs (s, g) that have enough rows.
    """
    groups = defaultdict(list)
    for number, row in rows:
        groups[len(row.passage_ids), len(row.gold)].append((number, row))
    enough = {(s, g): m for (s, g), m in sorted(groups.items()) if 0 < g < s and len(m) * min(g, s - g) >= 5 * s}
    for (size, gold), members in enough.items():
        places = Counter(place for _, row in members for place in row.gold)
        observed = [places[i] for i in range(size)]
        expected = len(members) * gold / size
        statistic = (size - 1) / (size - gold) * sum((count - expected) ** 2 for count in observed) / expected
        if stats.chi2.sf(statistic, size - 1) < _SIGNIFICANCE / len(enough):
            message = f"gold is not spread evenly over {size} places: {observed}"
            yield finding("error", "gold-position", message, members[0])


def _check_gold_share(rows: Numbered, known: Known) -> Iterable[LintFinding]:
    """The share of rows without gold among those that could hold it, against the stated one (binomial test)."""
    by_task = defaultdict(list)
    for number, row in rows:
        if row.gold_ids:
            by_task[row.task].append((number, row))
    for task, members in by_task.items():
        without = sum(not row.gold for _, row in members)
        stated = known.shares.get(task)
        if stated is None or stats.binomtest(without, len(members), stated).pvalue >= _SIGNIFICANCE:
            continue
        share = without / len(members)
        message = f"{without} of {len(members)} rows of {task} go without gold; share_without_gold states {stated:g}"
        wrong = without == 0 or abs(share - (1 - stated)) < abs(share - stated)
        yield finding("error" if wrong else "warning", "gold-share", message, members[0])
    could = [place for members in by_task.values() for place in members]
    if len(could) >= _FEW_ROWS and all(row.gold for _, row in could) and not any(map(known.shares.get, by_task)):
        message = f"none of {len(could)} rows goes without gold, so nothing teaches what to do when search fails"
        yield finding("warning", "gold-share", message, could[0])


def _check_hardness(rows: Numbered, known: Known) -> Iterable[LintFinding]:
    """Distractors must be what the serving index ranked highest, with ranks and scores that belong to them."""
    judged = [(number, row) for number, row in rows if len(row.passage_ids) > len(row.gold)]
    ranked = [(number, row) for number, row in judged if row.distractor_ranks and row.distractor_scores]
    unranked = [place for place in judged if place not in ranked]
    message = "distractors have no rank or no score, so hard ones cannot be told from arbitrary ones"
    yield from counted("warning", "hard-negatives", message, unranked, judged)
    unsorted = [(number, row) for number, row in ranked if _scores_rise(row)]
    message = "scores of distractors do not fall with their ranks: they come from different orders"
    yield from counted("error", "hard-negatives", message, unsorted, ranked)
    # Where gold was taken out, passages that state the answer are passed over; elsewhere nothing but gold is.
    topmost = [(number, row) for number, row in ranked if row.gold or not row.gold_ids]
    easy = [(n, r) for n, r in topmost if max(r.distractor_ranks) > len(r.distractor_ranks) + len(r.gold_ids or r.gold)]
    message = "distractors are not the passages that the index ranked highest"
    yield from counted(_by_share(easy, topmost), "hard-negatives", message, easy, topmost)
    yield from _check_ranks([(number, row) for number, row in ranked if row.question_id in known.ranks], known)


def _check_ranks(rows: Numbered, known: Known) -> Iterable[LintFinding]:
    """What the serving index says now of recorded distractors. Ranks of other passages look right until looked up."""
    differing, unfound = [], []
    for number, row in rows:
        found = known.ranks[row.question_id]
        distractors = [id for place, id in enumerate(row.passage_ids) if place not in row.gold]
        if any(found.get(id) != rank for id, rank in zip(distractors, row.distractor_ranks, strict=True)):
            differing.append((number, row))
        if any(id not in found for id in distractors):
            unfound.append((number, row))
    message = "distractors are not at the rank that the serving index gives them; build the rows again"
    yield from counted(_by_share(unfound, rows), "hard-negatives", message, differing, rows)


def _by_share(faulty: Numbered, of: Numbered) -> Level:
    """A fault in most rows is one of how they were made; in a few it may be an edit by hand."""
    return "error" if 2 * len(faulty) > len(of) else "warning"


def _scores_rise(row: TrainingRow) -> bool:
    by_rank = sorted(zip(row.distractor_ranks, row.distractor_scores, strict=True))
    return any(rank == next_rank or score < later for (rank, score), (next_rank, later) in pairwise(by_rank))


def _check_answers(rows: Numbered, known: Known) -> Iterable[LintFinding]:
    """Passages that state the answer though they are not gold: fair beside gold, a lie in a row that abstains."""
    telling = []
    judged = [(number, row) for number, row in rows if row.gold_ids and row.question_id in known.train]
    for number, row in judged:
        answers = known.train[row.question_id].answers
        distractors = [i for place, i in enumerate(row.passage_ids) if place not in row.gold]
        told = [i for i in distractors if i in known.passages and states(known.passages[i].text, answers)]
        if told and row.kind == "abstain":
            message = f"the target abstains, but passage {told[0]} states an accepted answer"
            yield finding("error", "answer-in-distractor", message, (number, row))
        elif told:
            telling.append((number, row))
    message = "a distractor states an accepted answer"
    yield from counted("warning", "answer-in-distractor", message, telling, judged)
