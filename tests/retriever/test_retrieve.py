"""The index folder from end to end: built, opened, searched; damaged, mismatched, interrupted, written twice."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from ragtune import store
from ragtune.config import IndexConfig, RetrievalConfig
from ragtune.errors import BusyError, InputError, MismatchError, StoreError
from ragtune.retriever.retrieve import Index, Retriever, build_index, embedded_texts, open_index
from ragtune.testing import HashEmbedder
from ragtune.types import Document, Passage

EMBEDDER = HashEmbedder()
TEXTS = {
    "dogs.md": "Dogs stay on a lead. Puppies may run free on the green meadow.",
    "boats.md": "Boats moor at the long jetty. A kayak needs no licence.",
    "food.md": "The kiosk sells ice cream and coffee until nine.",
}


def passages_of(document_id: str, text: str) -> list[Passage]:
    """One passage a sentence."""
    found, start = [], 0
    for sentence in text.split(". "):
        end = min(start + len(sentence) + 1, len(text))
        found.append(Passage(f"{document_id}#{start}-{end}", document_id, text[start:end], start, end, ("Rules",)))
        start = end + 1
    return found


DOCUMENTS = [Document(name, text, name, store.sha256_of_text(text)) for name, text in TEXTS.items()]
PASSAGES = [passage for name, text in TEXTS.items() for passage in passages_of(name, text)]
INPUTS = {"documents": {d.id: d.sha256 for d in DOCUMENTS}, "embedder": EMBEDDER.fingerprint}


def build(target: Path, embedder: HashEmbedder = EMBEDDER, passages: Sequence[Passage] = PASSAGES) -> Path:
    build_index(target, DOCUMENTS, passages, embedder, IndexConfig(), INPUTS)
    return target


def retriever(index: Index, **settings: int) -> Retriever:
    return Retriever(index, EMBEDDER, RetrievalConfig(**settings))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("indexes") / "rules")


@pytest.fixture(scope="module")
def index(folder: Path) -> Index:
    return open_index(folder)


def test_what_was_indexed_comes_back(folder: Path, index: Index) -> None:
    assert list(index.documents.values()) == DOCUMENTS
    assert index.passages == tuple(PASSAGES)
    assert index.by_id["food.md#0-48"] == PASSAGES[-1]
    assert {p.relative_to(folder).as_posix().split("/")[0] for p in folder.rglob("*")} == {
        "documents.jsonl",
        "passages.jsonl",
        "vectors.faiss",
        "keywords",
        "manifest.json",
    }
    manifest = index.manifest
    assert (manifest["documents"], manifest["passages"], manifest["inputs"]) == (3, 5, INPUTS)
    assert manifest["embedder"] == {"name": "hash", "fingerprint": EMBEDDER.fingerprint, "dimension": 4096}
    assert all(p.text == index.documents[p.document_id].text[p.start : p.end] for p in index.passages)


def test_fingerprint_follows_the_inputs(index: Index, tmp_path: Path) -> None:
    assert open_index(build(tmp_path / "same")).fingerprint == index.fingerprint
    build_index(tmp_path / "other", DOCUMENTS, PASSAGES, EMBEDDER, IndexConfig(), {**INPUTS, "embedder": "x"})
    assert open_index(tmp_path / "other").fingerprint != index.fingerprint


def test_progress_is_reported_by_passage(tmp_path: Path) -> None:
    many = [replace(PASSAGES[0], id=str(i)) for i in range(300)]
    seen: list[tuple[int, int]] = []
    build_index(tmp_path / "a", DOCUMENTS, many, EMBEDDER, IndexConfig(), INPUTS, lambda *done: seen.append(done))
    assert seen == [(256, 300), (300, 300)]
    assert open_index(tmp_path / "a").vectors.ntotal == 300


def test_first_in_both_rankings(index: Index) -> None:
    first, *_ = retriever(index).search(["Does a kayak need a licence?"])[0]
    assert first.passage.text == "A kayak needs no licence."
    assert first.rank == 1
    assert first.score == pytest.approx(2 / 61)


def test_rankings_are_fused(index: Index) -> None:
    """By hand, the heading counted. Cosines of `on the coffee` (3 words) with the passages in order:

    1/sqrt(3*6), 2/sqrt(3*9), 1/sqrt(3*7), 0, 2/sqrt(3*10): places 1, 4, 0, 2, 3.
    The keyword index leaves out `on` and `the`, and knows `coffee` in passage 4 alone.
    """
    (hits,) = retriever(index, k=5).search(["on the coffee"])
    assert [PASSAGES.index(hit.passage) for hit in hits] == [4, 1, 0, 2, 3]
    assert [hit.score for hit in hits] == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 63, 1 / 64, 1 / 65])
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]


def test_headings_are_searched_and_are_not_the_passage(tmp_path: Path) -> None:
    told = [replace(PASSAGES[0], headings=("Pets", "Leashes")), *PASSAGES[1:]]
    first, *_ = retriever(open_index(build(tmp_path / "a", passages=told))).search(["leashes"])[0]
    assert first.passage == told[0]
    assert "Leashes" not in first.passage.text


def test_headings_too_long_for_the_embedder_are_left_out() -> None:
    passage = Passage("a", "a", "three short words", 0, 17, ("Some", "headings"))
    plain = replace(passage, headings=())
    for limit, expected in ((7, "Some > headings\nthree short words"), (6, "three short words")):
        assert embedded_texts([passage, plain], HashEmbedder(max_tokens=limit)) == [expected, "three short words"]


def test_k_from_the_config_or_the_call(index: Index) -> None:
    two = retriever(index, k=2)
    assert len(two.search(["dogs"])[0]) == 2
    assert len(two.search(["dogs"], k=3)[0]) == 3
    assert len(two.search(["dogs"], k=50)[0]) == len(PASSAGES)
    assert two.search(["dogs"], k=3)[0][:2] == two.search(["dogs"])[0]


def test_k_above_the_candidates_still_gives_k(index: Index) -> None:
    assert len(retriever(index, candidates=1).search(["dogs"], k=4)[0]) == 4


def test_many_queries_keep_their_order(index: Index) -> None:
    queries = ["kayak", "coffee", "puppies"]
    together = retriever(index).search(queries)
    assert together == [retriever(index).search([query])[0] for query in queries]
    assert [hits[0].passage.document_id for hits in together] == ["boats.md", "food.md", "dogs.md"]
    assert retriever(index).search([]) == []


@pytest.mark.parametrize("query", ["", "  \n"])
def test_an_empty_query(index: Index, query: str) -> None:
    with pytest.raises(InputError, match="the query is empty"):
        retriever(index).search(["dogs", query])


@pytest.mark.parametrize("k", [0, -1])
def test_at_least_one_passage(index: Index, k: int) -> None:
    with pytest.raises(InputError, match=f"k = {k}: at least one"):
        retriever(index).search(["dogs"], k)


def test_another_embedder(index: Index) -> None:
    with pytest.raises(MismatchError, match=r"was built with embedder hash \(.{12}\), the one at hand is other"):
        Retriever(index, HashEmbedder(name="other"), RetrievalConfig())


FILES = (
    "documents.jsonl",
    "keywords/data.csc.index.npy",
    "keywords/indices.csc.index.npy",
    "keywords/indptr.csc.index.npy",
    "keywords/params.index.json",
    "keywords/vocab.index.json",
    "passages.jsonl",
    "vectors.faiss",
)


def test_every_file_is_in_the_manifest(folder: Path, index: Index) -> None:
    found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert found == sorted([*FILES, store.MANIFEST])
    assert sorted(index.manifest["files"]) == sorted(FILES)


def flip_bits(path: Path, places: Sequence[int]) -> list[str]:
    """What opening and searching the index raises for each flipped bit; 'nothing' where it goes unnoticed."""
    whole, seen = path.read_bytes(), []
    folder = next(parent for parent in path.parents if (parent / store.MANIFEST).exists())
    for place in places:
        data = bytearray(whole)
        data[place // 8] ^= 1 << (place % 8)
        path.write_bytes(data)
        try:
            retriever(open_index(folder)).search(["dogs"])
            seen.append("nothing")
        except StoreError:
            seen.append("StoreError")
        except Exception as error:  # each other error is a finding, whatever its class
            seen.append(type(error).__name__)
    path.write_bytes(whole)
    return seen


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit(folder: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    bits = 8 * (copy / name).stat().st_size
    places = [0, bits // 2, bits - 1, *random.Random(name).sample(range(bits), 5)]
    assert flip_bits(copy / name, places) == ["StoreError"] * len(places)
    assert open_index(copy).passages == tuple(PASSAGES)


def test_one_flipped_bit_in_the_manifest(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    bits = 8 * (copy / store.MANIFEST).stat().st_size
    assert set(flip_bits(copy / store.MANIFEST, random.Random(0).sample(range(bits), 60))) == {"StoreError"}


def test_a_missing_index_and_a_missing_file(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no index at"):
        open_index(tmp_path / "nowhere")
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "vectors.faiss").unlink()
    with pytest.raises(StoreError, match=r"vectors\.faiss is missing; make the index again"):
        open_index(copy)


@dataclass(frozen=True)
class BrokenEmbedder(HashEmbedder):
    """Gives up in the second chunk."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        if len(texts) < 256:
            raise MemoryError("no more memory")
        return super().embed(texts)


