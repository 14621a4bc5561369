"""Folders that are made on the way to a new one."""

from __future__ import annotations

import contextlib
from pathlib import Path

from surgery.checkpoint.disk import Disk

__all__ = ["open_or_make", "open_with_parents"]


def open_with_parents(disk: Disk, path: Path) -> int:
    """Open the folder `path`, made with those above it where they are not there; each is durable in the one above.

    Raises:
        OSError: one of them is a file, or cannot be made.
    """
    missing: list[str] = []
    while True:
        try:
            folder = disk.open_path(path)
            break
        except FileNotFoundError:
            if path == path.parent:
                raise
            missing.append(path.name)
            path = path.parent
    for name in reversed(missing):
        inner = -1
        try:
            inner = open_or_make(disk, folder, name)
            disk.sync(folder)
        except BaseException:
            if inner >= 0:
                disk.close(inner)
            raise
        finally:
            disk.close(folder)
        folder = inner
    return folder


def open_or_make(disk: Disk, folder: int, name: str) -> int:
    """Open the folder `name` in `folder`, made if it is not there."""
    with contextlib.suppress(FileExistsError):
        disk.make_folder(folder, name)
    return disk.open_folder(folder, name)
