"""A process that dies before, within and after every call that changes something; and one whose calls fail."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commit_disks import CHANGES, Hooked, HookedMemory, Killed
from commit_jobs import FRESH, NEW, OLD, OUT, build, merge, prepare, without_receipt
from commit_power import content
from memory_disk import MemoryDisk

from surgery.checkpoint import RECEIPT, Disk, consistent, recover
from surgery.errors import DiskError, SurgeryError

HERE = Path(__file__).parent
JOBS = {"replace": (merge, OLD, NEW), "new": (build, {}, FRESH)}
PHASES = ("before", "half", "after")
MODES = pytest.mark.parametrize("mode", JOBS)


def files_in(out: Path) -> dict[str, bytes]:
    return without_receipt({str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()})


def calls_of(mode: str) -> list[str]:
    disk = HookedMemory()
    job, before, _ = JOBS[mode]
    prepare(disk, files=before or None)
    disk.calls.clear()
    job(disk)
    return disk.calls


def stop_at(disk: Hooked, n: int, phase: str, stop: Callable[[], None]) -> None:
    """Call `stop` at the n-th change; `half` lets a write through in part, and other calls not at all."""

    def strike(at: int, now: str, name: str) -> None:
        half = "after" if name in ("write", "copy") else "within"
        if at == n and now == (half if phase == "half" else phase):
            stop()

    if phase == "half":
        disk.shorten = lambda at, length: length // 2 if at == n else length
    disk.strike = strike


def die() -> None:
    raise Killed


def killed(disk: Hooked, mode: str, out: Path, n: int, phase: str) -> None:
    job, _, _ = JOBS[mode]
    disk.calls.clear()
    stop_at(disk, n, phase, die)
    with pytest.raises(Killed):
        job(disk, out)
    disk.bury()


POINTS = [(mode, n, phase) for mode in JOBS for n in range(len(calls_of(mode))) for phase in PHASES]


@MODES
def test_every_kind_of_call_is_among_the_points(mode: str) -> None:
    kinds = set(calls_of(mode))
    assert kinds >= {"create", "make_folder", "unlink", "rename", "write", "allocate", "truncate", "sync"}
    assert kinds <= CHANGES
    assert len(calls_of(mode)) > 25


@pytest.mark.parametrize("mode", JOBS)
@pytest.mark.parametrize("phase", PHASES)
def test_killed_at_every_point(mode: str, phase: str, quick_path: Path) -> None:
    job, before, after = JOBS[mode]
    outcomes = set()
    for n in range(len(calls_of(mode))):
        out = quick_path / f"{n}" / "out"
        out.parent.mkdir()
        prepare(Disk(), out, before or None)
        killed(Hooked(), mode, out, n, phase)
        recover(out)
        found = files_in(out)
        assert found in (before, after), f"mixed at {n}"
        assert {path.name for path in out.parent.iterdir()} <= {"out"}
        assert job(Disk(), out) == (found == before)
        assert files_in(out) == after, f"done twice at {n}"
        assert not job(Disk(), out)
        outcomes.add(found == after)
    assert outcomes == {True, False}


@MODES
def test_without_recover_the_next_run_does_it(mode: str, quick_path: Path) -> None:
    job, before, after = JOBS[mode]
    for n in range(len(calls_of(mode))):
        out = quick_path / f"{n}" / "out"
        out.parent.mkdir()
        prepare(Disk(), out, before or None)
        killed(Hooked(), mode, out, n, "after")
        job(Disk(), out)
        assert files_in(out) == after
        assert {path.name for path in out.parent.iterdir()} == {"out"}


def test_killed_during_recovery_as_well(tmp_path: Path) -> None:
    whole = calls_of("replace")
    for first in range(len(whole)):
        second = 0
        while True:
            disk = HookedMemory()
            prepare(disk, files=OLD)
            killed(disk, "replace", OUT, first, "after")
            again = HookedMemory()
            again.root, again.twins, again.tokens = disk.root, disk.twins, 100
            stop_at(again, second, "before", die)
            try:
                recover(OUT, disk=again)
                break  # it has fewer changes than that
            except Killed:
                second += 1
            last = MemoryDisk()
            last.root, last.tokens = disk.root, 200
            recover(OUT, disk=last)
            assert without_receipt(content(last)) in (OLD, NEW)
            merge(last)
            assert without_receipt(content(last)) == NEW


def test_a_reader_finishes_what_was_decided(quick_path: Path) -> None:
    seen = set()
    for n in range(len(calls_of("replace"))):
        out = quick_path / f"{n}" / "out"
        out.parent.mkdir()
        prepare(Disk(), out, OLD)
        killed(Hooked(), "replace", out, n, "after")
        with consistent(out) as path:
            found = {name: data for name, data in files_in(path).items() if not name.startswith(".surgery/")}
        assert found in (OLD, NEW)
        seen.add(found == NEW)
    assert seen == {True, False}


ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@MODES
@pytest.mark.parametrize("phase", ["within", "after"])
@pytest.mark.parametrize("number", ERRORS, ids=lambda number: errno.errorcode[number])
def test_an_error_at_every_call(mode: str, number: int, phase: str) -> None:
    """Within: the call does nothing. After: it has done its work and says that it has not."""
    job, before, after = JOBS[mode]
    told = set()
    for watched in (CHANGES, CHANGES | {"open_folder", "open", "look", "look_at", "list", "read", "free", "lock"}):
        n = 0
        while True:
            disk = HookedMemory()
            prepare(disk, files=before or None)
            disk.calls.clear()
            disk.watched = watched

            def strike(at: int, now: str, name: str, n: int = n) -> None:
                if at == n and now == phase:
                    raise OSError(number, os.strerror(number))

            disk.strike = strike
            error = None
            try:
                job(disk)
            except DiskError as caught:
                error = caught
            if error is None and len(disk.calls) <= n:
                break
            assert not disk.files, f"files left open at {n}"
            assert error is None or (error.what and error.where and error.exit_code == 11)
            disk.strike = lambda _n, _phase, _name: None
            if error is not None:
                told.add(error.what)
            recover(OUT, disk=disk)
            found = without_receipt(content(disk))
            assert found in (before, after), f"mixed at {n}"
            assert error is not None or found == after, "no error, and nothing done"
            if found == after and error is not None:
                assert "run the same command again" in error.what
            assert job(disk) == (found == before)
            assert without_receipt(content(disk)) == after
            n += 1
    assert len(told) >= 2


@MODES
def test_interrupted_and_short_calls_are_made_again(mode: str) -> None:
    job, before, after = JOBS[mode]
    disk = HookedMemory()
    prepare(disk, files=before or None)
    disk.calls.clear()
    struck: set[int] = set()

    def strike(at: int, now: str, name: str) -> None:
        if now == "within" and at not in struck:
            struck.add(at)
            raise InterruptedError(errno.EINTR, "interrupted")

    disk.strike = strike
    disk.shorten = lambda _n, length: min(length, 3)
    assert job(disk)
    assert without_receipt(content(disk)) == after
    assert len(struck) > 25


def test_a_disk_that_takes_nothing_is_full() -> None:
    disk = HookedMemory()
    prepare(disk, files=OLD)
    disk.shorten = lambda _n, _length: 0
    with pytest.raises(DiskError, match="the disk is full"):
        merge(disk)
    assert content(disk) == OLD


DYING = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from commit_disks import Hooked
from commit_jobs import build, merge
from test_kill_points import stop_at
job = {"replace": merge, "new": build}[sys.argv[2]]
for line in sys.stdin:  # one point each: a child of this process goes there and dies
    out, n, phase = line.split()
    child = os.fork()
    if child == 0:
        disk = Hooked()
        stop_at(disk, int(n), phase, lambda: os.kill(os.getpid(), signal.SIGKILL))
        job(disk, Path(out))
        os._exit(3)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@MODES
def test_sigkill_at_every_point(mode: str, tmp_path: Path) -> None:
    job, before, after = JOBS[mode]
    points = [(tmp_path / f"{n}" / "out", n, PHASES[n % 3]) for n in range(len(calls_of(mode)))]
    for out, _, _ in points:
        out.parent.mkdir()
        prepare(Disk(), out, before or None)
    asked = "".join(f"{out} {n} {phase}\n" for out, n, phase in points)
    command = [sys.executable, "-c", DYING, str(HERE), mode]
    ended = subprocess.run(command, input=asked, capture_output=True, text=True, check=True).stdout.split()
    assert ended == ["-9"] * len(points)
    for out, n, _ in points:
        recover(out)
        found = files_in(out)
        assert found in (before, after), f"mixed at {n}"
        assert job(Disk(), out) == (found == before)
        assert files_in(out) == after
        assert (out / RECEIPT).is_file()


def test_errors_are_of_the_kinds_that_are_told() -> None:
    assert issubclass(DiskError, SurgeryError)
