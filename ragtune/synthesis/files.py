"""Pairs of question and answer -> a task: splits by document, a question file, where each pair came from.

tasks/NAME.jsonl           the questions, as docs/questions.md describes them
tasks/NAME.origins.jsonl   for each id the passage, the answer's offsets in the document and the model's whole reply
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragtune import store
from ragtune.config import ProjectConfig
from ragtune.corpus.deal import deal
from ragtune.corpus.grounding import sentence_around
from ragtune.corpus.importers.project import Place, building, find_place, publish
from ragtune.corpus.importers.shape import Shape
from ragtune.corpus.questions import locate_evidence
from ragtune.errors import InputError
from ragtune.session import Session
from ragtune.synthesis.questions import Draft, SynthOptions, Written, bound_documents, origin_json
from ragtune.types import Question, Span, Split

_SPLITS: tuple[Split, ...] = ("train", "dev", "test")
_SHAPE = Shape(
    "short",
    "token_f1",
    (),
    ("Answer the question in a few words.", "Give only the answer, as short as possible."),
    24,
)


@dataclass(frozen=True, slots=True)
class Output:
    """What is written besides the question file. `force`: replace what an earlier synth wrote.

    `add`: a section for the task at the end of ragtune.toml; `rejected`: a file for the pairs that were left out.
    """

    add: bool = False
    force: bool = False
    rejected: Path | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """Where a task goes; `place` is the project's when a section is to be added to its ragtune.toml."""

    file: Path
    place: Place | None
    rejected: Path | None

    @property
    def origins(self) -> Path:
        """The file that says where each pair came from."""
        return self.file.with_suffix(".origins.jsonl")


@dataclass(frozen=True, slots=True)
class Synthesised:
    """What `synth` did. `kept` holds the pairs in file order, `reasons` how many were left out and why.

    `section`: the lines for ragtune.toml, empty where the task is in it. `shared_documents` counts documents that are
    evidence in more than one split.
    """

    task: str
    file: Path
    section: str
    replies: int
    kept: tuple[Question, ...]
    reasons: Mapping[str, int]
    split_by: str
    shared_documents: int

    @property
    def questions(self) -> dict[Split, int]:
        """How many questions each split has."""
        return {split: sum(q.split == split for q in self.kept) for split in _SPLITS}


def find_target(project: ProjectConfig, name: str, output: Output) -> Target:
    """The files to write, after making sure that nothing is lost by that.

    Raises: InputError when a file or task of that name is there and may not be replaced.
    """
    if output.rejected and output.rejected.exists() and not output.force:
        raise InputError(f"{output.rejected} exists already; name another file, or replace it with --force")
    known = project.tasks.get(name)
    file = project.root / (known.questions if known else f"tasks/{name}.jsonl")
    target = Target(file, None, output.rejected)
    if (known or file.exists()) and not output.force:
        raise InputError(f"task {name!r} or its file {file} exists already; choose another --name, or add --force")
    if file.exists() and not target.origins.exists():
        raise InputError(
            f"{file} was not written by ragtune synth ({target.origins.name} is missing); choose another --name"
        )
    if output.add and not known:
        return Target(file, find_place(project.root, name), output.rejected)
    return target


def save(session: Session, options: SynthOptions, target: Target, written: Written) -> Synthesised:
    """Write the question file and what belongs to it.

    Raises: InputError when there is no pair to write; StoreError when a file cannot be written.
    """
    if target.rejected:
        store.write_text(target.rejected, _jsonl(rejected.to_json() for rejected in written.rejected))
    if not written.pairs:
        raise InputError(
            f"no question could be used ({_listed(written.reasons)}); try another generator or more documents"
        )
    pairs = sorted(written.pairs, key=lambda pair: (pair.passage.document_id, pair.start))
    splits, split_by = deal_pairs(pairs, bound_documents(session, options.name), options)
    questions = _questions(session, pairs, splits, options.name)
    shared = _shared(questions)
    rows = [_row(question) for question in questions]
    origins = [{"id": q.id, **origin_json(pair)} for q, pair in zip(questions, pairs, strict=True)]
    done = Synthesised(
        task=options.name,
        file=target.file,
        section="" if target.place or options.name in session.project.tasks else _section(options.name, shared > 0),
        replies=written.replies,
        kept=questions,
        reasons=written.reasons,
        split_by=split_by,
        shared_documents=shared,
    )
    store.write_text(target.origins, _jsonl(origins))
    if target.place:
        with building(target.place) as built:
            publish(target.place, built, rows, (_SHAPE, shared > 0), _readme(done, session, options))
    else:
        store.write_text(target.file, _jsonl(rows))
    return done


