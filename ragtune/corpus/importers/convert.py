"""The way through an import: read, arrange, write documents and find evidence in them, put into place, report.

Questions are held in memory. Documents are read one at a time and twice: once to choose them, once to write them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragtune.corpus.importers.arrange import Arranged, arrange
from ragtune.corpus.importers.documents import Evidence, choose_documents, look_in_project, write_documents
from ragtune.corpus.importers.evidence import Way
from ragtune.corpus.importers.formats import read_source
from ragtune.corpus.importers.project import Place, building, check_documents_inside, find_place, publish
from ragtune.corpus.importers.source import SPLITS, About, Count, Format, Ledger, SourceQuestion
from ragtune.corpus.readers import clean
from ragtune.errors import InputError
from ragtune.types import AnswerFormat, Span, Split


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What to take. `train`, `dev`, `test`, `documents`: at most so many, drawn with `seed`; None means all.

    `name` is the task's; empty, it is made from the source's name.
    """

    name: str = ""
    format: Format | None = None
    train: int | None = None
    dev: int | None = None
    test: int | None = None
    documents: int | None = None
    seed: int = 17
    skip_broken: bool = False

    @property
    def sizes(self) -> dict[Split, int]:
        """The sizes of the splits that were asked for."""
        asked: dict[Split, int | None] = {"train": self.train, "dev": self.dev, "test": self.test}
        return {split: size for split, size in asked.items() if size is not None}


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did. `evidence` counts questions by how their evidence was found; `gold` the documents it is in.

    `skipped` are the kinds of rows that could not be used, `notes` what was changed or is missing in used ones.
    """

    folder: Path
    task: str
    added: bool
    source_format: Format
    answer_format: AnswerFormat
    metric: str
    labels: int
    documents: int
    gold: int
    questions: Mapping[Split, int]
    unanswerable: int
    evidence: Mapping[Way, int]
    without_evidence: int
    split_by: str
    shared_documents: int
    skipped: tuple[Count, ...]
    notes: tuple[Count, ...]


def import_source(
    source: Path,
    folder: Path,
    options: ImportOptions,
    say: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> Imported:
    """Turn a file or folder of questions (and documents) into a project, or into one more task of the one in `folder`.

    Raises: InputError for a source or place that cannot be used, naming file and line; ConfigError for a wrong
    ragtune.toml there; StoreError when it cannot be written. In each case the folder stays as it was.
    """
    ledger = Ledger(options.skip_broken)
    try:
        task = options.name or re.sub(r"[^a-z0-9_-]+", "-", source.resolve().stem.lower()).strip("-_") or "questions"
        place = find_place(folder, task)
        say(f"reading {source}")
        read = read_source(source, options.format, ledger)
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read ({error.strerror}); name what can be") from None
    arranged = arrange(read, task, options.sizes, options.seed, ledger)
    say("choosing documents")
    chosen = choose_documents(read, arranged.questions, options.documents, options.seed, ledger)
    if chosen:
        check_documents_inside(place)
    evidence = Evidence(arranged.questions, search=arranged.shape.format != "label")
    with building(place) as built:
        write_documents(read, chosen, (place, built), evidence, progress)
        look_in_project(place, evidence)
        evidence.note_gaps(ledger)
        imported = _report(place, read.format, (arranged, evidence, len(chosen)), ledger)
        rows = [_row(question, evidence.spans.get(i, ())) for i, question in enumerate(arranged.questions)]
        shared = imported.shared_documents > 0
        publish(place, built, rows, (arranged.shape, shared), _origin(imported, source, read.about))
    return imported


def _row(question: SourceQuestion, spans: Sequence[Span]) -> dict[str, Any]:
    evidence = [
        {"document": span.document_id, "text": span.text, "start": span.start, "end": span.end} for span in spans
    ]
    return {
        "id": question.id,
        "split": question.split,
        "question": question.text,
        "answers": list(question.answers),
        "evidence": evidence,
    }


def _report(place: Place, source_format: Format, made: tuple[Arranged, Evidence, int], ledger: Ledger) -> Imported:
    arranged, evidence, documents = made
    questions, shape = arranged.questions, arranged.shape
    unanswerable = sum(not question.answers for question in questions)
    counts, gold = evidence.counts(), evidence.documents()
    return Imported(
        folder=place.folder,
        task=place.task,
        added=place.config is not None,
        source_format=source_format,
        answer_format=shape.format,
        metric=shape.metric,
        labels=len(shape.labels),
        documents=documents,
        gold=len(gold),
        questions={split: sum(question.split == split for question in questions) for split in SPLITS},
        unanswerable=unanswerable,
        evidence=counts,
        without_evidence=len(questions) - unanswerable - sum(counts.values()),
        split_by=arranged.split_by,
        shared_documents=sum(len(splits) > 1 for splits in gold.values()),
        skipped=ledger.skipped,
        notes=ledger.notes,
    )


def _origin(imported: Imported, source: Path, about: About) -> str:
    """The README's section on a task: where it came from, under what licence, what it holds, what was left out."""
    counts = " | ".join(str(imported.questions[split]) for split in SPLITS)
    lines = [
        f"## {imported.task}",
        "",
        f"**Origin.** {about.title or source.resolve().name}, imported by ragtune from `{source.resolve().name}` "
        f"(format {imported.source_format}). **Licence.** {about.licence or 'Not stated by the source.'}",
        "",
        f"{imported.documents} documents. Split: {imported.split_by}.",
        "",
        "| task | format | metric | train | dev | test | unanswerable | evidence |",
        "|---|---|---|---|---|---|---|---|",
        f"| `{imported.task}` | {imported.answer_format} | {imported.metric} | {counts} | {imported.unanswerable} | "
        f"{sum(imported.evidence.values())} questions |",
    ]
    if imported.shared_documents:
        shared = f"{imported.shared_documents} documents are evidence in more than one split."
        lines += ["", f"{shared} So a test question may ask about a document that was trained on."]
    for heading, kinds in (("Left out", imported.skipped), ("Notes", imported.notes)):
        if kinds:
            lines += ["", f"{heading}:", "", *(f"- {kind.count} x {kind.what}" for kind in kinds)]
    return clean("\n".join(lines)) + "\n"
