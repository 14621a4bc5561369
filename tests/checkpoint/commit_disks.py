"""Disks that stop, fail, or forget: what stands in for the real one in tests of the commit protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memory_disk import MemoryDisk

from surgery.checkpoint import Disk

CHANGES = frozenset(
    {
        "create",
        "make_folder",
        "remove_folder",
        "unlink",
        "rename",
        "write",
        "copy",
        "allocate",
        "truncate",
        "chmod",
        "sync",
    }
)
"""The calls before and after which a process may die with another outcome."""
OPENS = frozenset({"modify", "open_path", "open_folder", "open", "create"})


class Killed(BaseException):
    """The process is gone: from here on the disk does nothing for it, so no clean-up can run."""


class Hooked(Disk):
    """A disk that does something at the n-th call of those in `watched`.

    `strike(n, phase, name)` is asked before and after each such call, and within it: there, what it raises is what the
    call raises. `shorten(n, length)` says how many of `length` bytes a write or copy may take.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.watched = CHANGES
        self.calls: list[str] = []
        self.dead = False
        self.opened: set[int] = set()
        self.strike: Callable[[int, str, str], None] = lambda _n, _phase, _name: None
        self.shorten: Callable[[int, int], int] = lambda _n, length: length

    def do(self, name, act):
        if self.dead:
            raise Killed
        if name not in self.watched:
            return self._noted(name, super().do(name, act))
        n = len(self.calls)
        self.calls.append(name)
        self._at(n, "before", name)
        result = self._noted(name, super().do(name, lambda: self._interruptible(n, name, act)))
        try:
            self._at(n, "after", name)
        except OSError:
            if name in OPENS:  # an open that fails hands nothing out that could be closed
                self.close(result)
            raise
        return result

    def _interruptible(self, n: int, name: str, act):
        self._at(n, "within", name)
        return act()

    def _noted(self, name: str, result):
        if name in OPENS:
            self.opened.add(result)
        return result

    def _at(self, n: int, phase: str, name: str) -> None:
        try:
            self.strike(n, phase, name)
        except Killed:
            self.dead = True
            raise

    def write(self, file, offset, data):
        return super().write(file, offset, data[: self.shorten(len(self.calls), len(data))])

    def copy(self, source, offset, file, to, length):
        return super().copy(source, offset, file, to, self.shorten(len(self.calls), length))

    def close(self, file):
        if not self.dead:
            self.opened.discard(file)
            super().close(file)

    def bury(self) -> None:
        """What the system does for a dead process: its files are closed, its locks end."""
        for file in self.opened:
            super().close(file)
        self.opened = set()


class HookedMemory(Hooked, MemoryDisk):
    """`Hooked` on a disk in memory."""