def test_a_crash_while_building_leaves_the_old_index(tmp_path: Path) -> None:
    target = build(tmp_path / "a")
    many = [replace(PASSAGES[0], id=str(i)) for i in range(300)]
    with pytest.raises(MemoryError):
        build(target, BrokenEmbedder(), many)
    assert open_index(target).passages == tuple(PASSAGES)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.lock", "a"]


def test_a_first_build_that_crashes_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(MemoryError):
        build(tmp_path / "a", BrokenEmbedder())
    assert [p.name for p in tmp_path.iterdir()] == [".a.lock"]


BUILDER = """
import os, resource, sys
from pathlib import Path
from ragtune.config import IndexConfig
from ragtune.errors import StoreError
from ragtune.retriever.retrieve import build_index, open_index
from ragtune.testing import HashEmbedder
from ragtune.types import Document, Passage

target, how = Path(sys.argv[1]), sys.argv[2]
words = " ".join(f"word{i}" for i in range(200))
document = Document("a", words, "a", "0")
passages = [Passage(str(i), "a", words, 0, len(words)) for i in range(20)]

class Killed(HashEmbedder):
    def embed(self, texts):
        os.kill(os.getpid(), 9)

def build(embedder):
    build_index(target, [document], passages, embedder, IndexConfig(), {})

if how == "killed":
    build(Killed())
for limit in range(0, 36_000, 1_500):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        build(HashEmbedder(dimension=256))
        print(limit, "built")
        break
    except StoreError as error:
        whole = len(open_index(target).passages) == 5
        print(limit, f"{error}, the old index is {'whole' if whole else 'gone'}")
"""


