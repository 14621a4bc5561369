"""A real merge and a real unmerge of two shards that die, or whose disk fails, at every call: none lost, mixed, double."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from commit_disks import Hooked, Killed
from commit_jobs import OUT, without_receipt
from commit_power import Explorer
from faults import EVERYTHING, WRITES, faulty
from memory_disk import MemoryDisk
from operating import REGISTRY
from test_kill_points import PHASES, die, stop_at
from test_power_loss import NoFileSync
from tiny import snapshot, wanted
from tiny_world import World

from surgery import verify_checkpoint
from surgery.checkpoint import RECEIPT, Transaction, recover, stream, work
from surgery.errors import SurgeryError


class Trial(World):
    """Acts by name, and what is left to see after one."""

    def act(self, name: str) -> Callable[[Path], bool]:
        """The command."""
        return self.merge if name == "merge" else self.unmerge

    def calls(self, name: str, watched: frozenset[str]) -> list[str]:
        """What is asked of the disk when nothing goes wrong."""
        disk = Hooked()
        disk.watched = watched
        out = self.root / "calls" / "out"
        out.parent.mkdir()
        with faulty(disk, self.root):
            self.act(name)(out)
        for path in sorted(out.parent.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        out.parent.rmdir()
        return disk.calls

    def is_whole(self, name: str, out: Path) -> bool:
        """Whether the result is there: all of it; if not, nothing of it may be."""
        if not out.exists():
            return False
        assert snapshot(out) == self.results[name], "a mixed or another result"
        return True

    def finish(self, name: str, out: Path) -> None:
        """Run the command again, twice: the first time does what is left to do, the second nothing."""
        was_whole = self.is_whole(name, out)
        assert self.act(name)(out) is not was_whole, "done twice, or lost"
        assert self.is_whole(name, out)
        assert not self.act(name)(out)
        assert [path.name for path in out.parent.iterdir()] == ["out"], "left behind"


@pytest.fixture
def world(quick_path: Path) -> Trial:
    return Trial(quick_path)


BOTH = pytest.mark.parametrize("act", ["merge", "unmerge"])


def test_the_world_is_right(world: Trial) -> None:
    from safetensors.torch import load_file

    for folder, adapters in (("merged", world.adapters), ("back", [])):
        want = wanted(world.tensors, adapters)
        got = {n: t for path in (world.root / folder).glob("*.safetensors") for n, t in load_file(path).items()}
        assert all(torch.equal(got[name].view(torch.int16), want[name].view(torch.int16)) for name in want)
    base = snapshot(world.root / "base")
    assert {name: data for name, data in snapshot(world.root / "back").items() if name != RECEIPT} == base
    assert snapshot(world.root / "merged").keys() - base.keys() > {RECEIPT, "surgery/residue.bin"}
    kinds = set(world.calls("merge", WRITES))
    assert kinds >= {"create", "make_folder", "unlink", "rename", "write", "copy", "allocate", "sync", "os.pwrite"}
    assert kinds <= WRITES


@BOTH
@pytest.mark.parametrize("phase", PHASES)
def test_killed_at_every_call_that_changes_something(act: str, phase: str, world: Trial) -> None:
    outcomes = set()
    count = len(world.calls(act, WRITES))
    assert count > 40
    for n in range(count):
        out = world.root / "tries" / f"{n}" / "out"
        out.parent.mkdir(parents=True)
        disk = Hooked()
        disk.watched = WRITES
        stop_at(disk, n, phase, die)
        with faulty(disk, world.root), pytest.raises(Killed):
            world.act(act)(out)
        disk.bury()
        found = world.is_whole(act, out)
        outcomes.add(found)
        if n % 2:
            recover(out)
            assert world.is_whole(act, out) is found
        world.finish(act, out)
    assert outcomes == {True, False}
    assert world.sources.items() <= snapshot(world.root).items()


@BOTH
@pytest.mark.parametrize("phase", ["within", "after"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=lambda number: errno.errorcode[number])
def test_an_error_at_every_call(act: str, number: int, phase: str, world: Trial) -> None:
    """Within: the call does nothing. After: it has done its work and says that it has not. Reads fail, and do nothing."""
    watched = EVERYTHING if phase == "within" and number == errno.EIO else WRITES
    refused = 0
    for n in range(len(world.calls(act, watched))):
        out = world.root / "tries" / f"{n}" / "out"
        out.parent.mkdir(parents=True)
        disk = Hooked()
        disk.watched = watched

        def strike(at: int, now: str, name: str, n: int = n) -> None:
            if at == n and now == phase:
                raise OSError(number, os.strerror(number))

        disk.strike = strike
        is_done = False
        try:
            with faulty(disk, world.root):
                is_done = world.act(act)(out)
        except SurgeryError as error:
            refused += 1
            assert error.what
            assert error.where
        assert not disk.opened, f"files left open at {n}: {disk.calls[n]}"
        assert world.is_whole(act, out) or not is_done
        world.finish(act, out)
    assert refused > 40
    assert world.sources.items() <= snapshot(world.root).items()


@contextmanager
def in_memory() -> Iterator[None]:
    """Within the block a disk in memory takes bytes of real files too, and the space between is anywhere."""
    read, real = MemoryDisk.read, tempfile.TemporaryFile

    def copy(self: MemoryDisk, source: int, *_: int) -> int:
        if source not in self.files:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        raise AssertionError("nothing is copied within the disk")

    def read_either(self: MemoryDisk, file: int, offset: int, length: int) -> bytes:
        return read(self, file, offset, length) if file in self.files else os.pread(file, length, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryDisk, "copy", copy)
        patch.setattr(MemoryDisk, "read", read_either)
        patch.setattr(stream.tempfile, "TemporaryFile", lambda **_: real())
        patch.setattr(work, "refuse_other_result", lambda *_: None)  # it reads the real disk
        yield


@pytest.mark.parametrize(
    ("act", "ordered"),
    [
        ("merge", True),
        ("unmerge", False),
        pytest.param("unmerge", True, marks=pytest.mark.slow),
        pytest.param("merge", False, marks=pytest.mark.slow),  # half a minute
    ],
)
def test_the_power_goes_at_every_call(act: str, ordered: bool, world: Trial) -> None:
    """What is in the files is in them durably before the folder has its name: a mutant without fsync of files dies."""

    def job(disk: MemoryDisk) -> bool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(work, "Transaction", partial(Transaction, disk=disk))
            return world.act(act)(OUT)

    after = without_receipt(world.results[act])
    with in_memory():
        found = Explorer(job, {}, after, ordered, samples=1).explore()
        assert not found.bad, f"{len(found.bad)} of {found.states}: {found.bad[:3]}"
        assert found.states > 50
        assert found.old
        assert found.new
        assert Explorer(job, {}, after, ordered, NoFileSync, samples=1).kills()


def test_a_verification_that_cannot_read_says_so(world: Trial) -> None:
    disk = Hooked()
    disk.watched = EVERYTHING
    with faulty(disk, world.root):
        verify_checkpoint(world.root / "merged", world.root / "base", jobs=1, registry=REGISTRY)
    for n in range(len(disk.calls)):
        failing = Hooked()
        failing.watched = EVERYTHING

        def strike(at: int, now: str, name: str, n: int = n) -> None:
            if at == n and now == "within":
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        failing.strike = strike
        with faulty(failing, world.root), pytest.raises(SurgeryError):
            verify_checkpoint(world.root / "merged", world.root / "base", jobs=1, registry=REGISTRY)
