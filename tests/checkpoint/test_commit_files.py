"""The files of a commit: their bytes, their space, and the receipt that tells of them."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path

import pytest
from commit_jobs import OLD, prepare

from surgery.checkpoint import RECEIPT, Disk, Transaction, consistent, digest, read_receipt
from surgery.checkpoint.journal import canonical
from surgery.errors import CheckpointError, DiskError, StateError


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    prepare(Disk(), folder, OLD)
    return folder


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


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


@pytest.mark.parametrize("mode", ["new", "replace"])
def test_a_thread_for_each_file(mode: str, out: Path) -> None:
    place = out if mode == "replace" else out.parent / "fresh"
    start = threading.Barrier(16)
    with Transaction(place, mode, job="j") as tx:  # type: ignore[arg-type]
        tx.reserve(16_000)

        def put(number: int) -> None:
            start.wait()
            for part in range(10):
                folder = f"{part}/" if mode == "new" else ""
                tx.write(f"{folder}{number}-{part}", b"%3d" % number)

        threads = [threading.Thread(target=put, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        tx.commit({})
    written = [path for path in place.rglob("*-*") if path.name != RECEIPT]
    assert len(written) == 160
    assert all(path.read_bytes() == b"%3d" % int(path.name.partition("-")[0]) for path in written)


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
        with pytest.raises(DiskError, match=r"free, and 1000000\.0 TB are needed") as caught:
            tx.reserve(10**18)
        assert caught.value.exit_code == 11
        tx.reserve(4096)
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


def sealed(value: dict[str, object]) -> bytes:
    return canonical({**value, "sha256": hashlib.sha256(canonical(value)).hexdigest()})


def test_every_flipped_bit_of_a_receipt_is_noticed(out: Path) -> None:
    with Transaction(out, "replace", job="é 1e-05") as tx:
        tx.write("x", b"x")
        tx.commit({"small": 1e-05, "é": None})
    whole = (out / RECEIPT).read_bytes()
    for bit in range(len(whole) * 8):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << (bit % 8)
        (out / RECEIPT).write_bytes(data)
        with pytest.raises(CheckpointError, match="the receipt"):
            read_receipt(out)


@pytest.mark.parametrize(
    "files",
    [
        None, [], {"x": None}, {"x": {}}, {"x": {"size": "1", "sha256": None}}, {"x": {"size": 1, "sha256": 1}},
        {"../x": {"size": 1, "sha256": None}}, {"/x": {"size": 1, "sha256": None}},
    ],
    ids=range(8),
)  # fmt: skip
def test_a_receipt_that_a_stranger_sealed(files: object, out: Path) -> None:
    value: dict[str, object] = {"format": 1, "job": "j", "files": files}
    (out / RECEIPT).write_bytes(sealed(value))
    with pytest.raises(CheckpointError, match=r"the receipt is damaged: its list|is no name of a file"):
        read_receipt(out)


def test_a_receipt_with_a_key_twice_or_written_otherwise(out: Path) -> None:
    whole = sealed({"format": 1, "job": "j", "files": {}})
    (out / RECEIPT).write_bytes(whole)
    assert read_receipt(out) == {"format": 1, "job": "j", "files": {}}
    for other in (whole.replace(b'"job"', b'"job": "k", "job"'), whole + b" ", b"\xef\xbb\xbf" + whole):
        (out / RECEIPT).write_bytes(other)
        with pytest.raises(CheckpointError, match="the receipt is damaged"):
            read_receipt(out)


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
