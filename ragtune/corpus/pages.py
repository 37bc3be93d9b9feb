"""Which page of a document an offset stands on."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping


def page_of(metadata: Mapping[str, str], offset: int) -> int | None:
    """The page (or slide), counted from 1, that a character of a document stands on; None where there are no pages.

    `metadata` is the document's, `offset` counts characters. What stands between two pages belongs to the first.
    """
    if "pages" not in metadata:
        return None
    return max(1, bisect_right(json.loads(metadata["pages"]), offset))
