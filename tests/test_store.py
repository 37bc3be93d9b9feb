"""What we write survives kills, full disks and second writers; what was damaged is never read as if it were whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ragtune import store
from ragtune.errors import BusyError, MismatchError, StoreError
from ragtune.store import JsonlLog, atomic_folder, locked

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
ROWS = st.lists(st.dictionaries(TEXT, TEXT | st.integers() | st.none() | st.lists(TEXT, max_size=2)), max_size=4)


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Another Python process; its arguments are `sys.argv[1:]`."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def write(target: Path, text: str, kind: str = "thing", **manifest: Any) -> Path:
    with atomic_folder(target, {"kind": kind, **manifest}) as building:
        (building / "sub").mkdir()
        (building / "sub" / "file.txt").write_text(text)
    return target


def content(target: Path) -> str:
    store.open_folder(target, "thing")
    return (target / "sub" / "file.txt").read_text()


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".building", ".old", ".part"))


# Fingerprints


def test_text_fingerprint_is_over_length_prefixed_parts() -> None:
    assert store.sha256_of_text("ab", "c") == hashlib.sha256(b"2:ab1:c").hexdigest()
    assert store.sha256_of_text("é") == hashlib.sha256(b"2:\xc3\xa9").hexdigest()
    assert len({store.sha256_of_text(*parts) for parts in (("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""))}) == 4
    assert store.sha256_of_text("\ud800") != store.sha256_of_text("?")


def test_json_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    assert store.sha256_of_json({"b": [1, 2], "a": "é"}) == store.sha256_of_json({"a": "é", "b": [1, 2]})
    assert store.sha256_of_json({"a": [1, 2]}) != store.sha256_of_json({"a": [2, 1]})
    assert store.sha256_of_json({"a": "é"}) == store.sha256_of_text('{"a":"é"}')


def test_file_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert store.sha256_of_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_package_versions_name_what_is_installed() -> None:
    assert store.package_versions()["torch"][0].isdigit()


# JSON and JSONL


def test_json_is_written_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    store.write_json(path, {"é": [1, None]})
    store.write_json(path, {"é": [2]})
    assert store.read_json(path) == {"é": [2]}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_json_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        store.read_json(tmp_path / "a.json")
    for data in (b"{", b'"\xff"'):
        (tmp_path / "a.json").write_bytes(data)
        with pytest.raises(StoreError, match="is not valid JSON"):
            store.read_json(tmp_path / "a.json")


@settings(max_examples=40, deadline=None)
@given(ROWS)
@example([{"line\u2028end": "a\r\nb\x85c\u2029"}])
def test_jsonl_round_trip(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        store.write_jsonl(path, rows)
        assert list(store.read_jsonl(path)) == rows


def test_jsonl_errors_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with pytest.raises(StoreError, match="does not exist"):
        list(store.read_jsonl(path))
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(StoreError, match="line 2: not valid JSON"):
        list(store.read_jsonl(path))
    path.write_text('{"a": 1}\n[1]\n')
    with pytest.raises(StoreError, match="line 2: expected a JSON object, found list"):
        list(store.read_jsonl(path))


def test_jsonl_that_is_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(StoreError, match="line 1"):
        list(store.read_jsonl(tmp_path / "rows.jsonl"))


# The append-only log


@settings(max_examples=40, deadline=None)
@given(before=ROWS, torn=ROWS.filter(bool), after=ROWS, cut=st.floats(0, 1, exclude_max=True))
@example(before=[], torn=[{"": "é"}], after=[{"a": 1}], cut=0.6)
def test_a_torn_line_is_cut_off(
    before: list[dict[str, Any]], torn: list[dict[str, Any]], after: list[dict[str, Any]], cut: float
) -> None:
    """Whatever byte a kill stops at, whole lines stay, the torn one goes, and the log can be continued."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "logs" / "answers.jsonl"
        log = JsonlLog(path)
        log.append(before)
        safe = path.stat().st_size
        log.append(torn)
        whole = path.read_bytes()
        path.write_bytes(whole[: safe + int(cut * (len(whole) - safe))])
        kept = path.read_bytes()[safe:].count(b"\n")

        again = JsonlLog(path)
        assert again.rows() == before + torn[:kept]
        again.append(after)
        assert JsonlLog(path).rows() == before + torn[:kept] + after


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert JsonlLog(tmp_path / "a.jsonl").rows() == []


