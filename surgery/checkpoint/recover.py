"""What an interrupted commit left: finished where it was decided, taken away where it was not."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from surgery.checkpoint.disk import DISK, Disk
from surgery.checkpoint.failures import told
from surgery.checkpoint.journal import LARGEST_JOURNAL, Journal, Move
from surgery.checkpoint.lock import claim
from surgery.checkpoint.names import JOURNAL, WORK, staging_name
from surgery.checkpoint.patching import RESIDUE, SLOTS, latest, redo
from surgery.checkpoint.places import Places
from surgery.checkpoint.reading import hash_file, read_small
from surgery.errors import CheckpointError

__all__ = ["Recovered", "clear", "finish", "recover", "settle"]


@dataclass(frozen=True, slots=True)
class Recovered:
    """What `recover` did: `action`, of which job, to which files.

    `nothing`; `discarded`: the folder is as before; `finished`: it is new; `patching`: the last batch of a patch in
    place is whole, and only its job can make the others.
    """

    action: str = "nothing"
    job: str = ""
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.action == "finished":
            return f"finished the commit of job {self.job}: {len(self.files)} files are in place"
        if self.action == "patching":
            return (
                f"the folder is half patched by job {self.job}: run that command again, which goes on where it stopped"
            )
        if self.action == "discarded":
            return "an unfinished commit was taken away; the folder is as it was"
        return "nothing to recover"


def recover(path: Path, *, disk: Disk = DISK) -> Recovered:
    """Bring `path` into its old or its new state after an interrupted commit, whichever was decided. Safe to repeat.

    Raises:
        StateError: a commit is under way.
        CheckpointError: the journal is damaged, or a file that it names is gone; nothing was changed.
        DiskError: the disk refuses.
    """
    path = real(path)
    with told(path):
        beside = _discard_beside(disk, path)
        try:
            folder = disk.open_path(path)
        except (FileNotFoundError, NotADirectoryError):
            return beside
        try:
            within = recover_within(disk, folder, path)
        finally:
            disk.close(folder)
    return beside if within.action == "nothing" else within


def recover_within(disk: Disk, folder: int, path: Path) -> Recovered:
    """`recover` of an open folder whose files are replaced one by one; raises OSError where the disk refuses."""
    work = claim(disk, folder, WORK, path, make=False)
    if work is None:
        return Recovered()
    try:
        done = settle(disk, folder, work, path)
        if done.action != "patching":
            disk.remove_folder(folder, WORK)
        return done
    finally:
        disk.close(work)


def _discard_beside(disk: Disk, path: Path) -> Recovered:
    """Take away what was to become the folder `path`."""
    try:
        parent = disk.open_path(path.parent)
    except (FileNotFoundError, NotADirectoryError):
        return Recovered()
    try:
        staging = claim(disk, parent, staging_name(path.name), path, make=False)
        if staging is None:
            return Recovered()
        try:
            clear(disk, staging)
            disk.remove_folder(parent, staging_name(path.name))
        finally:
            disk.close(staging)
    finally:
        disk.close(parent)
    return Recovered("discarded")


def settle(disk: Disk, folder: int, work: int, path: Path) -> Recovered:
    """Finish or discard what is in `work`, which is left empty; the caller has claimed it.

    Raises:
        CheckpointError, OSError: as `recover`.
    """
    where = str(path / WORK / JOURNAL)
    data = read_small(disk, work, JOURNAL, LARGEST_JOURNAL, where)
    if data is None:
        record = latest(disk, work, path / WORK)
        if record is None:
            return Recovered("discarded") if clear(disk, work) else Recovered()
        clear(disk, work, keep=(*SLOTS, RESIDUE))
        redo(disk, folder, record, path)
        return Recovered("patching", record.job, tuple(sorted({name for name, _, _ in record.writes})))
    journal = Journal.decode(data, where)
    with Places(disk, folder, path) as places:
        for move in journal.moves:
            _check_reachable(disk, places, work, move, path)
    # No reader is inside: the decision waited for those that were, and the journal turns away those that come.
    finish(disk, folder, work, journal, path)
    return Recovered("finished", journal.job, tuple(move.name for move in journal.moves))


def _check_reachable(disk: Disk, places: Places, work: int, move: Move, path: Path) -> None:
    """The new file is still staged, or is in its place already."""
    if not move.staged:
        return
    staged = disk.look(work, move.staged)
    entry = staged or places.look(move.name)
    is_right = entry is not None and stat.S_ISREG(entry.st_mode) and entry.st_size == move.size
    found = (
        ""
        if not is_right or not move.sha256
        else (hash_file(disk, work, move.staged) if staged else places.hash(move.name))
    )
    if not is_right or found != move.sha256:
        what = f"the new {move.name} of an interrupted commit is missing or damaged"
        raise CheckpointError(what, str(path), "nothing was changed; restore the folder from a copy")


def finish(disk: Disk, folder: int, work: int, journal: Journal, path: Path) -> None:
    """Make the journal true, and forget it. Each step may have been done before."""
    with Places(disk, folder, path) as places:
        for move in journal.moves:
            if not move.staged:
                places.unlink(move.name)
            elif disk.look(work, move.staged) is not None:
                places.receive(work, move.staged, move.name)
            else:  # renamed by whoever was interrupted: its folder must be durable, too
                places.look(move.name)
        places.sync()
        # After the receipt: what was interrupted is then done again, as the journal is still there.
        places.prune(move.name for move in journal.moves if not move.staged)
    slots = [slot for slot in SLOTS if disk.look(work, slot) is not None]
    if slots:
        # The receipt is durable. Before the journal goes: without it these would say that the patch is half done.
        for slot in slots:
            disk.unlink(work, slot)
        disk.sync(work)
    # Only now: forgotten before its renames are durable, the journal could leave some of them undone.
    disk.unlink(work, JOURNAL)
    # And durably: when it came back after a power cut, it would find that others have changed the files since.
    disk.sync(work)
    clear(disk, work)


def clear(disk: Disk, folder: int, keep: tuple[str, ...] = ()) -> bool:
    """Remove everything in an open folder but `keep`, links not followed; return whether there was anything."""
    names = [name for name in disk.list(folder) if name not in keep]
    for name in names:
        entry = disk.look(folder, name)
        if entry is not None and stat.S_ISDIR(entry.st_mode):
            inner = disk.open_folder(folder, name)
            try:
                clear(disk, inner)
            finally:
                disk.close(inner)
            disk.remove_folder(folder, name)
        elif entry is not None:
            disk.unlink(folder, name)
    return bool(names)


def real(path: Path) -> Path:
    """The folder that `path` names, links on the way to it resolved, so that two names of it meet in one lock."""
    return Path(os.path.realpath(path))
