"""A commit of many files: all of them are there, or none is, whatever happens in between."""

from __future__ import annotations

import contextlib
import errno
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from surgery.checkpoint.disk import DISK, Disk
from surgery.checkpoint.failures import told
from surgery.checkpoint.journal import Journal, Move
from surgery.checkpoint.lock import claim, hold
from surgery.checkpoint.names import JOURNAL, WORK, check_name, staging_name
from surgery.checkpoint.parents import open_with_parents
from surgery.checkpoint.patching import RESIDUE, Patches, Write, latest
from surgery.checkpoint.places import Places
from surgery.checkpoint.receipt import encode_receipt, receipt_in
from surgery.checkpoint.recover import clear, finish, real, recover_within, settle
from surgery.checkpoint.shared import refuse_link
from surgery.checkpoint.staging import Staging
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
        patience: seconds that `commit` waits for readers of `consistent`.

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
        self._outer = self._inner = -1
        self._staging: Staging | None = None
        self._patches: Patches | None = None
        self._is_decided = False

    # What is to be written

    @property
    def scratch(self) -> Path:
        """A folder on the same disk for files that are gone when the commit is."""
        return self.path / WORK if self.mode == "replace" else self.path.parent

    def reserve(self, size: int, beside: int = 0) -> None:
        """Set `size` bytes aside: what `create` will ask for, in all; `beside` is for the caller's own `scratch`.

        Raises:
            DiskError: the disk has not so much, is read-only or forbidden; nothing was written.
        """
        self._writable().reserve(size, beside)

    def create(self, name: str, size: int, *, digest: bool = False) -> StagedFile:
        """Stage the file `name` of exactly `size` bytes; with `digest` its sha256 is computed as it is filled.

        Names may have folders, such as `1_Pooling/config.json`, which are made with the commit if they are missing.
        Where an exception leaves the file's block, the file is dropped, and may be created again.

        Raises:
            CheckpointError: the name leaves the folder or is taken, or would replace a link.
            DiskError: the disk has not so much, or refuses.
        """
        return self._writable().create(name, size, digest=digest)

    def write(self, name: str, data: bytes) -> None:
        """Stage a small file whole, with its digest; raises as `create`."""
        with self.create(name, len(data), digest=True) as file:
            file.write_at(0, data)

    def adopt(self, name: str, source: Path, size: int) -> None:
        """Stage a finished, durable file of this disk, `source`, of `size` bytes, by another name for it.

        Raises:
            CheckpointError: as `create`.
            DiskError: the file lies on another disk, or the file system knows no second names.
        """
        self._writable().adopt(name, source, size)

    def remove(self, name: str) -> None:
        """Let `name` go with the commit, if it is there (`replace` only), and its folder, if nothing else is in it.

        Raises:
            CheckpointError: the name leaves the folder, or is created by this commit.
            StateError: the folder is new.
        """
        self._writable().remove(name)

    @property
    def patched(self) -> int:
        """How many batches of `patch` are done, by this run and the interrupted one that it goes on with."""
        return 0 if self._patches is None else self._patches.count

    def patch(self, writes: Sequence[Write], residue: bytes = b"") -> None:
        """Change bytes of files where they are (`replace` only): batch number `patched`, durable when this returns.

        For those without space for a second copy. It gives up what else a transaction promises: from the first batch
        on the folder is half old and half new until `commit`, readers of `consistent` are refused, and what is
        interrupted can only be finished by the same job, which goes on with batch `patched`.

        Args:
            writes: (file, offset, new bytes); at most 256 MiB. A batch must be computed from bytes of its own ranges,
                or from what no batch changes.
            residue: appended to the residue, and durable before the old bytes are overwritten.

        Raises:
            StateError: the folder is new, or it is beyond the end of a file, or others read for too long.
            CheckpointError: a file is gone, is a link, or has another name: what others share is not written into.
            DiskError: the disk refuses; run the same job again.
        """
        self._writable()
        if self._patches is None:
            raise StateError("a new folder holds nothing to patch", str(self.path), "create its files")
        after = f"{self._patches.count} batches are done; run the same command again, which goes on from there"
        with told(self.path, after):
            if not self._patches.is_begun:
                hold(self._disk, self._outer, self.path, self._patience)
            self._patches.apply(writes, residue)

    def keep_residue(self, name: str) -> None:
        """Let what `patch` was given as residue become the file `name` with the commit; raises as `create`."""
        staging = self._writable()
        check_name(name, str(self.path))
        staging.refuse_again(name)
        if self._patches is not None and self._patches.residue:
            with told(self.path / name):
                self._patches.end_residue()
            staging.moves[name] = Move(name, RESIDUE, self._patches.residue)

    def _writable(self) -> Staging:
        if self._staging is None or self._is_decided:
            what = "the job is finished" if self.done or self._is_decided else "the transaction is not open"
            raise StateError(what, str(self.path), "look at `done` after entering the `with` block")
        return self._staging

    # The commit

    def commit(self, receipt: Mapping[str, Any]) -> None:
        """Make all of it so, durably, with `receipt` (JSON values; `format`, `job` and `files` are added).

        Raises:
            StateError: a file is still open, or others read the folder for too long; nothing was changed.
            CheckpointError: a file to be replaced became a link, or the output appeared meanwhile; nothing was changed.
            DiskError: the disk refuses. Where that was after the decision, the message says so, and the next command
                on this folder finishes it.
        """
        staging = self._writable()
        staging.refuse_open()
        data = encode_receipt(self.job, receipt, list(staging.moves.values()))
        try:
            with told(self.path):
                seal = staging.seal(data)
                if self.mode == "new":
                    self._appear()
                else:
                    self._replace(staging, Journal(self.job, (*staging.moves.values(), seal)))
        except DiskError as error:
            if self._is_decided:
                raise DiskError(f"{error.what}; {_UNDECIDED}", error.where, error.hint) from error
            raise

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
        self._disk.unlock(self._inner)  # it is the folder itself now, and has no more to wait for

    def _replace(self, staging: Staging, journal: Journal) -> None:
        disk, work, folder = self._disk, self._inner, self._outer
        # The work folder itself must be there after a power cut before a single file of the folder changes.
        disk.sync(folder)
        staging.put(_UNSEALED, journal.encode())
        hold(disk, folder, self.path, self._patience)
        try:
            with Places(disk, folder, self.path) as places:
                for move in journal.moves:
                    refuse_link(places.look(move.name) if move.staged else None, self.path / move.name)
            try:
                self._is_decided = True
                disk.rename(work, _UNSEALED, work, JOURNAL)
            except OSError:
                self._is_decided = disk.look(work, JOURNAL) is not None
                raise
            disk.sync(work)  # the decision
            finish(disk, folder, work, journal, self.path)
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
            if not self.done:
                over = self._outer if self.mode == "replace" else None
                self._staging = Staging(self._disk, self._inner, self.path, over)
        except BaseException:
            with contextlib.suppress(OSError):  # it is not empty where it holds a commit that cannot be finished
                if self._inner >= 0:
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
        self._inner = staging
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
            recover_within(self._disk, folder, self.path)
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
        self._inner = work
        self._patches = Patches(self._disk, self._outer, work, self.path, self.job)
        if settle(self._disk, self._outer, work, self.path).action == "patching":
            record = latest(self._disk, work, self.path)
            assert record is not None
            self._patches.resume(record)
            hold(self._disk, self._outer, self.path, self._patience)
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
            is_patching = self._patches is not None and self._patches.is_begun
            if not self.done and not self._is_decided and not is_patching:
                self._abandon()
        finally:
            self._release()

    def _abandon(self) -> None:
        """Take away what was staged. A disk that refuses even that leaves it to the next recovery."""
        with contextlib.suppress(OSError):
            clear(self._disk, self._inner)
            self._disk.remove_folder(self._outer, self._staging_name)

    def _release(self) -> None:
        for lock in (self._inner, self._outer):
            if lock >= 0:
                with contextlib.suppress(OSError):  # a process forked meanwhile holds the same lock: end it for both
                    self._disk.unlock(lock)
        if self._staging is not None:
            self._staging.close()
        patched = [] if self._patches is None else self._patches.handles()
        handles = [*patched, self._inner, self._outer]
        self._staging = self._patches = None
        self._inner = self._outer = -1
        for handle in handles:
            if handle >= 0:
                self._disk.close(handle)
