"""Files that more than one folder uses: they are never written into."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from surgery.errors import CheckpointError

__all__ = ["refuse_link", "refuse_shared"]


def refuse_shared(path: Path, entry: os.stat_result | None = None) -> None:
    """Refuse to change the bytes of a file that something else uses too: a link, or a file of several names.

    A model in the cache of a hub is such a link: patching what it leads to changes every model that shares it. `entry`
    is what is at `path`, links not followed, where that is known.

    Raises:
        CheckpointError: it is a link, is no regular file, or has another name somewhere.
    """
    hint = "write to a new folder instead: -o OUT"
    entry = os.lstat(path) if entry is None else entry
    if stat.S_ISLNK(entry.st_mode):
        raise CheckpointError("it is a link to a file that others may share", str(path), hint)
    if not stat.S_ISREG(entry.st_mode):
        raise CheckpointError("it is no regular file", str(path), hint)
    if entry.st_nlink > 1:
        raise CheckpointError(f"the file has {entry.st_nlink} names, and all of them would change", str(path), hint)


def refuse_link(entry: os.stat_result | None, path: Path) -> None:
    """Refuse to replace what is not a plain file of the folder: `entry` is what is at `path` now.

    Raises:
        CheckpointError: it is a link, as everything in the cache of a hub is, or a folder.
    """
    if entry is None or stat.S_ISREG(entry.st_mode):
        return
    if stat.S_ISLNK(entry.st_mode):
        what, hint = (
            "it is a link into a folder that others may share, such as a hub's cache",
            "write to a new folder: -o OUT",
        )
        raise CheckpointError(what, str(path), hint)
    raise CheckpointError(
        "there is something there that is no file", str(path), "remove it, or write to a new folder: -o OUT"
    )
