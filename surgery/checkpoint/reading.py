"""Small files of the protocol, read whole, bounded and without following links."""

from __future__ import annotations

import hashlib
import stat

from surgery.checkpoint.disk import Disk
from surgery.errors import CheckpointError

__all__ = ["hash_file", "read_small"]

_BLOCK = 1024 * 1024


def read_small(disk: Disk, folder: int, name: str, largest: int, where: str) -> bytes | None:
    """Return the bytes of the file, or None where there is none.

    Raises:
        CheckpointError: it is no regular file, or larger than `largest`.
        OSError: it may not be read.
    """
    entry = disk.look(folder, name)
    if entry is None:
        return None
    if not stat.S_ISREG(entry.st_mode):
        raise CheckpointError("it is no regular file", where)
    if entry.st_size > largest:
        raise CheckpointError("the file is too large", where)
    file = disk.open(folder, name)
    try:
        data = b""
        while len(data) <= largest and (block := disk.read(file, len(data), largest + 1 - len(data))):
            data += block
    finally:
        disk.close(file)
    if len(data) > largest:
        raise CheckpointError("the file is too large", where)
    return data


def hash_file(disk: Disk, folder: int, name: str) -> str:
    """The sha256 of the file's bytes."""
    file = disk.open(folder, name)
    try:
        digest, offset = hashlib.sha256(), 0
        while block := disk.read(file, offset, _BLOCK):
            digest.update(block)
            offset += len(block)
        return digest.hexdigest()
    finally:
        disk.close(file)
