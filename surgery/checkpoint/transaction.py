"""A commit of many files: all of them are there, or none is, whatever happens in between."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import stat
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from surgery.checkpoint.copying import write_bytes
from surgery.checkpoint.disk import DISK, Disk
from surgery.checkpoint.failures import told
from surgery.checkpoint.journal import Journal, Move
from surgery.checkpoint.lock import claim, hold
from surgery.checkpoint.names import JOURNAL, RECEIPT, WORK, check_name, staging_name
from surgery.checkpoint.parents import open_or_make, open_with_parents
from surgery.checkpoint.receipt import encode_receipt, receipt_in
from surgery.checkpoint.recover import clear, finish, real, recover_within, settle
from surgery.checkpoint.reserve import Reserve
from surgery.checkpoint.shared import refuse_link
from surgery.checkpoint.writing import StagedFile
from surgery.errors import CheckpointError, DiskError, StateError

__all__ = ["Transaction"]

_UNSEALED = "journal.new"
_UNDECIDED = "what was written is kept: run the same command again, which finishes it or begins anew"


class Transaction:
    """A folder that appears complete (`new`), or files of a folder that change together (`replace`).

        with Transaction(out, "new", job=job) as tx:
            if tx.done:
                return tx.receipt
            tx.reserve(total)
            with tx.create("model.safetensors", size, digest=True) as file:
                file.write_at(0, head)
            tx.commit({"adapters": [...]})

    Entering locks the folder and recovers what an interrupted commit left. Leaving the block without `commit` leaves
    the folder as it was. `job` says what is done, from what and by what; it must not depend on what the job itself
    changes. Where the folder's receipt names the same job, `done` is true and there is nothing to do.

    Args:
        out: the folder. `new`: it must not exist or be empty. `replace`: it must exist.
        mode: `new` makes the folder appear by one rename; `replace` renames file by file, after a journal has been
            written that `recover` would finish.
        job: the job's identity, such as a hash over base, adapters and options.
        disk: the system calls, for tests.
        patience: seconds that `commit` and recovery wait for readers of `consistent`.

    Attributes:
        path: the folder, links resolved.
        done: the job has been finished before, and its result is durable.
        receipt: the folder's receipt (`replace`: before this commit; `new`: of the finished job), or None.

    Raises:
        StateError: another process writes here, or reads for too long.
        CheckpointError: the folder exists (`new`) or does not (`replace`), or is damaged.
        DiskError: the disk is full, read-only, forbidden or failing.

    Not for network file systems: their locks and renames promise less.
    """

    def __init__(
        self,
        out: Path,
        mode: Literal["new", "replace"] = "new",
        *,
        job: str,
        disk: Disk = DISK,
        patience: float = 60.0,
    ) -> None:
        self.path, self.mode, self.job, self.done = real(out), mode, job, False
        self.receipt: dict[str, Any] | None = None
        self._disk, self._patience = disk, patience
        self._outer = self._staging = -1
        self._folders: dict[tuple[str, ...], int] = {}
        self._moves: dict[str, Move] = {}
        self._open: dict[StagedFile, tuple[int, str, int]] = {}
        self._reserve: Reserve | None = None
        self._is_decided = False
        self._token = ""
        self._count = 0

    # What is to be written

    def reserve(self, size: int) -> None:
        """Set `size` bytes aside: what `create` will ask for, in all.

        Raises:
            DiskError: the disk has not so much, is read-only or forbidden; nothing was written.
        """
        self._writable().take(size)

    def create(self, name: str, size: int, *, digest: bool = False) -> StagedFile:
        """Stage the file `name` of exactly `size` bytes; with `digest` its sha256 is computed as it is filled.

        `new` takes names with folders, such as `1_Pooling/config.json`; `replace` takes plain ones. Where an exception
        leaves the file's block, the file is dropped, and may be created again.

        Raises:
            CheckpointError: the name leaves the folder or is taken, or would replace a link.
            DiskError: the disk has not so much, or refuses.
        """
        reserve = self._writable()
        where = self.path / name
        *folders, plain = check_name(name, str(self.path), nested=self.mode == "new")
        self._refuse_again(name)
        with told(where):
            before = self._disk.look(self._outer, name) if self.mode == "replace" else None
            refuse_link(before, where)
            reserve.give(size)
            folder = self._folder(tuple(folders))
            staged = plain if self.mode == "new" else self._next()
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

    def write(self, name: str, data: bytes) -> None:
        """Stage a small file whole, with its digest; raises as `create`."""
        with self.create(name, len(data), digest=True) as file:
            file.write_at(0, data)

    def remove(self, name: str) -> None:
        """Let `name` go with the commit, if it is there (`replace` only).

        Raises:
            CheckpointError: the name leaves the folder, or is created by this commit.
            StateError: the folder is new.
        """
        self._writable()
        if self.mode == "new":
            raise StateError("a new folder holds nothing to remove", str(self.path), "do not create the file")
        check_name(name, str(self.path))
        self._refuse_again(name)
        with told(self.path / name):
            entry = self._disk.look(self._outer, name)
        if entry is not None and stat.S_ISDIR(entry.st_mode):
            raise CheckpointError("a folder cannot be removed by a commit", str(self.path / name))
        self._moves[name] = Move(name)

    def _writable(self) -> Reserve:
        if self._reserve is None or self._is_decided:
            what = "the job is finished" if self.done or self._is_decided else "the transaction is not open"
            raise StateError(what, str(self.path), "look at `done` after entering the `with` block")
        return self._reserve

    def _refuse_again(self, name: str) -> None:
        if name in self._moves or any(file.name == name for file in self._open):
            raise CheckpointError(f"{name} is written twice in one commit", str(self.path), "write each file once")

    def _folder(self, parts: tuple[str, ...]) -> int:
        if not parts:
            return self._staging
        if parts not in self._folders:
            self._folders[parts] = open_or_make(self._disk, self._folder(parts[:-1]), parts[-1])
        return self._folders[parts]

    def _next(self) -> str:
        self._count += 1
        return f"{self._token}-{self._count}"

    def _left(self, file: StagedFile, is_whole: bool) -> None:
        """A file's block was left."""
        handle, staged, folder = self._open.pop(file)
        self._disk.close(handle)
        if is_whole:
            self._moves[file.name] = Move(file.name, staged, file.size, file.sha256 or "")
        else:
            with contextlib.suppress(OSError):
                self._disk.unlink(folder, staged)

    # The commit

    def commit(self, receipt: Mapping[str, Any]) -> None:
        """Make all of it so, durably, with `receipt` (JSON values; `format`, `job` and `files` are added).

        Raises:
            StateError: a file is still open, or others read the folder for too long; nothing was changed.
            CheckpointError: a file to be replaced became a link, or the output appeared meanwhile; nothing was changed.
            DiskError: the disk refuses. Where that was after the decision, the message says so, and the next command
                on this folder finishes it.
        """
        reserve = self._writable()
        if self._open:
            name = next(iter(self._open)).name
            raise StateError(f"{name} is still open", str(self.path), "leave its `with` block before the commit")
        data = encode_receipt(self.job, receipt, list(self._moves.values()))
        try:
            with told(self.path):
                reserve.end()
                seal = self._stage(RECEIPT if self.mode == "new" else self._next(), data)
                for _, folder in sorted(self._folders.items(), reverse=True):  # the deepest first
                    self._disk.sync(folder)
                self._disk.sync(self._staging)
                if self.mode == "new":
                    self._appear()
                else:
                    self._replace(Journal(self.job, (*self._moves.values(), seal)))
        except DiskError as error:
            if self._is_decided:
                raise DiskError(f"{error.what}; {_UNDECIDED}", error.where, error.hint) from error
            raise

    def _stage(self, staged: str, data: bytes) -> Move:
        """Write a file of the protocol's own, durably."""
        handle = self._disk.create(self._staging, staged)
        try:
            write_bytes(self._disk, handle, 0, memoryview(data))
            self._disk.sync(handle)
        finally:
            self._disk.close(handle)
        return Move(RECEIPT, staged, len(data), hashlib.sha256(data).hexdigest())

    def _appear(self) -> None:
        name = self.path.name
        try:
            self._is_decided = True
            self._disk.rename(self._outer, self._staging_name, self._outer, name)
        except OSError as error:
            self._is_decided = self._disk.look(self._outer, self._staging_name) is None
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                what = "the output appeared while it was being written, by other hands"
                raise CheckpointError(what, str(self.path), "choose another folder, or remove it") from error
            raise
        self._disk.sync(self._outer)

    def _replace(self, journal: Journal) -> None:
        disk, work, folder = self._disk, self._staging, self._outer
        # The work folder itself must be there after a power cut before a single file of the folder changes.
        disk.sync(folder)
        self._stage(_UNSEALED, journal.encode())
        hold(disk, folder, self.path, self._patience)
        try:
            for move in journal.moves:
                refuse_link(disk.look(folder, move.name) if move.staged else None, self.path / move.name)
            try:
                self._is_decided = True
                disk.rename(work, _UNSEALED, work, JOURNAL)
            except OSError:
                self._is_decided = disk.look(work, JOURNAL) is not None
                raise
            disk.sync(work)  # the decision
            finish(disk, folder, work, journal)
        finally:
            disk.unlock(folder)
        disk.remove_folder(folder, WORK)

    # Entering and leaving

    def __enter__(self) -> Self:
        try:
            with told(self.path):
                if self.mode == "new":
                    self._enter_new()
                else:
                    self._enter_replace()
            self._token = self._disk.token()
            self._reserve = Reserve(self._disk, self._staging, self.path) if not self.done else None
        except BaseException:
            with contextlib.suppress(OSError):  # it is not empty where it holds a commit that cannot be finished
                if self._staging >= 0:
                    self._disk.remove_folder(self._outer, self._staging_name)
            self._release()
            raise
        return self

    @property
    def _staging_name(self) -> str:
        return staging_name(self.path.name) if self.mode == "new" else WORK

    def _enter_new(self) -> None:
        self._outer = open_with_parents(self._disk, self.path.parent)
        if self._is_finished():
            return
        staging = claim(self._disk, self._outer, staging_name(self.path.name), self.path)
        assert staging is not None
        self._staging = staging
        clear(self._disk, staging)
        if self._is_finished():  # by whoever held the lock until now
            self._disk.remove_folder(self._outer, staging_name(self.path.name))

    def _is_finished(self) -> bool:
        entry = self._disk.look(self._outer, self.path.name)
        if entry is None:
            return False
        what = "the output exists and is not empty"
        if not stat.S_ISDIR(entry.st_mode):
            raise CheckpointError("the output exists and is no folder", str(self.path), "choose another, or remove it")
        folder = self._disk.open_folder(self._outer, self.path.name)
        try:
            recover_within(self._disk, folder, self.path, self._patience)
            self.receipt = receipt_in(self._disk, folder, self.path)
            if self.receipt is None and not self._disk.list(folder):
                return False
            if self.receipt is None or self.receipt["job"] != self.job:
                if self.receipt is not None:
                    what = "the output exists and is the result of another job"
                raise CheckpointError(what, str(self.path), "choose another folder, or remove it")
            self._acknowledge(folder)
        finally:
            self._disk.close(folder)
        return True

    def _enter_replace(self) -> None:
        try:
            self._outer = self._disk.open_path(self.path)
        except FileNotFoundError:
            raise CheckpointError("no such folder", str(self.path), "name the folder of a checkpoint") from None
        work = claim(self._disk, self._outer, WORK, self.path)
        assert work is not None
        self._staging = work
        settle(self._disk, self._outer, work, self.path, self._patience)
        self.receipt = receipt_in(self._disk, self._outer, self.path)
        if self.receipt is not None and self.receipt["job"] == self.job:
            self._acknowledge(self._outer)
            self._disk.remove_folder(self._outer, WORK)

    def _acknowledge(self, folder: int) -> None:
        """Say that the job is done; before that, make sure that it stays so: its writer may have died before it was."""
        self._disk.sync(folder)
        if self.mode == "new":
            self._disk.sync(self._outer)
        self.done = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self.done and not self._is_decided:
                self._abandon()
        finally:
            self._release()

    def _abandon(self) -> None:
        """Take away what was staged. A disk that refuses even that leaves it to the next recovery."""
        with contextlib.suppress(OSError):
            clear(self._disk, self._staging)
            self._disk.remove_folder(self._outer, self._staging_name)

    def _release(self) -> None:
        for lock in (self._staging, self._outer):
            if lock >= 0:
                with contextlib.suppress(OSError):  # a process forked meanwhile holds the same lock: end it for both
                    self._disk.unlock(lock)
        files = [file for file, _, _ in self._open.values()]
        reserved = [] if self._reserve is None else self._reserve.handles()
        handles = [*files, *reserved, *self._folders.values(), self._staging, self._outer]
        self._open, self._folders, self._reserve = {}, {}, None
        self._staging = self._outer = -1
        for handle in handles:
            if handle >= 0:
                self._disk.close(handle)