def test_a_kill_loses_no_appended_row(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from ragtune.store import JsonlLog
log = JsonlLog(Path(sys.argv[1]))
for i in range(3):
    log.append([{"i": i}])
with log.path.open("a") as file:
    file.write('{"i": ')
    file.flush()
    os.kill(os.getpid(), 9)
"""
    path = tmp_path / "a.jsonl"
    assert run(code, path).returncode == -signal.SIGKILL
    assert path.read_text().endswith('{"i": ')
    assert JsonlLog(path).rows() == [{"i": 0}, {"i": 1}, {"i": 2}]


FULL_DISK_LOG = """
import resource, sys
from pathlib import Path
from ragtune.errors import StoreError
from ragtune.store import JsonlLog
log = JsonlLog(Path(sys.argv[1]))
log.append([{"a": 1}])
resource.setrlimit(resource.RLIMIT_FSIZE, (16, resource.RLIM_INFINITY))
try:
    log.append([{"b": "x" * 100}])
except StoreError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
if len(sys.argv) > 2:
    log.append([{"c": 3}])
"""


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    result = run(FULL_DISK_LOG, path)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"cannot write {path}: File too large" in result.stdout
    assert JsonlLog(path).rows() == [{"a": 1}]


def test_a_log_goes_on_after_a_full_disk(tmp_path: Path) -> None:
    assert run(FULL_DISK_LOG, tmp_path / "a.jsonl", "go on").returncode == 0
    assert JsonlLog(tmp_path / "a.jsonl").rows() == [{"a": 1}, {"c": 3}]


def test_a_log_in_an_impossible_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        JsonlLog(tmp_path / "file" / "a.jsonl")


# Locks


@contextlib.contextmanager
def other_holder(target: Path) -> Iterator[subprocess.Popen[str]]:
    code = """
import sys
from pathlib import Path
from ragtune.store import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""
    command = [sys.executable, "-c", code, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or process.stdout.readline() != "held\n":
                pytest.fail("the other process did not get the lock")
            yield process
        finally:
            process.kill()


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with other_holder(target) as process:
        with pytest.raises(BusyError, match=f"another ragtune process is writing {target}"), locked(target):
            pytest.fail("two processes hold one lock")
        with pytest.raises(BusyError):
            write(target, "mine")
        with locked(tmp_path / "b"):  # another folder is free
            process.kill()  # a lock dies with its process
    write(target, "mine")
    assert content(target) == "mine"


def test_waiting_for_a_lock(tmp_path: Path) -> None:
    with other_holder(tmp_path / "a") as process:
        with pytest.raises(BusyError), locked(tmp_path / "a", wait_seconds=0.15):
            pytest.fail("two processes hold one lock")
        process.communicate("go\n")
        with locked(tmp_path / "a", wait_seconds=5.0) as held:
            assert held is None


def test_a_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "a"):
        raise ZeroDivisionError
    with locked(tmp_path / "a") as held:
        assert held is None


# Atomic folders


def test_the_manifest_tells_of_every_file(tmp_path: Path) -> None:
    manifest = store.open_folder(write(tmp_path / "new" / "a", "text", inputs={"x": 1}), "thing")
    assert manifest["files"] == {"sub/file.txt": hashlib.sha256(b"text").hexdigest()}
    assert (manifest["kind"], manifest["inputs"], manifest["format_version"]) == (
        "thing",
        {"x": 1},
        store.FORMAT_VERSION,
    )
    assert manifest["packages"] == store.package_versions()
    assert manifest["created"].endswith("Z")
    assert leftovers(tmp_path / "new") == []


def test_the_manifest_may_grow_until_the_end(tmp_path: Path) -> None:
    manifest: dict[str, Any] = {"kind": "thing"}
    with atomic_folder(tmp_path / "a", manifest):
        manifest["seconds"] = 1.5
    assert store.read_manifest(tmp_path / "a", "thing")["seconds"] == 1.5


def test_a_new_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "a", {"kind": "thing"}) as building:
        (building / "only in the old one").write_text("")
    assert content(write(tmp_path / "a", "new")) == "new"
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["manifest.json", "sub"]
    assert leftovers(tmp_path) == []


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "a", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o750


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_old_folder(tmp_path: Path, error: type[BaseException]) -> None:
    write(tmp_path / "a", "old")
    with pytest.raises(error), atomic_folder(tmp_path / "a", {"kind": "thing"}) as building:
        (building / "half").write_text("new")
        raise error
    assert content(tmp_path / "a") == "old"
    assert leftovers(tmp_path) == []


def test_an_empty_folder_is_taken_and_a_foreign_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert content(write(tmp_path / "empty", "new")) == "new"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("precious")
    with pytest.raises(StoreError, match="not a folder that ragtune wrote; choose another place"):
        write(tmp_path / "photos", "new")
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "precious"
    assert leftovers(tmp_path) == []


