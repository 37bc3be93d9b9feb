"""Dealing groups to splits: worked by hand, then what must hold for any sizes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ragtune.corpus.deal import deal
from ragtune.types import Split

SHARES: dict[Split, float] = {"train": 0.7, "dev": 0.1, "test": 0.2}
SPLITS = st.sampled_from(["train", "dev", "test"])


def test_by_hand() -> None:
    """Of 10 questions train lacks 7, test 2, dev 1."""
    dealt = deal({"a": 6, "b": 2, "c": 1, "d": 1}, SHARES, {}, seed=1)
    assert dealt["a"] == "train"  # lacks 7, then 1
    assert dealt["b"] == "test"  # lacks 2, then 0
    assert sorted((dealt["c"], dealt["d"])) == ["dev", "train"]  # each lacks 1; dev, meant to be smaller, comes first


def test_bound_groups_stay_and_count() -> None:
    dealt = deal({"a": 5, "b": 1, "c": 1}, SHARES, {"a": "test", "x": "dev"}, seed=1)
    assert dealt["a"] == "test"
    assert sorted((dealt["b"], dealt["c"])) == ["dev", "train"], "the test has more than its share already"


def test_the_seed_decides_between_equals() -> None:
    sizes = {str(i): 1 for i in range(30)}
    one, same, other = (deal(sizes, SHARES, {}, seed) for seed in (1, 1, 2))
    assert one == same != other


@given(
    st.dictionaries(st.text("abc", max_size=3), st.integers(1, 9), max_size=12),
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)).filter(any),
    st.dictionaries(st.text("abc", max_size=3), SPLITS, max_size=3),
    st.integers(0, 3),
)
def test_any(sizes: dict[str, int], parts: tuple[int, int, int], bound: dict[str, Split], seed: int) -> None:
    names: tuple[Split, ...] = ("train", "dev", "test")
    shares = {split: part / sum(parts) for split, part in zip(names, parts, strict=True)}
    dealt = deal(sizes, shares, bound, seed)
    assert dealt.keys() == sizes.keys()
    assert all(dealt[group] == split for group, split in bound.items() if group in dealt)
    free = [group for group in sizes if group not in bound]
    assert all(shares[dealt[group]] > 0 for group in free)
    wanted = [split for split in names if shares[split] > 0]
    if not bound and len(free) >= len(wanted):
        assert set(dealt.values()) == set(wanted)
