"""One writer at a time, without a lock file that stays behind."""

from __future__ import annotations

import contextlib
from pathlib import Path

from surgery.checkpoint.disk import Disk
from surgery.errors import StateError

__all__ = ["claim", "hold"]


def claim(disk: Disk, folder: int, name: str, where: Path, *, make: bool = True) -> int | None:
    """Open the folder `name` in `folder` for this process alone; made if it is not there, or None without `make`.

    The lock is on that folder itself, so it goes when the commit ends, and with the process however that ends. A
    folder that was renamed or removed between opening and locking belongs to a finished commit: try again.

    Raises:
        StateError: another process has it.
        OSError: it cannot be made or opened.
    """
    while True:
        if make:
            with contextlib.suppress(FileExistsError):
                disk.make_folder(folder, name)
        try:
            mine = disk.open_folder(folder, name)
        except FileNotFoundError:
            if make:
                continue
            return None
        try:
            if not disk.lock(mine):
                hint = "wait for it, or stop it"
                raise StateError("another process is writing this folder", str(where), hint)
            entry, own = disk.look(folder, name), disk.look_at(mine)
            if entry is not None and (entry.st_dev, entry.st_ino) == (own.st_dev, own.st_ino):
                return mine
        except BaseException:
            disk.close(mine)
            raise
        disk.close(mine)


def hold(disk: Disk, folder: int, where: Path, patience: float, *, shared: bool = False) -> None:
    """Lock an open folder against readers, or as one of them (`shared`); wait at most `patience` seconds.

    Raises:
        StateError: the others did not end in time.
    """
    until = disk.now() + patience
    while not disk.lock(folder, shared=shared):
        if disk.now() >= until:
            others = "writing" if shared else "reading"
            what = f"another process has been {others} this folder for {patience:.0f} seconds"
            raise StateError(what, str(where), "wait for it, or stop it; nothing was changed")
        disk.wait()
