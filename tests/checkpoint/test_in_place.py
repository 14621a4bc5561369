"""Merging in place: the folder's own files change all at once, and come back byte for byte."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from merging import MIXED, base_of, bytes_of, saved
from operating import LORA, REGISTRY

from surgery import merge_checkpoint, unmerge_checkpoint, verify_checkpoint
from surgery.checkpoint import RECEIPT, Disk, read_receipt
from surgery.errors import CheckpointError, DiskError, DriftError, StateError

HERE = Path(__file__).parent
QUERY = {"role": r"attention\.query", "layers": [0], **LORA}


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def merged(folder: Path, *names: str, **options: object):
    adapters = [folder / name for name in names]
    return merge_checkpoint(folder / "base", adapters, in_place=True, registry=REGISTRY, **options)


def unmerged(folder: Path, *names: str):
    return unmerge_checkpoint(folder / "base", in_place=True, adapters=names, registry=REGISTRY)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for index, (name, rules) in enumerate((("a", MIXED), ("b", MIXED), ("small", (QUERY,)))):
        saved(base_of(folder / "base", "LlamaForCausalLM", torch.bfloat16), folder / name, *rules, seed=index)
        shutil.rmtree(folder / "base")
    base_of(folder / "base", "LlamaForCausalLM", torch.bfloat16)
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "world")
    return tmp_path / "world"


@pytest.mark.parametrize("undo", ["residue", "copy"])
@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("small",)], ids="".join)
def test_the_bytes_of_a_new_folder_and_the_base_again(names: tuple[str, ...], undo: str, world: Path) -> None:
    before = everything(world / "base")
    adapters = [world / name for name in names]
    merge_checkpoint(world / "base", adapters, world / "new", undo=undo, registry=REGISTRY)
    report = merged(world, *names, undo=undo)
    assert not report.was_done
    assert report.adapters == names
    ours, theirs = everything(world / "base"), everything(world / "new")
    del ours[RECEIPT], theirs[RECEIPT]
    assert ours == theirs
    receipts = [read_receipt(world / name) for name in ("base", "new")]
    assert receipts[0]["files"].keys() == receipts[1]["files"].keys()
    assert verify_checkpoint(world / "base", registry=REGISTRY).kind == "merged"
    unmerged(world)
    after = everything(world / "base")
    assert after.pop(RECEIPT)
    assert after == before
    assert not (world / "base" / "surgery").exists()
    found = verify_checkpoint(world / "base", registry=REGISTRY)
    assert (found.kind, found.against) == ("unmerged", ("receipt",))


def test_files_that_do_not_change_are_not_written(world: Path) -> None:
    before = {path.name: path.stat().st_ino for path in (world / "base").glob("*.*")}
    merged(world, "small")
    changed = {name for name, number in before.items() if (world / "base" / name).stat().st_ino != number}
    assert len(changed) == 1
    assert len([name for name in before if name.endswith(".safetensors")]) > 1
    found = verify_checkpoint(world / "base", registry=REGISTRY)
    assert found.files == len(before) + len(("residue", "adapter.json", "adapter.safetensors"))


def test_a_finished_merge_is_a_no_op_and_merging_twice_an_error(world: Path) -> None:
    merged(world, "a")
    before = {path: path.stat().st_mtime_ns for path in (world / "base").rglob("*")}
    again = merged(world, "a")
    assert again.was_done
    assert again.adapters == ("a",)
    with pytest.raises(StateError, match="'a' is merged already"):
        merged(world, "a", fast=True)
    with pytest.raises(StateError, match="'a' is merged already"):
        merged(world, "a", "b")
    assert {path: path.stat().st_mtime_ns for path in (world / "base").rglob("*")} == before
    merged(world, "b")
    with pytest.raises(StateError, match="'a' is merged already"):
        merged(world, "a")
    unmerged(world)
    assert unmerged(world).was_done
    assert not merged(world, "a").was_done


def test_one_of_several_is_taken_out(world: Path) -> None:
    merge_checkpoint(world / "base", world / "b", world / "only-b", registry=REGISTRY)
    base = bytes_of(world / "base")
    merged(world, "a")
    merged(world, "b")
    assert unmerged(world, "a").adapters == ("b",)
    ours, theirs = everything(world / "base"), everything(world / "only-b")
    del ours[RECEIPT], theirs[RECEIPT]
    assert ours == theirs
    assert unmerged(world, "a").was_done
    unmerged(world)
    assert bytes_of(world / "base") == base


def test_a_receipt_beside_other_weights_is_noticed(world: Path) -> None:
    fresh = {path.name: path.read_bytes() for path in (world / "base").glob("*.safetensors")}
    merged(world, "a")
    for name, data in fresh.items():  # somebody fetched the base again, over it
        (world / "base" / name).write_bytes(data)
    with pytest.raises(DriftError, match="has other bits than in the receipt"):
        merged(world, "a")


def test_a_cache_of_links_is_refused(world: Path) -> None:
    blobs = world / "blobs"
    shutil.copytree(world / "base", blobs)
    for path in (world / "base").iterdir():
        path.unlink()
        path.symlink_to(blobs / path.name)
    before = everything(blobs)
    with pytest.raises(CheckpointError, match="it is a link") as caught:
        merged(world, "a")
    assert "-o OUT" in caught.value.hint
    assert everything(blobs) == before
    assert all(path.is_symlink() for path in (world / "base").iterdir())
    assert not read_receipt(world / "base")


def test_other_names_of_a_file_keep_the_old_bytes(world: Path) -> None:
    (name,) = {path.name for path in (world / "base").glob("*-00001-*")}
    os.link(world / "base" / name, world / "other")
    before = (world / "other").read_bytes()
    merged(world, "a")
    assert (world / "other").read_bytes() == before != (world / "base" / name).read_bytes()


def test_a_full_disk_is_told_before_any_work(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, told = everything(world / "base"), []
    size = sum(len(data) for name, data in before.items() if name.endswith(".safetensors"))
    monkeypatch.setattr(Disk, "free", lambda _self, _folder: size)
    with pytest.raises(DiskError, match="are needed"):
        merged(world, "a", progress=lambda *seen: told.append(seen))
    assert not told
    assert everything(world / "base") == before
    assert not (world / "base" / ".surgery").exists()
    monkeypatch.setattr(Disk, "free", lambda _self, _folder: 3 * size)
    merged(world, "a")
    unmerged(world)
    with pytest.raises(DiskError, match="are needed"):  # the copies are collected first, and written in order then
        merged(world, "a", undo="copy")


def test_a_new_folder_and_in_place_exclude_each_other(world: Path) -> None:
    for act in (
        lambda **more: merge_checkpoint(world / "base", world / "a", registry=REGISTRY, **more),
        lambda **more: unmerge_checkpoint(world / "base", registry=REGISTRY, **more),
    ):
        with pytest.raises(StateError, match="not to both"):
            act(out=world / "out", in_place=True)
        with pytest.raises(StateError, match="nothing says where"):
            act()


def test_undo_file_would_read_what_is_replaced(world: Path) -> None:
    with pytest.raises(StateError, match="replaces it"):
        merged(world, "a", undo="file")
    # Where the base lies elsewhere, it may stay there.
    merge_checkpoint(world / "base", world / "a", world / "merged", undo="file", registry=REGISTRY)
    merge_checkpoint(world / "merged", world / "b", in_place=True, undo="file", registry=REGISTRY)
    unmerge_checkpoint(world / "merged", in_place=True, registry=REGISTRY)
    assert bytes_of(world / "merged") == bytes_of(world / "base")


def test_what_fails_leaves_every_byte(world: Path) -> None:
    before = everything(world / "base")
    path = world / "base" / sorted(before)[-2]
    merged(world, "a")
    after = everything(world / "base")
    name = next(name for name in after if name.endswith(".safetensors") and after[name] != before.get(name))
    path = world / "base" / name
    path.write_bytes(after[name][:-1] + bytes([after[name][-1] ^ 1]))
    tampered = everything(world / "base")
    for act in (lambda: unmerged(world), lambda: merged(world, "b")):
        with pytest.raises((CheckpointError, DriftError)):
            act()
        assert everything(world / "base") == tampered
        assert not (world / "base" / ".surgery").exists()


def test_killed_before_and_after_every_change(made: Path, quick_path: Path) -> None:
    shutil.copytree(made / "base", quick_path / "base")
    shutil.copytree(made / "small", quick_path / "notes")
    told = subprocess.run(
        [sys.executable, HERE / "in_place_kills.py", quick_path], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert not any(key.endswith("mixed") for key in found)
    assert all(found[f"{act} {state}"] > 5 for act in ("merge", "unmerge") for state in ("old", "new")), found
