"""Which passages fit: never over the budget, never less than what greedy packing gives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ragtune.prompting.budget import fit
from ragtune.types import Passage


def passages(sizes: list[int]) -> list[Passage]:
    return [Passage(str(i), "d", "word " * size, 0, 5 * size) for i, size in enumerate(sizes)]


def words(text: str) -> int:
    return len(text.split())


def ids(sizes: list[int], budget: int, *keep: str) -> list[str]:
    return [p.id for p in fit(passages(sizes), words, budget, frozenset(keep))]


def test_best_first_until_the_budget_is_spent() -> None:
    assert ids([3, 4, 5], 7) == ["0", "1"]
    assert ids([3, 4, 5], 100) == ["0", "1", "2"]
    assert ids([3, 4, 5], 2) == ids([], 5) == []


def test_a_smaller_one_behind_comes_in() -> None:
    assert ids([3, 9, 2], 5) == ["0", "2"]


def test_kept_ones_go_before_better_ones_and_stay_in_place() -> None:
    assert ids([3, 4, 5], 8) == ["0", "1"]
    assert ids([3, 4, 5], 8, "2") == ["0", "2"]
    assert ids([3, 4, 5], 5, "2") == ["2"]
    assert ids([3, 4, 9], 8, "2") == ["0", "1"]  # larger than the whole budget: even so left out


@given(
    sizes=st.lists(st.integers(0, 30), max_size=10),
    budget=st.integers(0, 80),
    kept=st.sets(st.integers(0, 9)),
)
def test_properties(sizes: list[int], budget: int, kept: set[int]) -> None:
    taken = [int(name) for name in ids(sizes, budget, *map(str, kept))]
    left = [i for i in range(len(sizes)) if i not in taken]
    used = sum(sizes[i] for i in taken)
    assert taken == sorted(set(taken))
    assert used <= budget
    # Nothing that was left out would still fit ...
    assert all(used + sizes[i] > budget for i in left)
    # ... and it did not fit beside what goes before it: kept ones first, then by place.
    for i in left:
        before = [j for j in taken if (j not in kept, j) < (i not in kept, i)]
        assert sum(sizes[j] for j in before) + sizes[i] > budget