def deal_pairs(pairs: Sequence[Draft], bound: Mapping[str, Split], options: SynthOptions) -> tuple[list[Split], str]:
    """The split of each pair, and how they were dealt: by document, or by passage where the documents are too few.

    Too few are they when the test, or without one the dev split, would have less than half of its share.
    """
    shares = options.split_shares
    by_document = [pair.passage.document_id for pair in pairs]
    splits = deal(Counter(by_document), shares, bound, options.seed)
    held_out: Split = "test" if shares["test"] else "dev"
    got = sum(splits[document] == held_out for document in by_document)
    if 2 * got >= shares[held_out] * len(pairs) or set(by_document) <= bound.keys():
        return [splits[document] for document in by_document], f"by document, seed {options.seed}"
    groups = [p.passage.document_id if p.passage.document_id in bound else p.passage.id for p in pairs]
    splits = deal(Counter(groups), shares, bound, options.seed)
    return [splits[group] for group in groups], f"by passage, since documents are few, seed {options.seed}"


def _questions(session: Session, pairs: Sequence[Draft], splits: Sequence[Split], task: str) -> tuple[Question, ...]:
    """The pairs as questions, each with the sentences around its answer as evidence, looked up once more."""
    texts = {document.id: document.text for document in session.index.documents.values()}
    width = len(str(len(pairs)))
    questions = []
    for number, (pair, split) in enumerate(zip(pairs, splits, strict=True), 1):
        evidence = (_evidence(pair),)
        questions.append(Question(f"{task}-{number:0{width}}", pair.question, (pair.answer,), task, split, evidence))
    return locate_evidence(questions, texts)


def _evidence(pair: Draft) -> Span:
    passage = pair.passage
    start, end = sentence_around(passage.text, pair.start - passage.start, pair.end - passage.start)
    return Span(passage.document_id, passage.start + start, passage.start + end, passage.text[start:end])


def _shared(questions: Iterable[Question]) -> int:
    used = {(span.document_id, q.split) for q in questions for span in q.evidence}
    return sum(count > 1 for count in Counter(document for document, _ in used).values())


def _row(question: Question) -> dict[str, Any]:
    return {
        "id": question.id,
        "split": question.split,
        "question": question.text,
        "answers": list(question.answers),
        "evidence": [
            {"document": span.document_id, "text": span.text, "start": span.start, "end": span.end}
            for span in question.evidence
        ],
    }


def _jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _listed(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "nothing was written"


def _section(task: str, shared: bool) -> str:
    lines = [
        f"[tasks.{task}]",
        f'questions = "tasks/{task}.jsonl"',
        f'format = "{_SHAPE.format}"',
        f'metric = "{_SHAPE.metric}"',
        f"instruction = {json.dumps(_SHAPE.instructions)}",
        f"max_answer_tokens = {_SHAPE.max_answer_tokens}",
    ]
    return "\n".join([*lines, "shared_documents = true"] if shared else lines) + "\n"


def _readme(done: Synthesised, session: Session, options: SynthOptions) -> str:
    """The README's section on the task: who wrote it, and how."""
    counts = " | ".join(str(done.questions[split]) for split in _SPLITS)
    model = (
        session.project.generators[options.generator].model if options.generator else session.project.generator.model
    )
    return (
        f"## {done.task}\n\n**Origin.** Questions written by the model `{model}` from the documents (ragtune synth, "
        f"{options.strategy}, filters: {', '.join(options.filters) or 'none'}); nobody has read them. Split: "
        f"{done.split_by}.\n\n| task | format | metric | train | dev | test | unanswerable | evidence |\n"
        "|---|---|---|---|---|---|---|---|\n"
        f"| `{done.task}` | {_SHAPE.format} | {_SHAPE.metric} | {counts} | 0 | one quote |\n"
    )
