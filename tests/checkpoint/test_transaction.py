"""What a transaction promises to those who use it."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest
from commit_jobs import NEW, OLD, SHARDS, merge, prepare

from surgery.checkpoint import RECEIPT, Disk, Transaction, consistent, read_receipt, recover, refuse_shared
from surgery.checkpoint.receipt import encode_receipt
from surgery.errors import CheckpointError, StateError


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
            (out / RECEIPT).write_bytes(encode_receipt("other", {}, []))
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
    assert {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()} == OLD


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
            tx.create("in/../folder", 1)


@pytest.mark.parametrize("kind", ["link", "file"])
def test_no_file_is_put_or_removed_behind_a_link(kind: str, out: Path, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "x").write_bytes(b"of many")
    if kind == "link":
        (out / "in").symlink_to(tmp_path / "shared")
    else:
        (out / "in").write_bytes(b"")
    with Transaction(out, "replace", job="j") as tx:
        for act in (lambda: tx.create("in/x", 1), lambda: tx.remove("in/x")):
            with pytest.raises(CheckpointError, match=f"a {kind} is where a folder belongs"):
                act()
    assert (tmp_path / "shared" / "x").read_bytes() == b"of many"


def test_a_folder_goes_with_its_last_file_only(out: Path) -> None:
    (out / "kept" / "mine").write_bytes(b"mine")
    merge(Disk(), out)
    assert sorted(str(path.relative_to(out / "kept")) for path in (out / "kept").rglob("*")) == [
        "mine",
        "new",
        "new/undo",
    ]
