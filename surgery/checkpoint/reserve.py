"""Space that is set aside before any work, so that a full disk is told at once."""

from __future__ import annotations

from pathlib import Path

from surgery.checkpoint.disk import Disk
from surgery.checkpoint.failures import told
from surgery.checkpoint.sizes import size_text
from surgery.errors import DiskError

__all__ = ["Reserve"]

_NAME = ".surgery-reserve"


class Reserve:
    """A file without content that holds the space; it shrinks as the files of the commit are made."""

    def __init__(self, disk: Disk, folder: int, where: Path) -> None:
        self._disk, self._folder, self._where = disk, folder, where
        self._file, self._left = -1, 0

    def take(self, size: int, beside: int = 0) -> None:
        """Set `size` bytes aside, in all; so many bytes `beside` them must be there, too.

        Raises:
            DiskError: they are not there, or may not be written.
        """
        with told(self._where):
            free = self._disk.free(self._folder)
        if free < 0:
            raise DiskError("the file system is read-only", str(self._where), "choose another folder")
        if free + self._left < size + beside:
            what = f"the disk has {size_text(free)} free, and {size_text(size + beside)} are needed"
            raise DiskError(what, str(self._where), "free some space, or choose another disk; nothing was written")
        with told(self._where, "nothing was written"):
            if self._file < 0:
                self._file = self._disk.create(self._folder, _NAME)
            self._disk.allocate(self._file, size)
        self._left = size

    def give(self, size: int) -> None:
        """Let go of `size` bytes, which are about to be taken by a file."""
        if self._file >= 0 and self._left:
            self._left = max(0, self._left - size)
            self._disk.truncate(self._file, self._left)

    def end(self) -> None:
        """Let go of all of it; the file goes too."""
        if self._file >= 0:
            file, self._file = self._file, -1
            self._disk.close(file)
            self._disk.unlink(self._folder, _NAME)

    def handles(self) -> list[int]:
        """What is open."""
        return [self._file] if self._file >= 0 else []
