"""Reading a folder that a commit may be changing: all of it old, or all of it new."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from surgery.checkpoint.disk import DISK, Disk
from surgery.checkpoint.failures import told
from surgery.checkpoint.lock import hold
from surgery.checkpoint.names import JOURNAL, WORK
from surgery.checkpoint.patching import HINT, SLOTS
from surgery.checkpoint.recover import real, recover_within
from surgery.errors import CheckpointError, StateError

__all__ = ["consistent"]


class _HalfError(StateError):
    """No waiting helps."""


@contextlib.contextmanager
def consistent(path: Path, *, disk: Disk = DISK, patience: float = 60.0) -> Iterator[Path]:
    """Hold the folder `path` still for the block: no commit renames anything in it meanwhile. Yield its real path.

    An interrupted commit that was decided is finished first. Files may be staged beside while the block runs; only the
    renames wait, so leave the block soon: what has been opened within it stays as it was. Within a `Transaction` on the
    same folder nobody else can change it, and this is not needed: the commit would wait for its own reader.

    Raises:
        CheckpointError: there is no such folder, or an interrupted commit cannot be finished.
        StateError: a commit does not end within `patience` seconds, or a patch in place was interrupted.
        DiskError: it may not be read, or an interrupted commit not be finished for lack of permission.
    """
    path = real(path)
    with told(path):
        try:
            folder = disk.open_path(path)
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointError("no such folder", str(path), "name the folder of a checkpoint") from None
    try:
        with told(path, "an interrupted commit waits to be finished by somebody who may write here"):
            _settle(disk, folder, path, patience)
        yield path
    finally:
        disk.close(folder)


def _settle(disk: Disk, folder: int, path: Path, patience: float) -> None:
    until = disk.now() + patience
    while True:
        hold(disk, folder, path, patience, shared=True)
        if not _is_decided(disk, folder):
            return
        disk.unlock(folder)  # its writer died: while that lived it held the folder
        try:
            if recover_within(disk, folder, path).action == "patching":
                raise _HalfError("the folder is half patched by an interrupted command", str(path), HINT)
        except _HalfError:
            raise
        except StateError:  # another reader is finishing it
            if disk.now() >= until:
                raise
            disk.wait()


def _is_decided(disk: Disk, folder: int) -> bool:
    try:
        work = disk.open_folder(folder, WORK)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        return any(disk.look(work, name) is not None for name in (JOURNAL, *SLOTS))
    finally:
        disk.close(work)
