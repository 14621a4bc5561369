"""Where files of a folder are: in it, or in folders within it, on the way to which no link is followed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from surgery.checkpoint.disk import Disk
from surgery.checkpoint.reading import hash_file
from surgery.errors import CheckpointError

__all__ = ["Places"]

Parts = tuple[str, ...]


class Places:
    """The folders within the open folder `top`, opened as they are asked for and closed with the block.

    Args:
        disk: the system calls.
        top: the open folder; it stays open.
        path: what it is called in errors.
    """

    def __init__(self, disk: Disk, top: int, path: Path) -> None:
        self._disk, self._top, self._path = disk, top, path
        self._open: dict[Parts, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened."""
        handles, self._open = list(self._open.values()), {}
        for handle in handles:
            self._disk.close(handle)

    def handle(self, parts: Parts, *, make: bool = False) -> int | None:
        """The open folder `parts`; made if it is not there, or None without `make`.

        Raises:
            CheckpointError: a link or a file is on the way.
            OSError: the disk refuses.
        """
        if not parts:
            return self._top
        if parts not in self._open:
            above, name = self.handle(parts[:-1], make=make), parts[-1]
            if above is None:
                return None
            entry = self._disk.look(above, name)
            if entry is None:
                if not make:
                    return None
                self._disk.make_folder(above, name)
                # At once: a file that is renamed into a folder which is not durable may be lost with it.
                self._disk.sync(above)
            elif not stat.S_ISDIR(entry.st_mode):
                what = "a link" if stat.S_ISLNK(entry.st_mode) else "a file"
                where = str(self._path.joinpath(*parts))
                raise CheckpointError(f"{what} is where a folder belongs", where, "write to a new folder, or remove it")
            self._open[parts] = self._disk.open_folder(above, name)
        return self._open[parts]

    def look(self, name: str) -> os.stat_result | None:
        """What the entry `name` is, links not followed; None where there is none. Raises as `handle`."""
        *folders, plain = name.split("/")
        folder = self.handle(tuple(folders))
        return None if folder is None else self._disk.look(folder, plain)

    def unlink(self, name: str) -> None:
        """Remove the file `name`, if it is there."""
        *folders, plain = name.split("/")
        folder = self.handle(tuple(folders))
        if folder is not None and self._disk.look(folder, plain) is not None:
            self._disk.unlink(folder, plain)

    def receive(self, source: int, staged: str, name: str) -> None:
        """Rename `staged` in the open folder `source` to the file `name`; folders on the way are made."""
        *folders, plain = name.split("/")
        folder = self.handle(tuple(folders), make=True)
        assert folder is not None
        self._disk.rename(source, staged, folder, plain)

    def hash(self, name: str) -> str:
        """The sha256 of the file `name`."""
        *folders, plain = name.split("/")
        folder = self.handle(tuple(folders))
        assert folder is not None
        return hash_file(self._disk, folder, plain)

    def sync(self) -> None:
        """Make the entries of all that were opened durable, the deepest first, and those of `top`."""
        for _, handle in sorted(self._open.items(), reverse=True):
            self._disk.sync(handle)
        self._disk.sync(self._top)

    def prune(self, names: Iterable[str]) -> None:
        """Remove the folders of the files `names`, which are gone, where nothing else is in them; durably."""
        parents = {tuple(name.split("/")[:-1]) for name in names}
        every = {parts[:depth] for parts in parents for depth in range(1, len(parts) + 1)}
        for parts in sorted(every, key=len, reverse=True):
            above, own = self.handle(parts[:-1]), self.handle(parts)
            if above is not None and own is not None and not self._disk.list(own):
                self._disk.remove_folder(above, parts[-1])
                self._disk.close(self._open.pop(parts))
                self._disk.sync(above)
