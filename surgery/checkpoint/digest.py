"""The sha256 of a file: of one that is there, and of one while it is filled in any order."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

from surgery.checkpoint.failures import told
from surgery.checkpoint.ranges import Ranges

__all__ = ["Digest", "sha256_of"]

_BLOCK = 1024 * 1024
_LARGE = 16 * 1024 * 1024
"""From this size on a thread hashes what has been written, out of the page cache, beside those that write."""


def sha256_of(path: Path) -> str:
    """The sha256 of a file."""
    digest = hashlib.sha256()
    with told(path), path.open("rb") as file:
        while data := file.read(_BLOCK):
            digest.update(data)
    return digest.hexdigest()


class Digest:
    """Follows what is written to a file of `size` bytes, which `read(offset, length)` reads back."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read, self._size = read, size
        self._sha256 = hashlib.sha256()
        self._hashed = 0
        self._written = Ranges()
        self._changed = threading.Condition()
        self._is_dirty = self._is_ending = self._is_given_up = False
        self._error: BaseException | None = None
        self._worker: threading.Thread | None = None

    def wrote(self, start: int, stop: int) -> None:
        """Note that start..stop is in the file."""
        with self._changed:
            # Bytes that are written twice may have been hashed between.
            self._is_dirty |= self._written.add(start, stop)
            if self._size >= _LARGE and self._worker is None:
                self._worker = threading.Thread(target=self._follow, daemon=True)
                self._worker.start()
            self._changed.notify()

    def finish(self) -> str:
        """The digest, once all is written; raises what `read` raised."""
        self._end()
        if self._error is not None:
            raise self._error
        if self._is_dirty:
            self._sha256, self._hashed = hashlib.sha256(), 0
        while self._hashed < self._size:
            self._feed(self._size)
        return self._sha256.hexdigest()

    def give_up(self) -> None:
        """Return when nothing reads the file any more."""
        self._is_given_up = True
        self._end()

    def _end(self) -> None:
        with self._changed:
            self._is_ending = True
            self._changed.notify()
        if self._worker is not None:
            self._worker.join()

    def _feed(self, stop: int) -> None:
        data = self._read(self._hashed, min(_BLOCK, stop - self._hashed))
        self._sha256.update(data)
        self._hashed += len(data)

    def _follow(self) -> None:
        try:
            while not self._is_given_up and (stop := self._next()) > self._hashed:
                self._feed(stop)
        except BaseException as error:  # told by `finish`, in the thread of the one who writes
            self._error = error

    def _next(self) -> int:
        with self._changed:
            while (stop := self._written.reach(self._hashed)) <= self._hashed and not self._is_ending:
                self._changed.wait()
            return stop
