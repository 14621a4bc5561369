"""Files that are either whole or absent, and disks that are full."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from surgery.errors import TrainingError

__all__ = ["canonical_json", "disk_errors", "write_json", "write_text"]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FULL_WORDS = ("no space left", "disk quota exceeded", "file too large", "file write failed", "failed writing file")
_LITTLE = 1024**2


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


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Tell a full or forbidden disk in plain words, whatever library stumbled over it."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if _is_full(error, folder):
            what = "the disk is full; nothing half-written was kept"
            raise TrainingError(what, str(folder), "free some space, then continue with --resume") from error
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
            raise TrainingError(f"the folder cannot be written: {error.strerror}", str(folder)) from error
        raise
    except Exception as error:
        # safetensors has an error class of its own, which is no OSError.
        if type(error).__name__ == "SafetensorError" and _is_full(error, folder):
            what = "the disk is full; nothing half-written was kept"
            raise TrainingError(what, str(folder), "free some space, then continue with --resume") from error
        raise


def _is_full(error: Exception, folder: Path) -> bool:
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    words = str(error).lower()
    if any(text in words for text in _FULL_WORDS):
        return True
    place = next((parent for parent in (folder, *folder.parents) if parent.exists()), Path())
    return isinstance(error, OSError) and error.errno == errno.EIO and shutil.disk_usage(place).free < _LITTLE
