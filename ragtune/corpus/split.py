"""Document -> passages: slices with exact offsets, cut where the text itself has borders.

A heading starts a section; the blocks of a section are packed greedily. A block that fits stays whole; a longer one
is cut at sentences, lines, words, tokens and, if nothing else is left, characters. Tokens are counted on the whole
document once, which is quick but may be off by some at a passage's ends, so each passage is counted again on its own.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ragtune.corpus.markdown import Block, blocks, trim
from ragtune.errors import InputError
from ragtune.types import Document, Passage

TokenOffsets = Callable[[str], list[tuple[int, int]]]
_Measure = Callable[[int, int], int]

_TINY_SHARE = 8
"""A section of at most 1/8 of a passage's tokens is tiny: it may share a passage with what follows it."""

# A run of stops is entered at its first character only, so that the search stays linear in long runs of dots.
_SENTENCE_END = re.compile(
    r"(?<![.!?…])[.!?…]++[\"'”’»)\]]*+\s++(?![a-z])|(?<![。！？｡।॥؟۔])[。！？｡।॥؟۔]++[」』”’）]*+\s*+"
)
_LINE_END = re.compile(r"\n")
_UNIT_END = re.compile(r"\n[ \t]*\n(?=\S)")
"""In code: an empty line before one that is not indented, as between functions."""

_MAX_HEADER = 200
_WORD_END = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class _Section:
    """Headings and the blocks below them, up to the next heading."""

    path: tuple[str, ...]
    blocks: tuple[Block, ...]

    @property
    def start(self) -> int:
        return self.blocks[0].start

    @property
    def end(self) -> int:
        return self.blocks[-1].end


@dataclass(frozen=True, slots=True)
class _Ruler:
    """Counts tokens in slices of one text."""

    text: str
    token_offsets: TokenOffsets
    starts: list[int]
    ends: list[int]

    def about(self, start: int, end: int) -> int:
        """How many tokens of the whole text touch the slice."""
        return bisect_left(self.starts, end) - bisect_right(self.ends, start)

    def exact(self, start: int, end: int) -> int:
        """How many tokens the slice has on its own."""
        return len(self.token_offsets(self.text[start:end]))


def split_document(
    document: Document, token_offsets: TokenOffsets, max_tokens: int, overlap_tokens: int = 0
) -> list[Passage]:
    """Passages in order that hold every non-whitespace character, none over `max_tokens` as counted on its own text.

    `token_offsets` gives the character offsets of a text's tokens, without special tokens and without truncation.
    `overlap_tokens`: up to that many tokens of whole sentences are repeated from the passage before, inside a section.
    Passages are stripped of outer whitespace. `headings` begins with the document's title where no level-1 heading
    stands above; where tiny sections share a passage it is the part of the path that they have in common.
    A passage that begins inside a table has the first row of the table as its last heading.

    Raises: InputError when the limits make no sense, or when one character alone has more than `max_tokens` tokens.
    """
    if max_tokens < 1 or not 0 <= overlap_tokens < max_tokens:
        raise InputError(
            f"max_tokens {max_tokens} and overlap_tokens {overlap_tokens}: expected max_tokens of at least 1 and "
            "overlap_tokens from 0 to below max_tokens"
        )
    text = document.text
    offsets = token_offsets(text)
    ruler = _Ruler(text, token_offsets, sorted(start for start, _ in offsets), sorted(end for _, end in offsets))
    passages = []
    for section in _join_tiny(_sections(document), ruler, max_tokens):
        try:
            for start, end in _spans(section.blocks, ruler, max_tokens, overlap_tokens):
                name = f"{document.id}#{start}-{end}"
                headings = (*section.path, *_table_header(section, start, text))
                passages.append(Passage(name, document.id, text[start:end], start, end, headings))
        except InputError as error:
            raise InputError(f"{document.id}: {error}") from None
    return passages


def _sections(document: Document) -> Iterator[_Section]:
    path: list[tuple[int, str]] = []
    current: list[Block] = []
    for block in blocks(document.text):
        if block.kind == "heading":
            if current and current[-1].kind != "heading":
                yield _Section(_titles(path, document.title), tuple(current))
                current = []
            path = [above for above in path if above[0] < block.level] + [(block.level, block.title)]
        current.append(block)
    if current:
        yield _Section(_titles(path, document.title), tuple(current))


def _titles(path: list[tuple[int, str]], document_title: str) -> tuple[str, ...]:
    titles = tuple(title for _, title in path if title)
    if (path and path[0][0] == 1) or titles[:1] == (document_title,) or not document_title:
        return titles
    return (document_title, *titles)


def _table_header(section: _Section, start: int, text: str) -> tuple[str, ...]:
    """The first row of the table that a passage begins inside of: without it cells do not say what they are."""
    block = section.blocks[bisect_right(section.blocks, start, key=lambda block: block.start) - 1]
    if block.kind != "table" or start == block.start:
        return ()
    end = text.find("\n", block.start, block.end)
    header = text[block.start : end].strip("| \t")
    return (header,) if block.start < end <= start and len(header) <= _MAX_HEADER else ()


