"""What a transaction promises to those who use it."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from pathlib import Path

import pytest
from commit_disks import Hooked, Killed
from commit_jobs import NEW, OLD, SHARDS, merge, prepare

from surgery.checkpoint import RECEIPT, Disk, Transaction, consistent, digest, read_receipt, recover, refuse_shared
from surgery.errors import CheckpointError, DiskError, StateError


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    prepare(Disk(), folder, OLD)
    return folder


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# A new folder


def test_new_folder_with_a_receipt(tmp_path: Path) -> None:
    out = tmp_path / "made" / "on the way" / "out"
    with Transaction(out, "new", job="j") as tx:
        assert not tx.done
        assert tx.receipt is None
        tx.reserve(100)
        tx.write("1_Pooling/config.json", b"{}")
        with tx.create("model.safetensors", 8) as file:
            file.write_at(4, b"good")
            file.write_at(0, b"all ")
        assert not out.exists()
        tx.commit({"what": "a test"})
        with consistent(out, patience=0):
            assert out.exists()
    assert names(out) == {"1_Pooling/config.json", "model.safetensors", RECEIPT}
    assert (out / "model.safetensors").read_bytes() == b"all good"
    digest = hashlib.sha256(b"{}").hexdigest()
    assert read_receipt(out) == {
        "format": 1,
        "job": "j",
        "what": "a test",
        "files": {
            "1_Pooling/config.json": {"size": 2, "sha256": digest},
            "model.safetensors": {"size": 8, "sha256": None},
        },
    }
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((out / "model.safetensors").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE(out.stat().st_mode) == 0o777 & ~mask


def test_equal_jobs_write_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with Transaction(tmp_path / name, job="j") as tx:
            tx.write("x", b"1")
            tx.commit({"b": 1, "a": [1, "ü"]})
    assert (tmp_path / "a" / RECEIPT).read_bytes() == (tmp_path / "b" / RECEIPT).read_bytes()


def test_an_empty_folder_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with Transaction(tmp_path / "out", "new", job="j") as tx:
        tx.commit({})
    assert names(tmp_path / "out") == {RECEIPT}


@pytest.mark.parametrize("there", ["file", "folder", "other job", "link"])
def test_what_is_there_is_not_lost(there: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if there == "file":
        out.write_text("mine")
    elif there == "link":
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "x").write_text("mine")
        out.symlink_to("real")
    else:
        out.mkdir()
        (out / "x").write_text("mine")
        if there == "other job":
            (out / RECEIPT).write_text('{"format": 1, "job": "other"}')
    with pytest.raises(CheckpointError, match="output exists") as caught, Transaction(out, "new", job="j"):
        pass
    assert "choose another" in caught.value.hint
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_output_that_appears_meanwhile(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match="appeared"), Transaction(out, "new", job="j") as tx:
        tx.write("x", b"1")
        out.mkdir()
        (out / "mine").write_text("mine")
        tx.commit({})
    assert names(tmp_path) == {"out/mine"}


# Files that are replaced


def test_replace(out: Path) -> None:
    (out / "kept.json").write_text("{}")
    (out / SHARDS[0]).chmod(0o640)
    assert merge(Disk(), out)
    assert names(out) == {*NEW, RECEIPT, "kept.json"}
    assert {name: (out / name).read_bytes() for name in NEW} == NEW
    assert stat.S_IMODE((out / SHARDS[0]).stat().st_mode) == 0o640
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def test_readers_come_in_as_soon_as_it_is_done(out: Path) -> None:
    with Transaction(out, "replace", job="j") as tx:
        tx.write(SHARDS[0], b"new")
        tx.commit({})
        with consistent(out, patience=0):
            assert (out / SHARDS[0]).read_bytes() == b"new"


def test_a_finished_job_is_not_done_again(out: Path) -> None:
    assert merge(Disk(), out)
    before = {path: path.stat() for path in out.iterdir()}
    assert not merge(Disk(), out)
    assert {path: path.stat() for path in out.iterdir()} == before
    assert merge(Disk(), out, job="merge b")
    assert (out / SHARDS[0]).read_bytes() == NEW[SHARDS[0]] + b"+1"


def test_a_finished_job_takes_nothing_more(out: Path) -> None:
    merge(Disk(), out)
    with Transaction(out, "replace", job="merge a") as tx:
        assert tx.done
        assert tx.receipt
        with pytest.raises(StateError, match="the job is finished"):
            tx.create("x", 1)
        with pytest.raises(StateError, match="the job is finished"):
            tx.commit({})


def test_without_commit_nothing_happened(out: Path) -> None:
    with Transaction(out, "replace", job="j") as tx:
        tx.write(SHARDS[0], b"new")
        tx.remove("undo.old")
    with pytest.raises(KeyError), Transaction(out, "replace", job="j") as tx:
        tx.write(SHARDS[0], b"new")
        raise KeyError
    with pytest.raises(StateError, match="the transaction is not open"):
        tx.create("x", 1)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == OLD


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"), Transaction(tmp_path / "x", "replace", job="j"):
        pass
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CheckpointError, match="a file where a folder"),
        Transaction(tmp_path / "file", "replace", job="j"),
    ):
        pass


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_only_plain_files_are_replaced(kind: str, out: Path, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_text("shared")
    target = out / "model.safetensors"
    if kind == "folder":
        target.mkdir()
    elif kind == "pipe":
        os.mkfifo(target)
    else:
        target.symlink_to(blob if kind == "link" else tmp_path / "gone")
    with pytest.raises(CheckpointError) as caught, Transaction(out, "replace", job="j") as tx:
        tx.write("model.safetensors", b"new")
    assert caught.value.where == str(target)
    assert "write to a new folder" in caught.value.hint
    assert blob.read_text() == "shared"


def test_a_link_that_comes_while_files_are_staged(out: Path, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_text("shared")
    with pytest.raises(CheckpointError, match="link"), Transaction(out, "replace", job="j") as tx:
        tx.write("new", b"new")
        tx.write(SHARDS[0], b"new")
        (out / "new").symlink_to(blob)
        tx.commit({})
    assert blob.read_text() == "shared"
    assert (out / SHARDS[0]).read_bytes() == OLD[SHARDS[0]]


def test_staging_never_follows_links(tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "precious").write_text("mine")
    (tmp_path / ".out.surgery").symlink_to("else")
    with pytest.raises(CheckpointError, match="where a") as caught, Transaction(tmp_path / "out", job="j"):
        pass
    assert caught.value.hint
    assert names(tmp_path / "else") == {"precious"}


def test_links_in_what_is_cleared_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "precious").write_text("mine")
    left = tmp_path / ".out.surgery"
    (left / "inner").mkdir(parents=True)
    (left / "inner" / "link").symlink_to(tmp_path / "else")
    (left / "file").symlink_to(tmp_path / "else" / "precious")
    assert recover(tmp_path / "out").action == "discarded"
    assert names(tmp_path) == {"else/precious"}


def test_shared_files_are_refused_in_place(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("x")
    refuse_shared(file)
    (tmp_path / "b").hardlink_to(file)
    with pytest.raises(CheckpointError, match="2 names"):
        refuse_shared(file)
    (tmp_path / "c").symlink_to(file)
    with pytest.raises(CheckpointError, match="link"):
        refuse_shared(tmp_path / "c")
    with pytest.raises(CheckpointError, match="no regular file"):
        refuse_shared(tmp_path)


def test_another_name_of_a_file_keeps_the_old_bytes(out: Path, tmp_path: Path) -> None:
    (tmp_path / "other").hardlink_to(out / SHARDS[0])
    merge(Disk(), out)
    assert (tmp_path / "other").read_bytes() == OLD[SHARDS[0]]


# Names


BAD = [
    "",
    ".",
    "..",
    "../x",
    "a/../b",
    "/x",
    "a//b",
    "a/",
    "a\0b",
    "a\nb",
    "a\\b",
    ".surgery",
    ".surgery-reserve",
    RECEIPT,
    "x" * 256,
    "\ud800",
]


@pytest.mark.parametrize("mode", ["new", "replace"])
@pytest.mark.parametrize("name", BAD, ids=repr)
def test_names_stay_in_the_folder(name: str, mode: str, out: Path) -> None:
    place = out if mode == "replace" else out.parent / "fresh"
    with Transaction(place, mode, job="j") as tx:  # type: ignore[arg-type]
        with pytest.raises(CheckpointError):
            tx.create(name, 1)
        if mode == "replace":
            with pytest.raises(CheckpointError):
                tx.remove(name)
    assert names(out.parent) == {f"out/{name}" for name in OLD}


def test_a_file_is_written_once(out: Path) -> None:
    with Transaction(out, "replace", job="j") as tx:
        tx.write("x", b"1")
        with pytest.raises(CheckpointError, match="twice"):
            tx.write("x", b"2")
        with pytest.raises(CheckpointError, match="twice"):
            tx.remove("x")
        with tx.create("y", 1) as file, pytest.raises(CheckpointError, match="twice"):
            file.write_at(0, b"y")
            tx.create("y", 1)
        with pytest.raises(CheckpointError, match="no name of a file in this folder"):
            tx.create("in/folder", 1)


# Locks


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
        assert {entry.name: entry.read_bytes() for entry in out.iterdir()} == OLD
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


def test_the_lock_ends_with_the_parent_of_a_fork(out: Path) -> None:
    """A process that was forked within the transaction, and lives on, holds nothing."""
    read, write = os.pipe()
    with Transaction(out, "replace", job="j") as tx:
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        tx.commit({})
    try:
        with consistent(out, patience=0), Transaction(out, "replace", job="k"):
            pass
    finally:
        os.close(write)
        os.waitpid(child, 0)
        os.close(read)


# Files


def test_every_byte_must_be_written(tmp_path: Path) -> None:
    with Transaction(tmp_path / "out", job="j") as tx:
        with pytest.raises(StateError, match="bytes 2 to 5 of x were never written"), tx.create("x", 8) as file:
            file.write_at(0, b"ab")
            file.write_at(5, b"fgh")
        with pytest.raises(StateError, match="outside"), tx.create("x", 8) as file:
            file.write_at(7, b"ab")
        with pytest.raises(StateError, match="is still open"):
            file = tx.create("x", 0)
            tx.commit({})
        with file:
            pass
        with pytest.raises(StateError, match="is closed"):
            file.write_at(0, b"")
        tx.commit({})
    assert names(tmp_path / "out") == {"x", RECEIPT}


@pytest.mark.parametrize("followed", [True, False])
@pytest.mark.parametrize("order", ["forward", "backward", "threads", "again"])
def test_the_digest_is_of_what_is_there(
    order: str, followed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest, "_LARGE", 0 if followed else 1 << 30)
    data = bytearray(os.urandom(3_000_001))
    blocks = list(range(0, len(data), 70_001))
    with Transaction(tmp_path / "out", job="j") as tx:
        with tx.create("x", len(data), digest=True) as file:

            def put(start: int) -> None:
                file.write_at(start, data[start : start + 70_001])

            if order == "threads":
                threads = [
                    threading.Thread(target=lambda k=k: [put(start) for start in blocks[k::5]]) for k in range(5)
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            else:
                for start in reversed(blocks) if order == "backward" else blocks:
                    put(start)
            if order == "again":
                data[5:9] = b"else"
                file.write_at(5, b"else")
        assert file.sha256 == hashlib.sha256(data).hexdigest()
        tx.commit({})
    assert (tmp_path / "out" / "x").read_bytes() == data


@pytest.mark.parametrize("way", ["error", "given up", "cut short"])
def test_a_digest_that_cannot_be_read(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "_LARGE", 0)

    class Failing(Disk):
        def read(self, file, offset, length):
            if way == "error":
                raise OSError(errno.EIO, "no")
            return b"" if way == "cut short" else super().read(file, offset, length)

    with Transaction(tmp_path / "out", job="j", disk=Failing()) as tx:
        with pytest.raises((DiskError, CheckpointError, KeyError)), tx.create("x", 2_000_000, digest=True) as file:
            file.write_at(0, bytes(2_000_000 if way != "given up" else 1_500_000))
            if way == "given up":
                raise KeyError
        tx.commit({})
    assert names(tmp_path / "out") == {RECEIPT}
    assert threading.active_count() == 1 or not [t for t in threading.enumerate() if "_follow" in t.name]


def test_buffers_of_any_element_type(tmp_path: Path) -> None:
    from array import array

    values = array("d", [1.5, -0.0, 3.0])
    with Transaction(tmp_path / "out", job="j") as tx:
        with tx.create("x", 24) as file:
            file.write_at(0, memoryview(values))
        tx.commit({})
    assert (tmp_path / "out" / "x").read_bytes() == values.tobytes()


@pytest.mark.parametrize("refusal", [None, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, 0])
def test_copy_range_falls_back(refusal: int | None, tmp_path: Path) -> None:
    class Refusing(Disk):
        asked = 0

        def copy(self, source, offset, file, to, length):
            self.asked += 1
            if refusal is None:
                return super().copy(source, offset, file, to, min(length, 1_000_000))
            if refusal == 0 or self.asked == 1:
                return super().copy(source, offset, file, to, 10) if self.asked == 1 else 0
            raise OSError(refusal, os.strerror(refusal))

    data = os.urandom(2_500_000)
    (tmp_path / "source").write_bytes(data)
    disk = Refusing()
    with (tmp_path / "source").open("rb") as source, Transaction(tmp_path / "out", job="j", disk=disk) as tx:
        with tx.create("x", len(data), digest=True) as file:
            file.copy_range(source.fileno(), 1000, len(data) - 1000, 1000)
            file.copy_range(source.fileno(), 0, 1000, 0)
        tx.commit({})
    assert disk.asked > 2
    assert file.sha256 == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "out" / "x").read_bytes() == data


def test_a_source_that_is_too_short(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"12345")
    with (tmp_path / "source").open("rb") as source, Transaction(tmp_path / "out", job="j") as tx:
        with pytest.raises(CheckpointError, match="ends 3 bytes too early"), tx.create("x", 8) as file:
            file.copy_range(source.fileno(), 0, 8, 0)


# Space


def test_space_is_missed_before_any_work(tmp_path: Path) -> None:
    with Transaction(tmp_path / "out", job="j") as tx:
        with pytest.raises(DiskError, match=r"free, and 1000000000\.0 GB are needed") as caught:
            tx.reserve(10**18)
        assert caught.value.exit_code == 11
        tx.reserve(4096)
        tx.write("x", b"1" * 4096)
        tx.commit({})
    assert names(tmp_path / "out") == {"x", RECEIPT}


def test_reserve_is_refused_by_the_disk_itself(tmp_path: Path) -> None:
    """Quotas and reserved blocks are not in what statvfs tells: the space is really taken."""

    class Full(Disk):
        def allocate(self, file, length):
            if length > 1000:
                raise OSError(errno.EDQUOT, "quota")
            super().allocate(file, length)

    with Transaction(tmp_path / "out", job="j", disk=Full()) as tx:
        with pytest.raises(DiskError, match="the disk quota is used up; nothing was written"):
            tx.reserve(2000)
        with pytest.raises(DiskError, match="quota"):
            tx.create("x", 2000)
        tx.write("x", b"small")
        tx.commit({})
    assert names(tmp_path / "out") == {"x", RECEIPT}


def test_a_read_only_disk(out: Path) -> None:
    class ReadOnly(Disk):
        def make_folder(self, folder, name):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for mode, place in (("replace", out), ("new", out.parent / "new")):
        with pytest.raises(DiskError, match="read-only"), Transaction(place, mode, job="j", disk=ReadOnly()):  # type: ignore[arg-type]
            pass
    with consistent(out, disk=ReadOnly()):
        pass
    assert names(out.parent) == {f"out/{name}" for name in OLD}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_forbidden_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o555)
    with pytest.raises(DiskError, match="you may not write here"), Transaction(tmp_path / "a" / "out", job="j"):
        pass


# Receipts and journals of strangers


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"job": 1}', "[" * 100_000, "\xff"], ids=range(6))
def test_a_damaged_receipt_is_told(text: str, out: Path) -> None:
    (out / RECEIPT).write_bytes(text.encode("latin1"))
    with pytest.raises(CheckpointError, match="the receipt is damaged"):
        read_receipt(out)
    with pytest.raises(CheckpointError, match="the receipt is damaged"), Transaction(out, "replace", job="j"):
        pass
    assert not (out / ".surgery").exists()


def test_a_receipt_of_the_future(out: Path) -> None:
    (out / RECEIPT).write_text('{"format": 2, "job": "j"}')
    with pytest.raises(CheckpointError, match="format 2"):
        read_receipt(out)


def test_no_receipt(out: Path, tmp_path: Path) -> None:
    assert read_receipt(out) is None
    with pytest.raises(CheckpointError, match="no such folder"):
        read_receipt(tmp_path / "x")
    (out / RECEIPT).symlink_to("undo.old")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_receipt(out)
