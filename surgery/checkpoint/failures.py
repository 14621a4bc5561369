"""What the operating system refuses, in words."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from surgery.errors import DiskError

__all__ = ["told"]

_WORDS = {
    errno.ENOSPC: ("the disk is full", "free some space, or choose another disk"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or choose another disk"),
    errno.EFBIG: ("the file would be larger than the file system or a limit allows", "choose another disk"),
    errno.EROFS: ("the file system is read-only", "choose another folder"),
    errno.EACCES: ("you may not write here", "change its permissions, or choose another folder"),
    errno.EPERM: ("you may not write here", "change its permissions, or choose another folder"),
    errno.EIO: ("the disk reports an error", "look at the system's log; the disk may be failing"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
    errno.ELOOP: ("there is a link where a file or folder must be", "remove it, or choose another folder"),
    errno.ENOTDIR: ("there is a file where a folder must be", "remove it, or choose another folder"),
    errno.EMFILE: ("too many files are open", "raise the limit: ulimit -n 4096"),
}


@contextlib.contextmanager
def told(where: Path, after: str = "") -> Iterator[None]:
    """Turn an OSError into a DiskError at `where`; `after` says what became of the folder, where that is not plain.

    Raises:
        DiskError: the disk is full, read-only, forbidden or failing.
    """
    try:
        yield
    except OSError as error:
        words = error.strerror or type(error).__name__
        what, hint = _WORDS.get(error.errno or 0, (f"the system says: {words}", ""))
        raise DiskError(f"{what}; {after}" if after else what, str(where), hint) from error
