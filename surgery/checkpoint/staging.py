"""The files of a commit while nobody sees them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import threading
from pathlib import Path

from surgery.checkpoint.copying import write_bytes
from surgery.checkpoint.disk import Disk
from surgery.checkpoint.failures import told
from surgery.checkpoint.journal import Move
from surgery.checkpoint.names import RECEIPT, check_name
from surgery.checkpoint.parents import open_or_make
from surgery.checkpoint.places import Places
from surgery.checkpoint.reserve import Reserve
from surgery.checkpoint.shared import refuse_link
from surgery.checkpoint.writing import StagedFile
from surgery.errors import CheckpointError, StateError

__all__ = ["Staging"]


class Staging:
    """What was staged in the open folder `inside` for the folder `path`: `moves` lists it, by final name.

    With `over`, an open folder whose files are replaced, files get names of their own here; else their final ones.
    """

    def __init__(self, disk: Disk, inside: int, path: Path, over: int | None) -> None:
        self._disk, self._inside, self._path, self._over = disk, inside, path, over
        self._folders: dict[tuple[str, ...], int] = {}
        self._open: dict[StagedFile, tuple[int, str, int]] = {}
        self._reserve = Reserve(disk, inside, path)
        self._guard = threading.RLock()  # shards may be written by a thread each
        self._token, self._count = disk.token(), 0
        self.moves: dict[str, Move] = {}

    def reserve(self, size: int, beside: int) -> None:
        self._reserve.take(size, beside)

    def create(self, name: str, size: int, *, digest: bool) -> StagedFile:
        """`Transaction.create`."""
        with self._guard:
            return self._create(name, size, digest)

    def _create(self, name: str, size: int, digest: bool) -> StagedFile:
        where = self._path / name
        *folders, plain = check_name(name, str(self._path), nested=True)
        self.refuse_again(name)
        with told(where):
            before = None if self._over is None else self._look(self._over, name)
            refuse_link(before, where)
            self._reserve.give(size)
            folder = self._folder(tuple(folders)) if self._over is None else self._inside
            staged = plain if self._over is None else self._next()
            handle = self._disk.create(folder, staged)
            file = StagedFile(self._disk, handle, name, size, where).on_leave(self._left, digest=digest)
            self._open[file] = (handle, staged, folder)
            try:
                self._disk.allocate(handle, size)
                if before is not None:
                    self._disk.chmod(handle, stat.S_IMODE(before.st_mode))
            except OSError:
                file.drop()
                raise
        return file

    def adopt(self, name: str, source: Path, size: int) -> None:
        """`Transaction.adopt`."""
        *folders, plain = check_name(name, str(self._path), nested=True)
        self.refuse_again(name)
        with told(self._path / name):
            before = None if self._over is None else self._look(self._over, name)
            refuse_link(before, self._path / name)
            staged = plain if self._over is None else self._next()
            folder = self._folder(tuple(folders)) if self._over is None else self._inside
            self._disk.link(source, folder, staged)
            if before is not None:
                file = self._disk.open(folder, staged)
                try:
                    self._disk.chmod(file, stat.S_IMODE(before.st_mode))
                finally:
                    self._disk.close(file)
        self.moves[name] = Move(name, staged, size)

    def remove(self, name: str) -> None:
        """`Transaction.remove`."""
        if self._over is None:
            raise StateError("a new folder holds nothing to remove", str(self._path), "do not create the file")
        check_name(name, str(self._path), nested=True)
        self.refuse_again(name)
        with told(self._path / name):
            entry = self._look(self._over, name)
        if entry is not None and stat.S_ISDIR(entry.st_mode):
            raise CheckpointError("a folder cannot be removed by a commit", str(self._path / name))
        self.moves[name] = Move(name)

    def _look(self, over: int, name: str) -> os.stat_result | None:
        with Places(self._disk, over, self._path) as places:
            return places.look(name)

    def refuse_again(self, name: str) -> None:
        """A commit says one thing of each file."""
        if name in self.moves or any(file.name == name for file in self._open):
            raise CheckpointError(f"{name} is written twice in one commit", str(self._path), "write each file once")

    def _folder(self, parts: tuple[str, ...]) -> int:
        if not parts:
            return self._inside
        if parts not in self._folders:
            self._folders[parts] = open_or_make(self._disk, self._folder(parts[:-1]), parts[-1])
        return self._folders[parts]

    def _next(self) -> str:
        self._count += 1
        return f"{self._token}-{self._count}"

    def _left(self, file: StagedFile, is_whole: bool) -> None:
        """A file's block was left."""
        with self._guard:
            handle, staged, folder = self._open.pop(file)
            self._disk.close(handle)
            if is_whole:
                self.moves[file.name] = Move(file.name, staged, file.size, file.sha256 or "")
            else:
                with contextlib.suppress(OSError):
                    self._disk.unlink(folder, staged)

    def refuse_open(self) -> None:
        """Before the commit, every file must be complete."""
        for file in self._open:
            raise StateError(f"{file.name} is still open", str(self._path), "leave its `with` block before the commit")

    def seal(self, receipt: bytes) -> Move:
        """Stage the receipt, and make everything here durable. Raises OSError where the disk refuses."""
        self._reserve.end()
        staged = RECEIPT if self._over is None else self._next()
        self.put(staged, receipt)
        for _, folder in sorted(self._folders.items(), reverse=True):  # the deepest first
            self._disk.sync(folder)
        self._disk.sync(self._inside)
        return Move(RECEIPT, staged, len(receipt), hashlib.sha256(receipt).hexdigest())

    def put(self, staged: str, data: bytes) -> None:
        """Write a file of the protocol's own; its bytes are durable, its name not yet."""
        handle = self._disk.create(self._inside, staged)
        try:
            write_bytes(self._disk, handle, 0, memoryview(data))
            self._disk.sync(handle)
        finally:
            self._disk.close(handle)

    def close(self) -> None:
        """Close what is open."""
        handles = [handle for handle, _, _ in self._open.values()]
        for handle in (*handles, *self._reserve.handles(), *self._folders.values()):
            self._disk.close(handle)
        self._open, self._folders = {}, {}
