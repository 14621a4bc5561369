"""One writer at a time, and readers that see all old or all new."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from commit_disks import Hooked, Killed
from commit_jobs import NEW, OLD, SHARDS, merge, prepare

from surgery.checkpoint import Disk, Transaction, consistent, recover
from surgery.errors import CheckpointError, StateError


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    prepare(Disk(), folder, OLD)
    return folder


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_second_writer_is_refused_at_once(out: Path, tmp_path: Path) -> None:
    for place, mode in ((out, "replace"), (tmp_path / "new", "new")):
        with Transaction(place, mode, job="j") as tx:  # type: ignore[arg-type]
            tx.write("x", b"1")
            with pytest.raises(StateError, match="another process is writing this folder") as caught:
                Transaction(place, mode, job="k").__enter__()  # type: ignore[arg-type]
            assert caught.value.exit_code == 6
            with pytest.raises(StateError, match="another process is writing"):
                recover(place)
            tx.commit({})
        assert (place / "x").read_bytes() == b"1"


def test_two_names_of_a_folder_are_one_lock(out: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(out)
    with (
        Transaction(out, "replace", job="j"),
        pytest.raises(StateError),
        Transaction(tmp_path / "link", "replace", job="k"),
    ):
        pass


def test_readers_and_the_commit_wait_for_each_other(out: Path) -> None:
    with consistent(out) as path, consistent(out):
        with pytest.raises(StateError, match="reading this folder for 0 seconds"):
            merge(Disk(), path)
        assert {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()} == OLD
    seen: list[bytes] = []
    entered = threading.Event()

    def reader() -> None:
        with consistent(out):
            entered.set()
            first = (out / SHARDS[0]).read_bytes()
            threading.Event().wait(0.2)
            seen.extend([first, (out / SHARDS[2]).read_bytes()])

    thread = threading.Thread(target=reader)
    thread.start()
    entered.wait()
    assert merge(Disk(), out, patience=30)
    thread.join()
    assert seen == [OLD[SHARDS[0]], OLD[SHARDS[2]]]
    with consistent(out):
        assert (out / SHARDS[0]).read_bytes() == NEW[SHARDS[0]]


def test_two_readers_of_an_interrupted_commit(out: Path) -> None:
    """Both see the journal at once; one finishes it, and neither waits for the other's lock."""
    both = threading.Barrier(2)

    class Meeting(Disk):
        def lock(self, file, *, shared=False):
            got = super().lock(file, shared=shared)
            if shared and not self.met:
                self.met = True
                both.wait(5)
            return got

        met = False

    dying = Hooked()

    def strike(_n: int, now: str, name: str) -> None:
        if name == "rename" and now == "after":
            raise Killed

    dying.strike = strike
    with pytest.raises(Killed):
        merge(dying, out)
    dying.bury()
    seen: list[bytes] = []

    def reader() -> None:
        with consistent(out, disk=Meeting(), patience=10):
            seen.append((out / SHARDS[0]).read_bytes())

    threads = [threading.Thread(target=reader) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(8)
    assert seen == [NEW[SHARDS[0]]] * 2


def test_consistent_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"), consistent(tmp_path / "x"):
        pass


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_lock_ends_with_the_parent_of_a_fork(out: Path) -> None:
    """A process that was forked within the transaction, and lives on, holds nothing."""
    read, write = os.pipe()
    with Transaction(out, "replace", job="j") as tx:
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        tx.patch([(SHARDS[0], 0, b"ab")], b"ol")  # and both locks stay until the block is left
    try:
        with Transaction(out, "replace", job="j", patience=0) as tx:
            assert tx.patched == 1
            tx.commit({})
        with consistent(out, patience=0):
            pass
    finally:
        os.close(write)
        os.waitpid(child, 0)
        os.close(read)
