"""Bytes changed in place: never lost, never twice, and never overwritten before what takes them back is durable."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
from pathlib import Path

import pytest
from commit_disks import CHANGES, Hooked, HookedMemory, Killed
from commit_jobs import OLD, OUT, SHARDS, prepare, without_receipt
from commit_jobs import read as read_file
from commit_power import Explorer, Recording, content
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_disk import MemoryDisk, Node, reborn

from surgery.checkpoint import Disk, Transaction, consistent, patching, recover
from surgery.checkpoint.names import WORK
from surgery.checkpoint.patching import RESIDUE, SLOTS, Record, latest
from surgery.errors import CheckpointError, DiskError, StateError

BATCHES = [[(name, start, 16) for name in SHARDS[:2]] for start in (0, 16, 24)] + [
    [(SHARDS[2], 3, 33)],
    [(SHARDS[2], 36, 5)],
]
"""The third overlaps the second: the same bytes are changed twice, once by each."""


def more(data: bytes) -> bytes:
    return bytes((byte + 1) % 256 for byte in data)


def patched(files: dict[str, bytes], count: int = len(BATCHES)) -> tuple[dict[str, bytes], bytes]:
    """The files after so many batches, and the residue."""
    live, residue = {name: bytearray(data) for name, data in files.items()}, b""
    for batch in BATCHES[:count]:
        for name, start, length in batch:
            residue += live[name][start : start + length]
            live[name][start : start + length] = more(live[name][start : start + length])
    return {name: bytes(data) for name, data in live.items()}, residue


def restored(files: dict[str, bytes], residue: bytes, count: int) -> dict[str, bytes]:
    """The files before the first `count` batches, by their residue."""
    live = {name: bytearray(data) for name, data in files.items()}
    sizes = [sum(length for _, _, length in batch) for batch in BATCHES]
    for number in reversed(range(count)):
        at = sum(sizes[:number])
        for name, start, length in BATCHES[number]:
            live[name][start : start + length] = residue[at : at + length]
            at += length
    return {name: bytes(data) for name, data in live.items()}


def patch(disk: Disk, out: Path = OUT, job: str = "patch") -> bool:
    with Transaction(out, "replace", job=job, disk=disk, patience=0) as tx:
        if tx.done:
            return False
        for batch in BATCHES[tx.patched :]:
            old = [(name, start, read_file(disk, out, name)[start : start + length]) for name, start, length in batch]
            tx.patch([(name, start, more(data)) for name, start, data in old], b"".join(data for _, _, data in old))
        tx.write("report.json", b"{}")
        tx.keep_residue("undo.new")
        tx.remove("undo.old")
        tx.commit({})
    return True


DONE, WHOLE_RESIDUE = patched(OLD)
NEW = {name: data for name, data in DONE.items() if name != "undo.old"} | {
    "undo.new": WHOLE_RESIDUE,
    "report.json": b"{}",
}


def judge(disk: MemoryDisk) -> str:
    """Recover, and look; return what it is, after having run the job again."""
    done = recover(OUT, disk=disk)
    files = without_receipt(content(disk))
    if done.action == "patching":
        node = disk.root.entries["models"].entries["out"].entries[WORK]
        work = disk.open_folder(disk.open_path(OUT), WORK)
        record = latest(disk, work, OUT)
        assert record is not None
        live = {name: data for name, data in files.items() if not name.startswith(WORK)}
        assert RESIDUE in node.entries, "the residue is gone"
        residue = bytes(node.entries[RESIDUE].data)
        assert live == patched(OLD, record.number + 1)[0], "a batch is mixed"
        assert restored(live, residue, record.number + 1) == OLD, "the residue does not take it back"
        with pytest.raises(StateError, match="half patched"), consistent(OUT, disk=disk, patience=0):
            pass
        with pytest.raises(StateError, match="half patched by job patch"):
            patch(disk, job="another")
        disk.files.clear()
        disk.locks.clear()
        state = "half"
    else:
        assert files in (OLD, NEW), f"mixed: {sorted(files)}"
        state = "old" if files == OLD else "new"
    assert patch(disk) == (state != "new"), "done twice, or not at all"
    assert without_receipt(content(disk)) == NEW, "done twice, or not at all"
    return state


class PatchExplorer(Explorer):
    """Half is a state, too, as long as it is one of whole batches that can be taken back."""

    half = 0

    def _judge(self, disk: MemoryDisk, is_done: bool) -> None:
        state = judge(disk)
        assert state == "new" or not is_done, "told as done, and lost"
        self.half += state == "half"
        self.old += state == "old"
        self.new += state == "new"


MODELS = pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])


def test_what_a_patch_does(tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(Disk(), out, OLD)
    inode = (out / SHARDS[0]).stat().st_ino
    assert patch(Disk(), out)
    assert without_receipt({str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}) == NEW
    assert (out / SHARDS[0]).stat().st_ino == inode
    assert not patch(Disk(), out)


@MODELS
def test_power_loss(ordered: bool) -> None:
    found = PatchExplorer(patch, OLD, NEW, ordered, samples=6).explore()
    assert not found.bad, f"{len(found.bad)} of {found.states}: {found.bad[:3]}"
    assert found.old
    assert found.half > 20
    assert found.new


class NoSyncOf(Recording):
    """The sync of some files is left out: those whose name `which` has when they are made or opened."""

    which: tuple[str, ...] = ()

    def __init__(self, ordered: bool = True) -> None:
        super().__init__(ordered)
        self.skipped: set[Node] = set()

    def _entry(self, folder: Node, name: str) -> Node:
        node = super()._entry(folder, name)
        if name in self.which:
            self.skipped.add(node)
        return node

    def create(self, folder, name):
        file = super().create(folder, name)
        if name in self.which:
            self.skipped.add(self.files[file])
        return file

    def settle(self, node: Node) -> None:
        if node not in self.skipped:
            super().settle(node)


class NoRecordSync(NoSyncOf):
    which = SLOTS


class NoResidueSync(NoSyncOf):
    which = (RESIDUE,)


class NoTargetSync(NoSyncOf):
    which = SHARDS


class NoFolderSync(Recording):
    def settle(self, node: Node) -> None:
        if not node.is_folder:
            super().settle(node)


@pytest.mark.parametrize("mutant", [NoRecordSync, NoResidueSync, NoTargetSync, NoFolderSync])
def test_mutants_of_the_protocol_die(mutant: type[Recording]) -> None:
    assert PatchExplorer(patch, OLD, NEW, False, mutant, samples=12).kills()


def test_a_checksum_over_the_body_only_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torn record then joins the number of the new batch to the bytes of an old one, and the new one is left out."""
    monkeypatch.setattr(patching, "seal", lambda head, body: hashlib.sha256(body).digest())
    assert PatchExplorer(patch, OLD, NEW, True, samples=4).kills()