def test_a_foreign_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("precious")
    with pytest.raises(StoreError):
        write(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "precious"


KILLED_WRITER = """
import os, sys
from pathlib import Path
from ragtune import store
target, when = Path(sys.argv[1]), sys.argv[2]

def die(*_, **__):
    os.kill(os.getpid(), 9)

if when == "before the manifest":
    store.write_json = die
elif when == "before the exchange":
    store._exchange = die
elif when == "after the exchange":
    exchange = store._exchange
    store._exchange = lambda a, b: (exchange(a, b), die())
with store.atomic_folder(target, {"kind": "thing"}) as building:
    (building / "sub").mkdir()
    (building / "sub" / "file.txt").write_text("new")
    if when == "inside the block":
        die()
"""


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("inside the block", "old"),
        ("before the manifest", "old"),
        ("before the exchange", "old"),
        ("after the exchange", "new"),
    ],
)
def test_kill_9_leaves_the_old_folder_or_the_new_one(tmp_path: Path, when: str, expected: str) -> None:
    target = write(tmp_path / "a", "old")
    assert run(KILLED_WRITER, target, when).returncode == -signal.SIGKILL
    assert content(target) == expected
    assert content(write(target, "next")) == "next"  # the dead process left no lock


def test_the_next_writer_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    assert run(KILLED_WRITER, tmp_path / "a", "inside the block").returncode == -signal.SIGKILL
    write(tmp_path / "a", "next")
    assert leftovers(tmp_path) == []


def test_a_full_disk_leaves_the_old_folder(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from ragtune import store
from ragtune.errors import StoreError
target = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
for size in (50, 5000):  # the manifest is too large; the file itself is
    try:
        with store.atomic_folder(target, {"kind": "thing"}) as building:
            store.write_jsonl(building / "rows.jsonl", [{"a": "x" * size}])
    except StoreError as error:
        print(error)
try:
    store.write_json(target.parent / "a.json", "x" * 5000)
except StoreError as error:
    print(error)
"""
    target = write(tmp_path / "a", "old")
    store.write_json(tmp_path / "a.json", "old")
    result = run(code, target)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    assert all("File too large; nothing that was there before is changed" in line for line in lines)
    assert content(target) == "old"
    assert store.read_json(tmp_path / "a.json") == "old"
    assert leftovers(tmp_path) == []


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "read-only"
    write(folder / "a", "old")
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):
        folder.chmod(0o755)
        pytest.skip("this user can write anywhere")
    yield folder
    folder.chmod(0o755)


def test_a_read_only_place(read_only: Path) -> None:
    with pytest.raises(StoreError, match="cannot write"):
        write(read_only / "b", "new")
    with pytest.raises(StoreError, match="cannot write"):
        store.write_json(read_only / "b.json", 1)
    assert content(read_only / "a") == "old"


def test_an_impossible_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "a", tmp_path / ("n" * 300)):
        with pytest.raises(StoreError, match="cannot write"):
            write(target, "new")
        with pytest.raises(StoreError, match="cannot write"):
            store.write_text(target, "new")


# Opening what was written


def test_folders_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no thing at"):
        store.open_folder(tmp_path / "a", "thing")
    (tmp_path / "a").mkdir()
    with pytest.raises(StoreError, match="not a finished thing; make it again"):
        store.open_folder(tmp_path / "a", "thing")
    write(tmp_path / "a", "text", kind="adapter")
    with pytest.raises(StoreError, match="is of kind adapter, expected kind thing"):
        store.open_folder(tmp_path / "a", "thing")
    (tmp_path / "a" / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="is not valid JSON"):
        store.open_folder(tmp_path / "a", "thing")


def test_another_format_version(tmp_path: Path) -> None:
    write(tmp_path / "a", "text")
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(MismatchError):
        store.open_folder(tmp_path / "a", "thing")


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a", "text") / "sub" / "file.txt"
    path.write_text("tExt")
    with pytest.raises(StoreError, match=r"sub/file\.txt is damaged .* make the thing again"):
        store.open_folder(tmp_path / "a", "thing")
    path.unlink()
    with pytest.raises(StoreError, match=r"sub/file\.txt is missing; make the thing again"):
        store.open_folder(tmp_path / "a", "thing")


def test_work_is_skipped_only_for_the_same_inputs_and_whole_files(tmp_path: Path) -> None:
    target = tmp_path / "a"
    assert not store.is_current(target, "thing", {"x": 1})
    write(target, "text", inputs={"x": 1, "y": {"z": [1]}})
    assert store.is_current(target, "thing", {"y": {"z": [1]}, "x": 1})
    assert not store.is_current(target, "thing", {"x": 1})
    assert not store.is_current(target, "other", {"x": 1, "y": {"z": [1]}})
    (target / "sub" / "file.txt").write_text("other")
    assert not store.is_current(target, "thing", {"x": 1, "y": {"z": [1]}})
