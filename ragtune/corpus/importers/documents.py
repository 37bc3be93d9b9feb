"""A source's documents -> files of the project, and on the way the evidence that they hold for its questions."""

from __future__ import annotations

import hashlib
import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ragtune import store
from ragtune.corpus.importers.evidence import (
    LONGEST_DOCUMENT,
    WAYS,
    Way,
    WrittenDocument,
    find_evidence,
    written_document,
)
from ragtune.corpus.importers.project import Place
from ragtune.corpus.importers.source import Ledger, Source, SourceDocument, SourceQuestion, one_line
from ragtune.corpus.load import load_documents
from ragtune.corpus.sandbox import Limits
from ragtune.types import Span, Split

_MAX_LINE, _MAX_BYTES = 1_000_000, 20_000_000
"""What `load_documents` reads: characters of a line, bytes of a file."""

_MAX_NAME = 80
_STEP = 200


@dataclass(slots=True)
class Evidence:
    """What documents hold for questions, gathered one document at a time.

    `search` allows looking for answers; `spans` and `ways` are kept by the position of the question.
    """

    questions: Sequence[SourceQuestion]
    search: bool
    spans: dict[int, list[Span]] = field(default_factory=lambda: defaultdict(list))
    ways: dict[int, list[Way]] = field(default_factory=lambda: defaultdict(list))
    seen: set[str] = field(default_factory=set)
    _asking: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        for i, question in enumerate(self.questions):
            for document in question.gold:
                self._asking[document].append(i)

    @property
    def unseen(self) -> set[str]:
        """Gold documents that did not come yet."""
        return self._asking.keys() - self.seen

    def gather(self, source_id: str, document: WrittenDocument) -> None:
        """Look into one document for the questions that name it."""
        if source_id not in self._asking:
            return
        self.seen.add(source_id)
        for i in self._asking[source_id]:
            way, spans = find_evidence(self.questions[i], source_id, document, self.search)
            if way:
                self.ways[i].append(way)
                self.spans[i] += (span for span in spans if span not in self.spans[i])

    def counts(self) -> dict[Way, int]:
        """Questions by the best of the ways in which their evidence was found."""
        best = Counter(min(ways, key=WAYS.index) for ways in self.ways.values())
        return {way: best[way] for way in WAYS}

    def documents(self) -> dict[str, set[Split | None]]:
        """The documents that hold evidence, and the splits that they hold it for."""
        used: dict[str, set[Split | None]] = defaultdict(set)
        for i, spans in self.spans.items():
            for span in spans:
                used[span.document_id].add(self.questions[i].split)
        return used

    def note_gaps(self, ledger: Ledger) -> None:
        """Count what gold documents did not give."""
        why = "it does not hold the answer" if self.search else "labels are not looked for"
        for i, question in enumerate(self.questions):
            ways = self.ways.get(i, [])
            came = [document for document in question.gold if document in self.seen]
            if not question.answers:
                continue
            if len(came) < len(question.gold):
                ledger.note("a gold document that is neither in the source nor in the project", question.where)
            if "stated" not in ways and any(quote.document_id in came for quote in question.quotes):
                ledger.note("stated evidence that does not stand in its document", question.where)
            if came and not ways:
                long = f"a gold document over {LONGEST_DOCUMENT} characters"
                ledger.note(f"no evidence in {long}: {why}", question.where)
            elif 0 < len(ways) < len(came):
                ledger.note("no evidence in one of several gold documents", question.where)


def choose_documents(
    read: Source, questions: Sequence[SourceQuestion], limit: int | None, seed: int, ledger: Ledger
) -> set[str]:
    """The ids of the documents to take: with a limit the gold ones, then others drawn at random as distractors."""
    gold = {document for question in questions for document in question.gold}
    present: set[str] = set()
    if limit is None:
        return {document.id for document in _usable(read, ledger)}

    def others() -> Iterator[str]:
        for document in _usable(read, ledger):
            if document.id in gold:
                present.add(document.id)
            else:
                yield document.id

    # The smallest hashes are a random sample that needs one pass and no more memory than it has members. (For 0 of
    # them nsmallest would not even look, and the gold ones would not be seen.)
    drawn = heapq.nsmallest(max(1, limit), others(), key=lambda name: _digest(f"{seed}/{name}"))
    if len(present) > limit:
        ledger.note(f"{limit} documents wanted, {len(present)} are gold and all kept", "the source")
    return present | set(drawn[: max(0, limit - len(present))])


