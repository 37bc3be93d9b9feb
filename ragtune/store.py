"""The only module that knows how we write: JSONL, fingerprints and atomic folders (manifest last).

A folder is built beside its place, gets `manifest.json` last and is renamed into place, so a killed process
leaves the old folder or the new one. The manifest lists every file with its sha256; loading checks them, since
FAISS and safetensors files carry no checksum of their own.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ragtune.errors import BusyError, MismatchError, StoreError

MANIFEST = "manifest.json"
FORMAT_VERSION = 3
_RECORDED_PACKAGES = ("ragtune", "torch", "transformers", "peft", "bitsandbytes", "sentence-transformers", "faiss-cpu")


def sha256_of_text(*parts: str) -> str:
    """Hex digest of the parts, each length-prefixed so that ("ab", "c") differs from ("a", "bc")."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(str(len(data)).encode() + b":" + data)
    return digest.hexdigest()


def sha256_of_json(value: object) -> str:
    """Hex digest of a JSON value in its canonical form (sorted keys, no spaces)."""
    return sha256_of_text(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def sha256_of_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of the packages that can change a number; those not installed are left out."""
    found = {}
    for name in _RECORDED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def read_json(path: Path) -> Any:
    """One JSON value from a file.

    Raises: StoreError when the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} is not valid JSON: {error}") from None


def write_json(path: Path, value: object) -> None:
    """Write one JSON value, replacing the file in one step."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step: beside it, synced, renamed over it.

    Raises: StoreError when the target cannot be written (disk full, read-only).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise _cannot_write(path, error) from error


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file that we wrote.

    Raises: StoreError naming file and line when a line is no JSON object.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    value = json.loads(line)
                except (json.JSONDecodeError, UnicodeDecodeError) as error:
                    raise StoreError(f"{path}, line {number}: not valid JSON ({error})") from None
                if not isinstance(value, dict):
                    raise StoreError(f"{path}, line {number}: expected a JSON object, found {type(value).__name__}")
                yield value
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist") from None


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSONL; for files inside a folder that `atomic_folder` is building."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


class JsonlLog:
    """An append-only JSONL file that survives a kill: a torn last line is cut off when it is opened again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                data = path.read_bytes()
                self._cut_to(data.rfind(b"\n") + 1)
        except OSError as error:
            raise _cannot_write(path, error) from error

    def _cut_to(self, size: int) -> None:
        if self.path.stat().st_size > size:
            os.truncate(self.path, size)

    def rows(self) -> list[dict[str, Any]]:
        """All rows so far."""
        return list(read_jsonl(self.path)) if self.path.exists() else []

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows and sync them to the disk.

        Raises: StoreError when the disk is full or read-only; rows written before stay good.
        """
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._cut_to(size)
            raise _cannot_write(self.path, error) from error


@contextlib.contextmanager
def locked(target: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the right to write `target`. The lock dies with its process, so a crash leaves none behind.

    Raises: BusyError when another process holds it longer than `wait_seconds`; StoreError when the place is read-only.
    """
    path = target.with_name(f".{target.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise _cannot_write(target, error) from error
    deadline = time.monotonic() + wait_seconds
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise BusyError(
                        f"another ragtune process is writing {target}; wait until it ends, or choose another name"
                    ) from None
                time.sleep(0.1)
        yield


@contextlib.contextmanager
def atomic_folder(target: Path, manifest: dict[str, Any], wait_seconds: float = 0.0) -> Iterator[Path]:
    """Yield an empty folder to fill; on success add the manifest and rename it to `target`.

    `manifest` may be completed by the caller until the block ends. On any error `target` stays as it was and the
    half-built folder is removed.

    Raises: BusyError when another process writes `target`; StoreError when the disk is full or read-only.
    """
    with locked(target, wait_seconds):
        if target.exists() and not target.is_dir():
            raise StoreError(f"{target} is a file; ragtune writes a folder there, so move it or choose another name")
        _clear_leftovers(target)
        try:
            building = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".building", dir=target.parent))
        except OSError as error:
            raise _cannot_write(target, error) from error
        try:
            yield building
            _finish(building, target, manifest)
        except OSError as error:
            raise _cannot_write(target, error) from error
        finally:
            shutil.rmtree(building, ignore_errors=True)