def killed(disk: Hooked, n: int, phase: str, out: Path = OUT) -> bool:
    """Run the job until it dies; return whether it did."""
    disk.calls.clear()

    def strike(at: int, now: str, name: str) -> None:
        half = "after" if name == "write" else "within"
        if at == n and now == (half if phase == "half" else phase):
            raise Killed

    if phase == "half":
        disk.shorten = lambda at, length: length // 2 if at == n else length
    disk.strike = strike
    try:
        patch(disk, out)
    except Killed:
        return True
    return False


@pytest.mark.parametrize("phase", ["before", "half", "after"])
def test_killed_at_every_point(phase: str) -> None:
    n, states = 0, set()
    while True:
        disk = HookedMemory()
        prepare(disk, files=OLD)
        if not killed(disk, n, phase):
            break
        last = MemoryDisk()
        last.root, last.tokens = disk.root, 50
        states.add(judge(last))
        n += 1
    assert n > 60
    assert states == {"old", "half", "new"}


def test_killed_again_and_again() -> None:
    """Each run gets a little further than the one before it."""
    for step in range(1, 40, 3):
        disk = HookedMemory()
        prepare(disk, files=OLD)
        runs = 0
        while killed(disk, step + 7 * runs, "half"):
            fresh = HookedMemory()
            fresh.root, fresh.tokens = disk.root, disk.tokens + 50
            disk, runs = fresh, runs + 1
        assert without_receipt(content(disk)) == NEW
        assert runs


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=lambda number: errno.errorcode[number])
@pytest.mark.parametrize("phase", ["within", "after"])
def test_an_error_at_every_call(phase: str, number: int) -> None:
    n = 0
    while True:
        disk = HookedMemory()
        prepare(disk, files=OLD)
        disk.calls.clear()
        disk.watched = CHANGES | {"modify", "look", "open_folder", "read", "lock"}

        def strike(at: int, now: str, _name: str, n: int = n) -> None:
            if at == n and now == phase:
                raise OSError(number, os.strerror(number))

        disk.strike = strike
        error = None
        try:
            patch(disk)
        except DiskError as caught:
            error = caught
        if error is None and len(disk.calls) <= n:
            break
        assert not disk.files, f"files left open at {n}"
        disk.strike = lambda _n, _phase, _name: None
        judge(disk)
        n += 1
    assert n > 100


