"""The questions of a source -> those of one task: no repetitions, splits that do not leak, a sample."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ragtune.corpus.check import normalise
from ragtune.corpus.importers.shape import Shape, find_shape
from ragtune.corpus.importers.source import SPLITS, Ledger, Source, SourceQuestion
from ragtune.errors import InputError
from ragtune.types import Split

SHARES: Mapping[Split, float] = {"train": 0.7, "test": 0.2, "dev": 0.1}
"""Of all questions, where the source has no splits; at least one each, in this order."""

_LATER_FIRST: Mapping[Split | None, int] = {"test": 0, "dev": 1, "train": 2, None: 3}


@dataclass(frozen=True, slots=True)
class Arranged:
    """A task's questions, each with an id and a split, what its answers look like, and how it was split."""

    questions: tuple[SourceQuestion, ...]
    shape: Shape
    split_by: str


def arrange(source: Source, name: str, sizes: Mapping[Split, int], seed: int, ledger: Ledger) -> Arranged:
    """The task in a source; of a split that `sizes` names at most so many questions, drawn with the seed.

    Raises: InputError when no question can be used.
    """
    questions = distinct(source.questions, name, ledger)
    if not questions:
        kinds = "; ".join(f"{kind.count} x {kind.what} ({kind.first})" for kind in ledger.skipped)
        raise InputError(f"no question of the source can be used ({kinds or 'it is empty'}); expected some")
    shape = find_shape(questions, source.about)
    split, how = split_questions(_fitting(questions, shape, ledger), sizes, seed, ledger)
    sampled = sample_questions(split, sizes, seed, shape)
    _note_gaps(sampled, sizes, shape, ledger)
    return Arranged(tuple(sampled), shape, how)


def _note_gaps(questions: Sequence[SourceQuestion], sizes: Mapping[Split, int], shape: Shape, ledger: Ledger) -> None:
    for split in SPLITS:
        count, asked = sum(question.split == split for question in questions), sizes.get(split, 1)
        if count < asked:
            ledger.note(f"{asked if split in sizes else 'some'} {split} questions wanted, {count} found", "the source")
    shown = {answer for question in questions if question.split == "train" for answer in question.answers}
    for label in shape.labels:
        if label not in shown:
            where = next((question.where for question in questions if label in question.answers), "list of labels")
            ledger.note("a label that no train question shows", f"{label!r}, {where}")


def distinct(questions: Sequence[SourceQuestion], name: str, ledger: Ledger) -> list[SourceQuestion]:
    """The questions without repeated texts, each with an id of its own; source order is kept.

    Of two with the same text (as `ragtune check` compares them) the one of the later split stays, so that a test is
    not made smaller and nothing leaks into it.
    """
    kept: dict[str, int] = {}
    for index in sorted(range(len(questions)), key=lambda i: (_LATER_FIRST[questions[i].split], i)):
        text = normalise(questions[index].text)
        if text in kept:
            same = set(questions[index].answers) == set(questions[kept[text]].answers)
            what = "with the same answers" if same else "with other answers"
            ledger.skip(f"the same question as another one, {what}", questions[index].where)
        else:
            kept[text] = index
    width = len(str(len(questions)))
    taken: set[str] = set()
    result = []
    for index in sorted(kept.values()):
        question = questions[index]
        identity = question.id or f"{name}-{index + 1:0{width}}"
        if identity in taken:
            ledger.note("an id that was there before, made unique", question.where)
            identity = next(new for n in range(2, index + 3) if (new := f"{identity}-{n}") not in taken)
        taken.add(identity)
        result.append(replace(question, id=identity))
    return result


def _fitting(questions: Sequence[SourceQuestion], shape: Shape, ledger: Ledger) -> list[SourceQuestion]:
    """The questions that a task of this shape can hold: a label task has no unanswerable ones."""
    if shape.format != "label":
        return list(questions)
    for question in questions:
        if not question.answers:
            ledger.skip("no label, in a task of labels", question.where)
    return [question for question in questions if question.answers]


# --- splits ----------------------------------------------------------------------------------------------------------