def _usable(read: Source, ledger: Ledger) -> Iterator[SourceDocument]:
    """The documents that can be written and loaded again, each id once."""
    seen: set[str] = set()
    for document in read.documents(ledger):
        if document.id in seen:
            ledger.skip("a document with the id of an earlier one", document.where)
        elif not (document.text.strip() or document.title.strip()):
            ledger.skip("a document without text", document.where)
        elif len(document.text) > _MAX_LINE and _is_too_long(document):
            ledger.skip("a document that is too long (a line of 1,000,000 characters, or 20 MB)", document.where)
        else:
            seen.add(document.id)
            yield document


def _is_too_long(document: SourceDocument) -> bool:
    text = written_document(document, "").text
    return max(map(len, text.split("\n"))) > _MAX_LINE or len(text.encode("utf-8")) > _MAX_BYTES


def write_documents(
    read: Source,
    chosen: set[str],
    target: tuple[Place, Path],
    evidence: Evidence,
    progress: Callable[[str, int, int], None],
) -> None:
    """Write the chosen documents below `documents/TASK/`, and which id became which file; gather evidence on the way.

    A document that the project holds already, word for word, is used as it stands there.
    """
    place, built = target
    there = _documents_there(place)
    taken: set[str] = set()

    def write(number: int, document: SourceDocument) -> dict[str, str]:
        written = written_document(document, f"{place.task}/{_file_name(document.id, taken)}")
        data = written.text.encode("utf-8")
        same = there.get(hashlib.sha256(data).hexdigest())
        if same:
            written = replace(written, id=same)
        else:
            path = built / "documents" / written.id
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        evidence.gather(document.id, written)
        if number % _STEP == 0 or number == len(chosen):
            progress("writing documents", number, len(chosen))
        return {"document": written.id, "id": document.id, "title": one_line(document.title), "origin": document.origin}

    # What cannot be used was counted when documents were chosen.
    documents = (document for document in _usable(read, Ledger(skip_broken=True)) if document.id in chosen)
    if chosen:
        rows = (write(number, document) for number, document in enumerate(documents, 1))
        store.write_jsonl(built / "tasks" / f"{place.task}.documents.jsonl", rows)


def look_in_project(place: Place, evidence: Evidence) -> None:
    """Gather evidence from the project's own documents, where the source names them by their path there."""
    wanted = evidence.unseen
    if place.config is None or not wanted or not place.documents.is_dir():
        return
    index = place.config.index
    limits = Limits.from_config(index)
    found = load_documents(place.documents, include=index.include, exclude=index.exclude, limits=limits)
    for document in found.documents:
        if document.id in wanted:
            evidence.gather(document.id, WrittenDocument(document.id, document.text, 0, document.text))


def _documents_there(place: Place) -> dict[str, str]:
    """The ids of the project's Markdown documents by their sha256; none where it may be told not to read some."""
    if place.config is None or place.config.index.include or place.config.index.exclude:
        return {}
    found = {path.relative_to(place.documents): path for path in sorted(place.documents.rglob("*.md"))}
    return {
        store.sha256_of_file(path): name.as_posix()
        for name, path in found.items()
        if path.is_file() and not any(part.startswith(".") for part in name.parts)
    }


def _file_name(identity: str, taken: set[str]) -> str:
    """A file name for a document's id: safe everywhere, and its own even where case does not count."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", identity).strip("-._")[:_MAX_NAME]
    if name != identity or name.lower() in taken:
        name = f"{name}-{_digest(identity)[:8]}".lstrip("-")
    taken.add(name.lower())
    return f"{name}.md"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
