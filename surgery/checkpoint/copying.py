"""Bytes from one file to another, by the kernel where it can."""

from __future__ import annotations

import errno

from surgery.checkpoint.disk import Disk
from surgery.errors import CheckpointError

__all__ = ["copy_bytes", "write_bytes"]

_NO_COPY = frozenset({errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF, errno.EPERM})
_BLOCK = 1024 * 1024
_LARGEST = 64 * 1024 * 1024


def write_bytes(disk: Disk, file: int, offset: int, data: memoryview) -> None:
    """Write all of `data` at `offset`, in as many calls as it takes.

    Raises:
        OSError: the disk took nothing more, or refused.
    """
    while data:
        count = disk.write(file, offset, data)
        if count <= 0:
            raise OSError(errno.ENOSPC, "the disk took no more bytes")
        offset, data = offset + count, data[count:]


def copy_bytes(disk: Disk, source: int, offset: int, file: int, to: int, length: int) -> None:
    """Copy `length` bytes of `source` from `offset` to offset `to` of `file`.

    copy_file_range shares the blocks on file systems that can (btrfs, XFS) and keeps the bytes in the kernel
    elsewhere; where it is refused (between file systems, old kernels, some network ones) they are read and written.

    Raises:
        CheckpointError: the source ends before that.
        OSError: the disk refused.
    """
    end = offset + length
    while offset < end:
        try:
            count = disk.copy(source, offset, file, to, min(end - offset, _LARGEST))
        except OSError as error:
            if error.errno not in _NO_COPY:
                raise
            count = 0
        if count <= 0:
            break
        offset, to = offset + count, to + count
    while offset < end:
        data = disk.read(source, offset, min(_BLOCK, end - offset))
        if not data:
            raise CheckpointError(
                f"the file being copied ends {end - offset} bytes too early", "", "it was cut short: fetch it again"
            )
        write_bytes(disk, file, to, memoryview(data))
        offset, to = offset + len(data), to + len(data)