def split_questions(
    questions: Sequence[SourceQuestion], sizes: Mapping[Split, int], seed: int, ledger: Ledger
) -> tuple[list[SourceQuestion], str]:
    """The questions with a split each, and how they came by it.

    A source's own splits are kept, except that the dev split of a source without test becomes its test, and a source
    without dev gives a tenth of train. Where nothing but train is stated, questions are dealt out: those that share a
    document stay together, `sizes` or SHARES say how many go where.
    """
    stated = {question.split for question in questions if question.split}
    if stated <= {"train"}:
        return _deal(questions, _targets(len(questions), sizes), seed)
    for question in questions:
        if not question.split:
            ledger.skip("no split, while others have one", question.where)
    result = [question for question in questions if question.split]
    how = "the source's own"
    if "test" not in stated:
        result = [replace(q, split="test") if q.split == "dev" else q for q in result]
        how += ", its dev as test"
    train = [question for question in result if question.split == "train"]
    if train and not any(question.split == "dev" for question in result):
        wanted = min(sizes.get("dev", max(1.0, len(train) / 10)), len(train) / 2)
        dealt, by = _deal(train, {"train": len(train) - wanted, "dev": wanted}, seed)
        chosen = {question.id: question for question in dealt}
        result = [chosen.get(question.id, question) for question in result]
        how += f", dev drawn from train {by}"
    return result, how


def _targets(count: int, sizes: Mapping[Split, int]) -> dict[Split, float]:
    """Questions a split, in all `count`: those asked for, the rest by SHARES; all less where too many are asked for."""
    rest = count - sum(sizes.values())
    if rest < 0:
        wanted = {split: sizes.get(split, share * count) for split, share in SHARES.items()}
        return {split: size * count / sum(wanted.values()) for split, size in wanted.items()}
    free = sum(share for split, share in SHARES.items() if split not in sizes)
    return {
        split: sizes[split] if split in sizes else min(rest, max(1.0, rest * share / free))
        for split, share in SHARES.items()
    }


def _deal(
    questions: Sequence[SourceQuestion], targets: Mapping[Split, float], seed: int
) -> tuple[list[SourceQuestion], str]:
    """Questions to splits by document; by question, if that left the test less than half as large as meant."""
    groups = _groups(questions)
    splits = _assign(groups, targets, seed)
    how = "by document" if any(question.gold for question in questions) else "by question"
    counts = Counter(splits.values())
    held_out: Split = "test" if "test" in targets else "dev"
    if counts[held_out] < targets[held_out] / 2 and len(groups) < len(questions):
        splits = _assign([[i] for i in range(len(questions))], targets, seed)
        how = "by question, since documents tie most questions together"
    return [replace(question, split=splits[i]) for i, question in enumerate(questions)], f"{how}, seed {seed}"


def _assign(groups: Sequence[Sequence[int]], targets: Mapping[Split, float], seed: int) -> dict[int, Split]:
    """Groups, largest first, each to the split that lacks most; the last ones to splits that would go empty."""
    order = list(groups)
    random.Random(seed).shuffle(order)
    order.sort(key=len, reverse=True)
    lacking = dict(targets)
    empty = [split for split in targets if targets[split] >= 1]
    splits: dict[int, Split] = {}
    for number, group in enumerate(order):
        candidates = empty if len(order) - number <= len(empty) else list(targets)
        # Of two that lack as much, the one that was meant to be smaller: it may still be empty.
        split = max(candidates, key=lambda s: (lacking[s], -targets[s]))
        lacking[split] -= len(group)
        empty = [other for other in empty if other != split]
        splits |= dict.fromkeys(group, split)
    return splits


def _groups(questions: Sequence[SourceQuestion]) -> list[list[int]]:
    """Positions of questions that are tied by documents, directly or through others (union-find)."""
    parent = list(range(len(questions)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, question in enumerate(questions):
        for document in question.gold:
            parent[root(i)] = root(first.setdefault(document, i))
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(questions)):
        groups[root(i)].append(i)
    return list(groups.values())


# --- samples ---------------------------------------------------------------------------------------------------------


def sample_questions(
    questions: Sequence[SourceQuestion], sizes: Mapping[Split, int], seed: int, shape: Shape
) -> list[SourceQuestion]:
    """A seeded sample of each split that has a size; of a label task's train split one question a label comes first."""
    kept: set[str] = set()
    for split in SPLITS:
        pool = [question for question in questions if question.split == split]
        size = min(sizes.get(split, len(pool)), len(pool))
        rng = random.Random(f"{seed}/{split}")
        rng.shuffle(pool)
        if shape.format == "label" and split == "train":
            pool = _each_label_first(pool)
        kept.update(question.id for question in pool[:size])
    return [question for question in questions if question.id in kept]


def _each_label_first(pool: Iterable[SourceQuestion]) -> list[SourceQuestion]:
    seen: set[str] = set()
    first: list[SourceQuestion] = []
    rest: list[SourceQuestion] = []
    for question in pool:
        new = question.answers[0] not in seen
        seen.update(question.answers)
        (first if new else rest).append(question)
    return first + rest