def _join_tiny(sections: Iterator[_Section], ruler: _Ruler, limit: int) -> list[_Section]:
    """Let a tiny section share a passage with the next one where both fit whole."""
    joined: list[_Section] = []
    for section in sections:
        last = joined[-1] if joined else None
        if (
            last is not None
            and ruler.about(last.start, last.end) <= limit // _TINY_SHARE
            and ruler.about(last.start, section.end) <= limit
        ):
            pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(last.path, section.path, strict=False))
            joined[-1] = _Section(tuple(title for title, _ in pairs), last.blocks + section.blocks)
        else:
            joined.append(section)
    return joined


def _spans(section: tuple[Block, ...], ruler: _Ruler, limit: int, overlap: int) -> Iterator[tuple[int, int]]:
    borders = _sentence_starts(section, ruler) if overlap else []
    queue = deque(section)
    start = queue[0].start
    while queue:
        start, end = _fill(queue, start, ruler, limit)
        yield start, end
        if queue:
            inside = borders[bisect_right(borders, start) : bisect_left(borders, end)]
            start = next((border for border in inside if ruler.about(border, end) <= overlap), queue[0].start)


def _fill(queue: deque[Block], start: int, ruler: _Ruler, limit: int) -> tuple[int, int]:
    """Take pieces off the queue for one passage from `start` on; gives the passage's start and end."""
    exact, budget = False, limit
    while True:
        measure = ruler.exact if exact else ruler.about
        taken = _take(queue, start, ruler, measure, budget)
        if not taken and start < queue[0].start:
            start, budget = queue[0].start, limit  # No room beside the repeated sentences: leave them out.
            continue
        if not taken and exact:
            raise InputError(f"the character at offset {start} alone has more than {limit} tokens; raise max_tokens")
        if taken:
            end = taken[-1].end
            tokens = ruler.exact(start, end)
            if tokens <= limit:
                return start, end
            # The estimate was too low. Try again with less, and at last by exact counts, which are slow.
            queue.extendleft(reversed(taken))
            budget = measure(start, end) * limit // tokens
        if not taken or budget < 1:
            exact, budget = True, limit


def _take(queue: deque[Block], start: int, ruler: _Ruler, measure: _Measure, budget: int) -> list[Block]:
    """Pieces for one passage; pieces too long are cut in the queue. Empty when not even the first one has room."""
    taken: list[Block] = []
    while queue:
        piece = queue[0]
        if measure(start, piece.end) <= budget:
            taken.append(queue.popleft())
            continue
        fits_alone = measure(piece.start, piece.end) <= budget
        # A heading needs company, even if a block that could stay whole has to be cut for it.
        needed = bool(taken) and piece.kind != "heading" and _only_headings(taken)
        finer = [] if fits_alone and not needed else _cut(piece, ruler, to_words=bool(taken))
        if len(finer) < 2:
            break
        queue.popleft()
        queue.extendleft(reversed(finer))
    if queue and len(taken) > 1 and _only_headings(taken):
        queue.appendleft(taken.pop())
    return taken


def _only_headings(taken: list[Block]) -> bool:
    return all(block.kind == "heading" for block in taken)


def _cut(piece: Block, ruler: _Ruler, to_words: bool) -> list[Block]:
    """The piece cut at the coarsest borders that it has; itself if it has none (`to_words`: keep words whole)."""
    start, end = piece.start, piece.end
    units = (_UNIT_END,) if piece.kind == "code" else ()
    for pattern in (*units, *_borders(piece), _WORD_END):
        borders = [match.end() for match in pattern.finditer(ruler.text, start, end)]
        if borders and borders[0] < end:
            return _between(piece, borders, ruler.text)
    if to_words:
        return [piece]
    tokens = ruler.starts[bisect_right(ruler.starts, start) : bisect_left(ruler.starts, end)]
    return _between(piece, tokens or list(range(start + 1, end)), ruler.text)


def _borders(piece: Block) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Prose breaks best between sentences; rows, items and lines of code break best between lines."""
    return (_SENTENCE_END, _LINE_END) if piece.kind in ("text", "heading") else (_LINE_END, _SENTENCE_END)


def _between(piece: Block, borders: list[int], text: str) -> list[Block]:
    edges = [piece.start, *borders, piece.end]
    spans = (trim(text, start, end) for start, end in itertools.pairwise(edges))
    return [Block(piece.kind, start, end) for start, end in spans if start < end]


def _sentence_starts(section: tuple[Block, ...], ruler: _Ruler) -> list[int]:
    starts = []
    for block in section:
        if block.kind != "heading":
            borders = [match.end() for match in _borders(block)[0].finditer(ruler.text, block.start, block.end)]
            starts += [part.start for part in _between(block, borders, ruler.text)]
    return starts