def _clear_leftovers(target: Path) -> None:
    """Remove what killed processes left behind; the caller holds the lock, so nobody is at work in there."""
    for leftover in target.parent.glob(f".{target.name}.*.building"):
        shutil.rmtree(leftover, ignore_errors=True)


def _finish(building: Path, target: Path, manifest: dict[str, Any]) -> None:
    # mkdtemp makes the folder private; what we publish follows the user's umask like any other folder.
    umask = os.umask(0)
    os.umask(umask)
    building.chmod(0o777 & ~umask)
    files = sorted(p for p in building.rglob("*") if p.is_file())
    manifest["format_version"] = FORMAT_VERSION
    manifest["files"] = {p.relative_to(building).as_posix(): sha256_of_file(p) for p in files}
    manifest["packages"] = package_versions()
    manifest["created"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for path in files:
        _sync(path)
    manifest["manifest_sha256"] = _manifest_hash(manifest)
    write_json(building / MANIFEST, manifest)
    _sync(building)
    _swap(building, target)


def _manifest_hash(manifest: Mapping[str, Any]) -> str:
    return sha256_of_json({key: value for key, value in manifest.items() if key != "manifest_sha256"})


def _swap(new: Path, target: Path) -> None:
    """Put `new` at `target` in one step; an older folder ends up at `new`, where the caller removes it."""
    if not target.exists():
        new.rename(target)
    else:
        if any(target.iterdir()) and not (target / MANIFEST).exists():
            raise StoreError(f"{target} exists and is not a folder that ragtune wrote; choose another place")
        _exchange(new, target)
    _sync(target.parent)


_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def _exchange(a: Path, b: Path) -> None:
    """Swap two folders atomically: renameat2(2) with RENAME_EXCHANGE, which os.rename has no word for."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, bytes(a), _AT_FDCWD, bytes(b), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(b))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """The manifest of a finished folder, without checking its files.

    Raises: StoreError when the folder is missing, half-made, of another kind or of a newer format.
    """
    if not folder.is_dir():
        raise StoreError(f"there is no {kind} at {folder}")
    if not (folder / MANIFEST).exists():
        raise StoreError(f"{folder} has no {MANIFEST}: it is not a finished {kind}; make it again")
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict):
        raise StoreError(f"{folder / MANIFEST} is damaged: expected a JSON object; make the {kind} again")
    if manifest.get("kind") != kind:
        raise StoreError(f"{folder} is of kind {manifest.get('kind', 'unknown')}, expected kind {kind}")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise MismatchError(
            f"{folder} has format version {manifest.get('format_version')}, this ragtune reads {FORMAT_VERSION}; "
            f"make the {kind} again"
        )
    if manifest.get("manifest_sha256") != _manifest_hash(manifest):
        raise StoreError(f"{folder / MANIFEST} is damaged or was edited; make the {kind} again")
    return manifest


def open_folder(folder: Path, kind: str) -> dict[str, Any]:
    """The manifest of a folder whose every file matches its recorded sha256.

    Raises: StoreError naming the file that is missing or damaged.
    """
    manifest = read_manifest(folder, kind)
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.exists():
            raise StoreError(f"{folder}: {name} is missing; make the {kind} again")
        if sha256_of_file(path) != expected:
            raise StoreError(
                f"{folder}: {name} is damaged or edited (its sha256 differs from the manifest); make the {kind} again"
            )
    return manifest


def is_current(folder: Path, kind: str, inputs: Mapping[str, Any]) -> bool:
    """True when `folder` is an undamaged `kind` made from exactly these inputs, so that the work can be skipped."""
    try:
        return bool(open_folder(folder, kind).get("inputs") == dict(inputs))
    except StoreError:
        return False


def _cannot_write(path: Path, error: OSError) -> StoreError:
    return StoreError(f"cannot write {path}: {error.strerror or error}; nothing that was there before is changed")
