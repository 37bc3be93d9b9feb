"""Which passages fit the token budget of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ragtune.types import Passage


def fit(
    passages: Sequence[Passage],
    count_tokens: Callable[[str], int],
    budget: int,
    keep: frozenset[str] = frozenset(),
) -> tuple[Passage, ...]:
    """Passages, best first, whose texts together stay within `budget` tokens.

    A passage that does not fit is left out and smaller ones behind it may still come in. Passages whose id is in
    `keep` (gold ones, when building training rows) are taken before all others, whatever their place; the result
    keeps the given order.
    """
    order = sorted(range(len(passages)), key=lambda i: (passages[i].id not in keep, i))
    taken, used = set(), 0
    for index in order:
        cost = count_tokens(passages[index].text)
        if used + cost <= budget:
            taken.add(index)
            used += cost
    return tuple(passages[i] for i in sorted(taken))
