"""Journals that anybody may have written, and ones that the disk has damaged."""

from __future__ import annotations

import json

import pytest
from commit_disks import HookedMemory, Killed
from commit_jobs import NEW, OLD, OUT, merge, prepare, without_receipt
from commit_power import content
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_disk import MemoryDisk, Node

from surgery.checkpoint import RECEIPT, recover
from surgery.checkpoint.journal import _HEAD, Journal, Move, _seal
from surgery.checkpoint.names import JOURNAL, WORK
from surgery.checkpoint.ranges import Ranges
from surgery.errors import CheckpointError


def interrupted(renames: int = 0) -> MemoryDisk:
    """A folder whose commit is decided, with so many of its files renamed."""
    disk, left = HookedMemory(), renames
    prepare(disk, files=OLD)

    def strike(_n: int, now: str, name: str) -> None:
        nonlocal left
        if name == "rename" and now == "after":
            if left == 0:
                raise Killed
            left -= 1

    disk.strike = strike
    with pytest.raises(Killed):
        merge(disk)
    live = MemoryDisk()
    live.root, live.tokens = disk.root, 50
    return live


def work_of(disk: MemoryDisk) -> dict[str, Node]:
    return disk.root.entries["models"].entries["out"].entries[WORK].entries


def test_an_interrupted_commit_is_finished() -> None:
    for renames in range(4):
        disk = interrupted(renames)
        assert JOURNAL in work_of(disk)
        done = recover(OUT, disk=disk)
        assert done.action == "finished"
        assert done.job == "merge a"
        assert str(done) == "finished the commit of job merge a: 8 files are in place"
        assert without_receipt(content(disk)) == NEW
        assert str(recover(OUT, disk=disk)) == "nothing to recover"


def test_every_bit_of_the_journal_counts() -> None:
    data = Journal("j", (Move("a", "1-1", 5, "0" * 64), Move("b"), Move(RECEIPT, "1-2", 3))).encode()
    assert Journal.decode(data, "x").encode() == data
    for place in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(CheckpointError, match="damaged"):
            Journal.decode(bytes(flipped), "x")
    for length in range(len(data)):
        with pytest.raises(CheckpointError, match="damaged"):
            Journal.decode(data[:length], "x")
    with pytest.raises(CheckpointError, match="damaged"):
        Journal.decode(data + b" ", "x")


def sealed(body: object) -> bytes:
    data = json.dumps(body).encode()
    return _HEAD + _seal(data) + b"\n" + data


LAST = [RECEIPT, "1-9", 3, ""]
HOSTILE = [
    [], {}, {"moves": []}, {"job": "j"}, {"job": "j", "moves": []}, {"job": 1, "moves": [LAST]}, {"job": "j", "moves": 5},
    *({"job": "j", "moves": [move, LAST]} for move in (
        None, [], ["a"], [1, "1-1", 0, ""], ["../a", "1-1", 0, ""], ["/etc/passwd", "1-1", 0, ""], ["a/../b", "1-1", 0, ""], ["a//b", "1-1", 0, ""], [".surgery/b", "1-1", 0, ""],
        [f"{RECEIPT}/b", "1-1", 0, ""], ["/".join("a" * 9), "1-1", 0, ""],
        ["a", "../x", 0, ""], ["a", "1-1", -1, ""], ["a", "1-1", True, ""], ["a", "1-1", 1.5, ""], ["a", "1-1", 0, "x"],
        [".surgery", "1-1", 0, ""], ["a", "1-9", 0, ""], LAST, [RECEIPT, "", 0, ""], ["a", JOURNAL, 0, ""],
    )),
    {"job": "j", "moves": [LAST, ["a", "1-1", 0, ""]]},
]  # fmt: skip


@pytest.mark.parametrize("body", HOSTILE, ids=lambda body: json.dumps(body)[:60])
def test_a_journal_of_a_stranger_changes_nothing(body: object) -> None:
    disk = interrupted()
    work_of(disk)[JOURNAL].data = bytearray(sealed(body))
    before = content(disk)
    with pytest.raises(CheckpointError):
        recover(OUT, disk=disk)
    with pytest.raises(CheckpointError):
        merge(disk)
    assert content(disk) == before


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_as_a_journal(data: bytes, is_sealed: bool) -> None:
    with pytest.raises(CheckpointError):
        Journal.decode(_HEAD + _seal(data) + b"\n" + data if is_sealed else data, "x")


def test_a_huge_journal_is_not_read() -> None:
    disk = interrupted()
    work_of(disk)[JOURNAL].data = bytearray(16 * 1024 * 1024 + 1)
    with pytest.raises(CheckpointError, match="too large"):
        recover(OUT, disk=disk)


@pytest.mark.parametrize("damage", ["gone", "shorter", "other bytes", "folder"])
def test_a_staged_file_that_is_gone_or_damaged(damage: str) -> None:
    disk = interrupted(renames=2)
    work = work_of(disk)
    # The first staged file is in its place already, so it is damaged there: its digest is known.
    name = next(iter(sorted(name for name in work if name != JOURNAL)))
    if damage == "gone":
        del work[name]
    elif damage == "shorter":
        del work[name].data[1:]
    elif damage == "folder":
        work[name] = Node(True)
    else:
        disk.root.entries["models"].entries["out"].entries["a.safetensors"].data[0] ^= 1
    before = content(disk)
    with pytest.raises(CheckpointError, match="is missing or damaged") as caught:
        recover(OUT, disk=disk)
    assert caught.value.hint
    assert content(disk) == before
    with pytest.raises(CheckpointError, match="is missing or damaged"):
        merge(disk)
    assert content(disk) == before


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), max_size=12), st.integers(0, 50))
def test_ranges_are_a_set_of_bytes(added: list[tuple[int, int]], size: int) -> None:
    ranges, truth = Ranges(), set[int]()
    for start, length in added:
        piece = set(range(start, start + length))
        assert ranges.add(start, start + length) == bool(piece & truth)
        truth |= piece
    for start in range(size):
        stop = start
        while stop in truth:
            stop += 1
        assert ranges.reach(start) == stop
    missing = [byte for byte in range(size) if byte not in truth]
    hole = ranges.hole(size)
    if not missing:
        assert hole is None
    else:
        end = missing[0]
        while end < size and end not in truth:
            end += 1
        assert hole == (missing[0], end)
