"""Bytes that are changed where they are, batch by batch, for those without space for a second copy of a file.

The new bytes of a batch go to a redo record first, durably; then over the old ones. Two slots take turns, so that a
record which tears leaves the one before it readable. Redoing a record changes nothing that was done; computing a batch
again would, since what it reads has changed: the number in the record says which batches are done.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from surgery.checkpoint.copying import write_bytes
from surgery.checkpoint.disk import Disk
from surgery.checkpoint.names import check_name
from surgery.checkpoint.reading import read_small
from surgery.checkpoint.shared import refuse_shared
from surgery.errors import CheckpointError, StateError

__all__ = ["RESIDUE", "SLOTS", "Patches", "Record", "Write", "latest", "redo"]

RESIDUE = "0-0"
"""In the work folder: what is needed to take the patch back, batch after batch."""
SLOTS = ("0-1", "0-2")
LARGEST_BATCH = 256 * 1024 * 1024
_MAGIC = b"sredo 1\n"
_HEAD = struct.Struct("<8sQQ")
Write = tuple[str, int, bytes | bytearray | memoryview]
"""File, offset, new bytes."""


@dataclass(frozen=True, slots=True)
class Record:
    """Batch `number` of `job`, whose residue ends at byte `residue`."""

    job: str
    number: int
    residue: int
    writes: tuple[tuple[str, int, memoryview], ...]

    def encode(self) -> bytes:
        """Head, body and a checksum over both, which go to the disk in one write."""
        places = [[name, offset, len(data)] for name, offset, data in self.writes]
        words = json.dumps({"job": self.job, "residue": self.residue, "writes": places}).encode()
        body = b"".join([struct.pack("<Q", len(words)), words, *(data for _, _, data in self.writes)])
        head = _HEAD.pack(_MAGIC, self.number, len(body))
        return head + body + seal(head, body)

    @classmethod
    def decode(cls, data: bytes, where: str) -> Record | None:
        """Read a slot; None where it is torn.

        Raises:
            CheckpointError: it is whole, and says what no commit would write.
        """
        if len(data) < _HEAD.size:
            return None
        head = data[: _HEAD.size]
        magic, number, length = _HEAD.unpack(head)
        body = data[_HEAD.size : _HEAD.size + length]
        mark = data[_HEAD.size + length :][: hashlib.sha256().digest_size]
        if magic != _MAGIC or len(body) != length or mark != seal(head, body):
            return None
        try:
            return cls._of(number, memoryview(body), where)
        except (ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
            what = f"the redo record of an unfinished patch is malformed: {error}"
            raise CheckpointError(what, where, "restore the folder from a copy") from error

    @classmethod
    def _of(cls, number: int, body: memoryview, where: str) -> Record:
        (count,) = struct.unpack("<Q", body[:8])
        value, at, writes = json.loads(bytes(body[8 : 8 + count])), 8 + count, []
        for name, offset, length in value["writes"]:
            if type(offset) is not int or type(length) is not int or offset < 0 or not 0 <= length <= len(body) - at:
                raise ValueError("a range is outside of the record")
            check_name(name, where)
            writes.append((name, offset, body[at : at + length]))
            at += length
        if at != len(body) or type(value["job"]) is not str or type(value["residue"]) is not int:
            raise ValueError("it has another form than records have")
        return cls(value["job"], number, value["residue"], tuple(writes))


def seal(head: bytes, body: bytes) -> bytes:
    """The checksum is over the head as well: a torn write may join the new batch's number to the old one's body."""
    return hashlib.sha256(head + body).digest()


def latest(disk: Disk, work: int, path: Path) -> Record | None:
    """The last batch whose record is whole, or None where no batch was begun."""
    found = []
    for slot in SLOTS:
        data = read_small(disk, work, slot, 2 * LARGEST_BATCH, str(path / slot))
        record = None if data is None else Record.decode(data, str(path / slot))
        if record is not None:
            found.append(record)
    return max(found, key=lambda record: record.number, default=None)


def redo(disk: Disk, folder: int, record: Record, path: Path) -> None:
    """Put the new bytes of a batch in their places, durably; done before or not.

    Raises:
        CheckpointError: a file is gone, shared, or shorter than what is to be written.
    """
    files: dict[str, int] = {}
    try:
        for name, _, _ in record.writes:
            if name not in files:
                files[name] = _open(disk, folder, name, path)
        for name, offset, data in record.writes:
            if offset + len(data) > disk.look_at(files[name]).st_size:
                raise CheckpointError("a patch would write beyond the end of the file", str(path / name))
        for name, offset, data in record.writes:
            write_bytes(disk, files[name], offset, data)
        for file in files.values():
            disk.sync(file)
    finally:
        for file in files.values():
            disk.close(file)


def _open(disk: Disk, folder: int, name: str, path: Path) -> int:
    """Open a file to change it, after making sure that nobody else has it."""
    entry = disk.look(folder, name)
    if entry is None:
        raise CheckpointError("the file to be patched is gone", str(path / name), "restore the folder from a copy")
    refuse_shared(path / name, entry)
    return disk.modify(folder, name)


class Patches:
    """The batches of one transaction. `count` of them are done, by this process or one that was interrupted."""

    def __init__(self, disk: Disk, folder: int, work: int, path: Path, job: str) -> None:
        self._disk, self._folder, self._work, self._path, self._job = disk, folder, work, path, job
        self._files: dict[str, int] = {}
        self.count = 0
        self.residue = 0
        self.is_begun = False

    def resume(self, record: Record) -> None:
        """Go on after `record`, which has been redone.

        Raises:
            StateError: another job wrote it.
        """
        if record.job != self._job:
            raise StateError(f"the folder is half patched by job {record.job}", str(self._path), HINT)
        self.count, self.residue, self.is_begun = record.number + 1, record.residue, True

    def apply(self, writes: Sequence[Write], residue: bytes) -> None:
        """Make one batch so: residue durable, record durable, bytes durable."""
        views = tuple((name, offset, memoryview(data).cast("B")) for name, offset, data in writes)
        if sum(len(data) for _, _, data in views) > LARGEST_BATCH:
            what = f"a batch of more than {LARGEST_BATCH >> 20} MiB"
            raise StateError(what, str(self._path), "patch in smaller batches")
        for name in {name for name, _, _ in views}:
            check_name(name, str(self._path))
        self._refuse_beyond(views)
        if residue:
            file = self._file(RESIDUE)
            write_bytes(self._disk, file, self.residue, memoryview(residue))
            self._disk.sync(file)
        record = Record(self._job, self.count, self.residue + len(residue), views)
        self.is_begun = True
        file = self._file(SLOTS[self.count % 2])
        write_bytes(self._disk, file, 0, memoryview(record.encode()))
        self._disk.sync(file)
        redo(self._disk, self._folder, record, self._path)
        self.count, self.residue = self.count + 1, record.residue

    def _refuse_beyond(self, writes: Iterable[tuple[str, int, memoryview]]) -> None:
        """Before the record is there: what it says will be done, by whoever recovers."""
        for name, offset, data in writes:
            entry = self._disk.look(self._folder, name)
            if entry is None:
                raise CheckpointError("there is no such file to patch", str(self._path / name))
            refuse_shared(self._path / name, entry)
            if offset < 0 or offset + len(data) > entry.st_size:
                raise StateError("a patch beyond the end of the file", str(self._path / name), "write a new folder")

    def end_residue(self) -> None:
        """Cut what an interrupted batch may have left behind the residue of those that are done."""
        file = self._file(RESIDUE)
        self._disk.truncate(file, self.residue)
        self._disk.sync(file)

    def _file(self, name: str) -> int:
        if name not in self._files:
            is_there = self._disk.look(self._work, name) is not None
            act = self._disk.modify if is_there else self._disk.create
            self._files[name] = act(self._work, name)
            self._disk.sync(self._work)
            self._disk.sync(self._folder)
        return self._files[name]

    def handles(self) -> list[int]:
        """What is open."""
        return list(self._files.values())


HINT = "run that command again, which goes on where it stopped"
