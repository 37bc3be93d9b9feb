"""Questions to splits in whole groups (documents, or passages), so that nothing leaks from one split into another."""

from __future__ import annotations

import random
from collections.abc import Mapping

from ragtune.types import Split


def deal(
    sizes: Mapping[str, int], shares: Mapping[Split, float], bound: Mapping[str, Split], seed: int
) -> dict[str, Split]:
    """The split of each group, near to the shares by questions; `sizes` holds each group's questions.

    Bound groups keep their split. The others go, largest first, to the split that lacks most; the last ones to splits
    that would stay empty. `shares` sum to 1; a split with a share of 0 is given none.
    """
    total = sum(sizes.values())
    lacking = {split: share * total for split, share in shares.items() if share > 0}
    dealt = {group: bound[group] for group in sizes if group in bound}
    for group, split in dealt.items():
        if split in lacking:
            lacking[split] -= sizes[group]
    free = sorted(group for group in sizes if group not in bound)
    random.Random(seed).shuffle(free)
    free.sort(key=lambda group: -sizes[group])
    for number, group in enumerate(free):
        empty = [split for split in lacking if split not in dealt.values()]
        candidates = empty if len(free) - number <= len(empty) else list(lacking)
        # Of two that lack as much, the smaller one: it may still be empty.
        split = max(candidates, key=lambda s: (lacking[s], -shares[s]))
        dealt[group] = split
        lacking[split] -= sizes[group]
    return dealt