def run_builder(target: Path, how: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BUILDER, str(target), how]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_kill_9_while_building_leaves_the_old_index(tmp_path: Path) -> None:
    target = build(tmp_path / "a")
    assert run_builder(target, "killed").returncode == -signal.SIGKILL
    assert open_index(target).passages == tuple(PASSAGES)
    build(target, passages=PASSAGES[:2])  # the dead process left no lock
    assert len(open_index(target).passages) == 2


def test_a_full_disk_is_noticed_in_whichever_file_it_happens(tmp_path: Path) -> None:
    """Files of up to `limit` bytes can be written: from none at all to all but the largest, nothing is replaced."""
    target = build(tmp_path / "a")
    result = run_builder(target, "full disk")
    assert (result.returncode, result.stderr) == (0, "")
    *failed, last = result.stdout.splitlines()
    assert len(failed) > 10
    assert all(line.endswith(", the old index is whole") for line in failed)
    assert all(f"cannot write {tmp_path}" in line and "File too large" in line for line in failed)
    assert last.endswith("built")
    assert len(open_index(target).passages) == 20
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.lock", "a"]


def test_two_writers(tmp_path: Path) -> None:
    """While one process embeds, another that wants the same folder is told so, and the first goes on unharmed."""
    target = tmp_path / "a"
    refused: list[str] = []

    @dataclass(frozen=True)
    class Interrupted(HashEmbedder):
        def embed(self, texts: Sequence[str]) -> np.ndarray:
            with pytest.raises(BusyError) as caught:
                build(target, passages=PASSAGES[:1])
            refused.append(str(caught.value))
            return super().embed(texts)

    build(target, Interrupted())
    assert refused == [f"another ragtune process is writing {target}; wait until it ends, or choose another name"]
    assert open_index(target).passages == tuple(PASSAGES)


def test_no_passages(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        build(tmp_path / "a", passages=[])
