"""PowerPoint presentations: slide by slide, with tables and the speaker's notes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import TYPE_CHECKING, Any

from ragtune.corpus.readers.parsed import Parsed, one_line, open_zip, stated, table
from ragtune.errors import InputError

if TYPE_CHECKING:
    from pptx.slide import Slide


def read_pptx(data: bytes) -> Parsed:
    """A section a slide, its shapes from top to bottom; metadata `pages` holds where each slide starts.

    Raises: InputError for a file that unpacks to far more than it is, and for one without text.
    """
    open_zip(data)
    import pptx

    presentation = pptx.Presentation(BytesIO(data))
    slides = ["\n\n".join(_slide(slide, number)) for number, slide in enumerate(presentation.slides, 1)]
    if not any(slides):
        raise InputError("no text")
    about = presentation.core_properties
    metadata = stated(author=about.author, created=about.created, modified=about.modified, language=about.language)
    return join_pages(slides, one_line(about.title), metadata)


def join_pages(pages: Iterable[str], title: str, metadata: dict[str, str]) -> Parsed:
    """Pages joined by a blank line; metadata `pages` becomes the JSON list of their start offsets."""
    pages, starts, offset = list(pages), [], 0
    for page in pages:
        starts.append(offset)
        offset += len(page) + 2
    return Parsed("\n\n".join(pages), title, {**metadata, "pages": json.dumps(starts)})


def _slide(slide: Slide, number: int) -> Iterator[str]:
    title = slide.shapes.title
    blocks = [block for shape in _in_order(slide.shapes) if shape != title for block in _shape(shape)]
    heading = one_line(title.text_frame.text) if title is not None else ""
    notes = slide.notes_slide.notes_text_frame if slide.has_notes_slide else None
    if notes is not None and notes.text.strip():
        blocks.append(f"Notes: {notes.text.strip()}")
    if heading or blocks:
        yield f"## {heading or f'Slide {number}'}"
        yield from blocks


def _in_order(shapes: Any) -> list[Any]:
    """As they are read: from top to bottom, and from left to right."""
    return sorted(shapes, key=lambda shape: (shape.top or 0, shape.left or 0))


def _shape(shape: Any) -> Iterator[str]:
    from pptx.enum.shapes import MSO_SHAPE_TYPE

    if shape.has_text_frame and shape.text_frame.text.strip():
        yield "\n".join(filter(None, (paragraph.text.strip() for paragraph in shape.text_frame.paragraphs)))
    elif shape.has_table:
        yield from filter(None, [table([cell.text for cell in row.cells] for row in shape.table.rows)])
    elif shape.shape_type == MSO_SHAPE_TYPE.GROUP:
        for inner in _in_order(shape.shapes):
            yield from _shape(inner)
