"""The system calls of the commit protocol, one method each: tests put a disk that fails, stops or forgets there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["DISK", "Disk"]

T = TypeVar("T")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MODIFY = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Disk:
    """What the protocol asks of the operating system. `folder` is always an open folder, `name` one entry of it.

    Every method is one system call and raises OSError as that does. Names are never followed through links, except by
    `open_path`, which opens what the user named. Calls that a signal interrupts are made again.
    """

    def do(self, name: str, act: Callable[[], T]) -> T:
        """Make the call `act`, known as `name`. The one place where all calls pass."""
        while True:
            with contextlib.suppress(InterruptedError):
                return act()

    def open_path(self, path: Path) -> int:
        """Open the folder `path`."""
        return self.do("open_path", lambda: os.open(path, _FOLDER))

    def open_folder(self, folder: int, name: str) -> int:
        return self.do("open_folder", lambda: os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder))

    def open(self, folder: int, name: str) -> int:
        """Open a file for reading; a pipe that nobody writes to does not make it wait."""
        return self.do("open", lambda: os.open(name, _READ, dir_fd=folder))

    def modify(self, folder: int, name: str) -> int:
        """Open a file to change it where it is."""
        return self.do("modify", lambda: os.open(name, _MODIFY, dir_fd=folder))

    def create(self, folder: int, name: str) -> int:
        """Make a file that was not there, with the mode that the umask leaves."""
        return self.do("create", lambda: os.open(name, _CREATE, 0o666, dir_fd=folder))

    def close(self, file: int) -> None:
        # Linux has closed the file even where it reports an interruption: a second try could close another's.
        os.close(file)

    def make_folder(self, folder: int, name: str) -> None:
        self.do("make_folder", lambda: os.mkdir(name, dir_fd=folder))

    def remove_folder(self, folder: int, name: str) -> None:
        self.do("remove_folder", lambda: os.rmdir(name, dir_fd=folder))

    def unlink(self, folder: int, name: str) -> None:
        self.do("unlink", lambda: os.unlink(name, dir_fd=folder))

    def link(self, source: Path, folder: int, name: str) -> None:
        """Give the file `source` another name."""
        self.do("link", lambda: os.link(source, name, dst_dir_fd=folder, follow_symlinks=False))

    def rename(self, folder: int, name: str, to_folder: int, to_name: str) -> None:
        """Rename; an entry of the new name is replaced in the same instant, and a link is replaced, not followed."""
        self.do("rename", lambda: os.rename(name, to_name, src_dir_fd=folder, dst_dir_fd=to_folder))

    def write(self, file: int, offset: int, data: memoryview) -> int:
        """Write some of `data` at `offset`; return how many bytes."""
        return self.do("write", lambda: os.pwrite(file, data, offset))

    def read(self, file: int, offset: int, length: int) -> bytes:
        """Read at most `length` bytes from `offset`; none at the end of the file."""
        return self.do("read", lambda: os.pread(file, length, offset))

    def copy(self, source: int, offset: int, file: int, to: int, length: int) -> int:
        """Let the kernel copy some of `length` bytes between files; return how many."""
        call: Any = getattr(os, "copy_file_range", None)
        if call is None:  # not on this system; the caller reads and writes instead
            return 0
        return int(self.do("copy", lambda: call(source, file, length, offset, to)))

    def allocate(self, file: int, length: int) -> None:
        """Make the file `length` bytes of zeros that have their place on the disk."""
        call: Any = getattr(os, "posix_fallocate", None)
        if length:
            self.do("allocate", lambda: call(file, 0, length) if call else os.ftruncate(file, length))

    def truncate(self, file: int, length: int) -> None:
        self.do("truncate", lambda: os.ftruncate(file, length))

    def chmod(self, file: int, mode: int) -> None:
        self.do("chmod", lambda: os.fchmod(file, mode))

    def sync(self, file: int) -> None:
        """Return when the file, or the entries of the folder, would outlive a power cut."""
        full: int | None = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync stops at the drive's cache
        self.do("sync", lambda: os.fsync(file) if full is None else fcntl.fcntl(file, full))

    def begin_sync(self, file: int, offset: int, length: int) -> None:
        """Let the system write these bytes out while others are made, so that `sync` waits less. It may do nothing."""
        call: Any = getattr(os, "posix_fadvise", None)
        if call is not None:
            with contextlib.suppress(OSError):
                call(file, offset, length, os.POSIX_FADV_DONTNEED)

    def list(self, folder: int) -> list[str]:
        return sorted(self.do("list", lambda: os.listdir(folder)))

    def look(self, folder: int, name: str) -> os.stat_result | None:
        """What the entry is, links not followed; None where there is none."""
        try:
            return self.do("look", lambda: os.stat(name, dir_fd=folder, follow_symlinks=False))
        except FileNotFoundError:
            return None

    def look_at(self, file: int) -> os.stat_result:
        return self.do("look_at", lambda: os.fstat(file))

    def free(self, folder: int) -> int:
        """Bytes that this user may still write on the folder's file system; -1 where it is read-only."""
        told = self.do("free", lambda: os.fstatvfs(folder))
        return -1 if told.f_flag & os.ST_RDONLY else told.f_bavail * told.f_frsize

    def lock(self, file: int, *, shared: bool = False) -> bool:
        """Lock for this process, at once or not at all. The lock ends with the process, however that ends."""
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            self.do("lock", lambda: fcntl.flock(file, kind | fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True

    def unlock(self, file: int) -> None:
        self.do("unlock", lambda: fcntl.flock(file, fcntl.LOCK_UN))

    def token(self) -> str:
        """A word that no other commit has used."""
        return uuid.uuid4().hex[:16]

    def now(self) -> float:
        return time.monotonic()

    def wait(self) -> None:
        time.sleep(0.02)


DISK = Disk()
