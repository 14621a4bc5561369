"""One file of a commit, written where nobody looks yet."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from surgery.checkpoint.copying import copy_bytes, write_bytes
from surgery.checkpoint.digest import Digest
from surgery.checkpoint.disk import Disk
from surgery.checkpoint.failures import told
from surgery.checkpoint.ranges import Ranges
from surgery.errors import CheckpointError, StateError

__all__ = ["StagedFile"]


class StagedFile:
    """A file of known size: filled in any order, by several threads; leaving its block makes it durable.

    Attributes:
        name: what it will be called.
        size: its bytes.
        sha256: of the whole file, once the block is left; None where no digest was asked for.
    """

    def __init__(self, disk: Disk, file: int, name: str, size: int, where: Path) -> None:
        self._disk, self._file, self.name, self.size, self._where = disk, file, name, size, where
        self.sha256: str | None = None
        self._digest: Digest | None = None
        self._written = Ranges()
        self._guard = threading.Lock()
        self._leave: Callable[[StagedFile, bool], None] = lambda _file, _is_whole: None
        self.is_open = True

    def on_leave(self, leave: Callable[[StagedFile, bool], None], *, digest: bool) -> Self:
        """Call `leave(self, is_whole)` when the block is left; keep a sha256 where `digest`."""
        self._leave = leave
        self._digest = Digest(self._read, self.size) if digest else None
        return self

    def fileno(self) -> int:
        """The open file, for those that write it by other means; what they write must be told by `wrote`."""
        return self._file

    def write_at(self, offset: int, buffer: bytes | bytearray | memoryview) -> None:
        """Write `buffer` (contiguous, any element type) at byte `offset`.

        Raises:
            DiskError: the disk refused.
            StateError: it is outside of the file, or the file is closed.
        """
        data = memoryview(buffer).cast("B")
        self._check(offset, len(data))
        with told(self._where):
            write_bytes(self._disk, self._file, offset, data)
        self.wrote(offset, len(data))

    def copy_range(self, source: int, offset: int, length: int, to: int) -> None:
        """Copy `length` bytes of the open file `source` from `offset` to offset `to` of this one, by the kernel.

        Raises:
            DiskError: the disk refused.
            CheckpointError: the source ends before that.
            StateError: it is outside of the file, or the file is closed.
        """
        self._check(to, length)
        with told(self._where):
            copy_bytes(self._disk, source, offset, self._file, to, length)
        self.wrote(to, length)

    def wrote(self, offset: int, length: int) -> None:
        """Note that bytes are in the file."""
        with self._guard:
            self._written.add(offset, offset + length)
        if self._digest is not None:
            self._digest.wrote(offset, offset + length)
        self._disk.begin_sync(self._file, offset, length)

    def _read(self, offset: int, length: int) -> bytes:
        with told(self._where):
            data = self._disk.read(self._file, offset, length)
        if not data:
            raise CheckpointError("the file became shorter while it was written", str(self._where))
        return data

    def _check(self, offset: int, length: int) -> None:
        if not self.is_open:
            raise StateError(f"{self.name} is closed", str(self._where), "write within its `with` block")
        if offset < 0 or length < 0 or offset + length > self.size:
            what = f"bytes {offset} to {offset + length} are outside of {self.name}, which has {self.size}"
            raise StateError(what, str(self._where), "create it with its full size")

    def _finish(self) -> None:
        hole = self._written.hole(self.size)
        if hole is not None:
            what = f"bytes {hole[0]} to {hole[1]} of {self.name} were never written"
            raise StateError(what, str(self._where), "write every byte before leaving the block")
        if self._digest is not None:
            self.sha256 = self._digest.finish()
        with told(self._where):
            if self._disk.look_at(self._file).st_size != self.size:
                raise CheckpointError("the file has another size than was written", str(self._where))
            self._disk.sync(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_whole = False
        try:
            if kind is None:
                self._finish()
                is_whole = True
        finally:
            self._end(is_whole)

    def drop(self) -> None:
        """Close it; it will not be part of the commit."""
        self._end(False)

    def _end(self, is_whole: bool) -> None:
        if self.is_open:
            self.is_open = False
            if self._digest is not None and not is_whole:
                self._digest.give_up()
            self._leave(self, is_whole)