@pytest.mark.parametrize("kind", ["gone", "link", "name", "long", "hostile", "negative"])
def test_what_is_not_patched(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(Disk(), out, OLD)
    (tmp_path / "blob").write_bytes(b"shared by many")
    name, offset = "x", 0
    if kind == "link":
        (out / "x").symlink_to(tmp_path / "blob")
    elif kind == "name":
        (out / "x").hardlink_to(tmp_path / "blob")
    elif kind == "hostile":
        name = "../blob"
    elif kind != "gone":
        name, offset = SHARDS[0], len(OLD[SHARDS[0]]) - 1 if kind == "long" else -1
    before = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises((CheckpointError, StateError)), Transaction(out, "replace", job="j") as tx:
        tx.patch([(name, offset, b"ab")], b"old")
    assert {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert (tmp_path / "blob").read_bytes() == b"shared by many"
    with pytest.raises(StateError, match="nothing to patch"), Transaction(tmp_path / "new", "new", job="j") as tx:
        tx.patch([], b"")


def test_readers_are_kept_out_while_it_lasts(tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(Disk(), out, OLD)
    with Transaction(out, "replace", job="j", patience=0) as tx:
        with consistent(out), pytest.raises(StateError, match="reading"):
            tx.patch([(SHARDS[0], 0, b"ab")], b"ol")
        tx.patch([(SHARDS[0], 0, b"ab")], b"ol")
        with pytest.raises(StateError, match="writing"), consistent(out, patience=0):
            pass
    with pytest.raises(StateError, match="half patched") as caught, consistent(out):
        pass
    assert "run that command again" in caught.value.hint
    assert str(recover(out)).startswith("the folder is half patched by job j")
    with Transaction(out, "replace", job="j") as tx:
        assert tx.patched == 1
        tx.commit({})
    with consistent(out):
        assert (out / SHARDS[0]).read_bytes()[:2] == b"ab"
    assert not (out / WORK).exists()


def test_every_bit_of_a_record_counts() -> None:
    data = Record("j", 3, 7, (("a", 5, memoryview(b"hello")),)).encode()
    assert Record.decode(data, "x") == Record("j", 3, 7, (("a", 5, memoryview(b"hello")),))
    assert Record.decode(data + b"older and longer", "x") is not None
    for place in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        assert Record.decode(bytes(flipped), "x") is None
    assert all(Record.decode(data[:length], "x") is None for length in range(len(data)))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.binary(max_size=100) | st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["job", "residue", "writes", "x"]), inner), max_leaves=12))  # fmt: skip
def test_a_record_of_a_stranger(value: object) -> None:
    words = value if isinstance(value, bytes) else json.dumps(value).encode()
    body = struct.pack("<Q", len(words)) + words
    head = struct.pack("<8sQQ", b"sredo 1\n", 1, len(body))
    with pytest.raises(CheckpointError):
        Record.decode(head + body + patching.seal(head, body), "x")
    assert Record.decode(words, "x") is None


@MODELS
def test_a_residue_that_was_longer_before(ordered: bool) -> None:
    """The batch that was interrupted is made again with less residue; nothing of the longer one may stay."""
    disk = HookedMemory(ordered)
    prepare(disk, files=OLD)
    assert killed(disk, 26, "before")
    work = disk.root.entries["models"].entries["out"].entries[WORK]
    work.entries[RESIDUE].data.extend(b"of a batch that was begun" * 20)
    explorer = PatchExplorer(patch, OLD, NEW, ordered, samples=4)
    again = reborn(disk.root, disk, Recording)
    explorer._cut(again, lambda: patch(again), 1, is_acknowledged=True)
    assert not explorer.bad, f"{len(explorer.bad)} of {explorer.states}: {explorer.bad[:3]}"
    assert explorer.half
    assert not explorer.old
