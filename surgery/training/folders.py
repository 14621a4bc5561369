"""Files that are either whole or absent, folders that one process has for itself, and disks that are full."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from surgery.errors import TrainingError

__all__ = ["alone_in", "canonical_json", "check_seal", "disk_errors", "seal", "write_json", "write_text"]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_UNUSABLE = frozenset({
    errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP,
})  # fmt: skip
_FULL_WORDS = (
    "no space left", "disk quota exceeded", "file too large", "file write failed", "failed writing file",
    "unexpected pos", "iostream error",  # torch.save, by which part of the archive did not fit
)  # fmt: skip
_LITTLE = 1024**2
_SEAL = "files.json"


def canonical_json(value: Any, indent: int | None = None) -> str:
    """Return JSON with sorted keys: equal values give equal text."""
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as canonical, readable JSON, whole or not at all."""
    write_text(path, canonical_json(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text`, whole or not at all."""
    staged = path.with_name(path.name + ".writing")
    try:
        staged.write_text(text, encoding="utf-8")
        staged.replace(path)
    except OSError:
        staged.unlink(missing_ok=True)
        raise


def seal(folder: Path) -> None:
    """Write down the checksum of every file in `folder`, for `check_seal`."""
    write_json(folder / _SEAL, _sums(folder))


def check_seal(folder: Path) -> None:
    """Refuse a sealed folder in which a file is missing or changed: what reads it may go on without, and say nothing.

    Raises:
        TrainingError: it is damaged, or was never sealed.
    """
    hint = f"delete {folder}: without it the run begins anew"
    try:
        then = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
        now = _sums(folder)
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"the checkpoint is damaged: {error}", str(folder), hint) from None
    if not isinstance(then, dict) or then != now:
        known = then if isinstance(then, dict) else {}
        name = next((name for name in sorted({*known, *now}) if known.get(name) != now.get(name)), _SEAL)
        what = "is missing" if name not in now and name != _SEAL else "has changed"
        raise TrainingError(f"the checkpoint is damaged: {name} {what}", str(folder), hint)


def _sums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / _SEAL)
    sums = {}
    for path in files:
        digest = xxhash.xxh3_128()
        with path.open("rb") as file:
            while block := file.read(_LITTLE):
                digest.update(block)
        sums[path.relative_to(folder).as_posix()] = digest.hexdigest()
    return sums


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make `folder` and hold it for this process; what was made and is empty in the end is taken away again.

    Raises:
        TrainingError: it is a file, or another process holds it.
    """
    if folder.exists() and not folder.is_dir():
        raise TrainingError("the output is a file, not a folder", str(folder), "name a new folder")
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    # The lock is on the folder itself: it leaves no file behind, and ends with the process, however that ends.
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            made = []
            hint = "wait for it, stop it, or name a new folder"
            raise TrainingError("another process is at work in this folder", str(folder), hint) from None
        yield
    finally:
        with contextlib.suppress(OSError):
            for place in made:
                place.rmdir()
        os.close(handle)


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Tell a full or forbidden disk in plain words, whatever library stumbled over it."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if _is_full(error, folder):
            what = "the disk is full; nothing half-written was kept"
            raise TrainingError(what, str(folder), "free some space, then continue with --resume") from error
        if isinstance(error, OSError) and error.errno in _UNUSABLE and _is_within(error.filename, folder):
            raise TrainingError(f"the folder cannot be used: {error.strerror}", str(error.filename)) from error
        raise
    except Exception as error:
        # safetensors has an error class of its own, which is no OSError.
        if type(error).__name__ == "SafetensorError" and _is_full(error, folder):
            what = "the disk is full; nothing half-written was kept"
            raise TrainingError(what, str(folder), "free some space, then continue with --resume") from error
        raise


def _is_within(name: object, folder: Path) -> bool:
    """Whether `name` is of the folder, or of one above it that had to be made."""
    if not isinstance(name, str | Path):
        return False
    place = Path(name)
    return folder in (place, *place.parents) or place in folder.parents


def _is_full(error: Exception, folder: Path) -> bool:
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    words = str(error).lower()
    if any(text in words for text in _FULL_WORDS):
        return True
    if not isinstance(error, OSError) or error.errno != errno.EIO:
        return False
    place = next((parent for parent in (folder, *folder.parents) if parent.exists()), Path())
    return shutil.disk_usage(place).free < _LITTLE
