"""One flipped bit in any byte of any file of a folder: verify and unmerge say so, and write nothing."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from operating import REGISTRY
from safetensors.torch import load_file, save_file
from tiny import snapshot
from tiny_world import World

from surgery import SurgeryError, merge_checkpoint, unmerge_checkpoint, verify_checkpoint
from surgery.checkpoint import RECEIPT
from surgery.errors import CheckpointError, DriftError


@pytest.fixture
def world(quick_path: Path) -> World:
    return World(quick_path)


def classes(path: Path) -> dict[str, range]:
    """Return kind of a byte -> where such bytes are."""
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return {"text": range(len(data))}
    head = 8 + int.from_bytes(data[:8], "little")
    text = len(data[:head].rstrip(b" "))
    return {
        "length": range(8),
        "header": range(8, text),
        "padding": range(text, head),
        "numbers": range(head, len(data)),
    }


def flips(folder: Path, most: int) -> Iterator[tuple[str, int, int]]:
    """Return (file, byte, bit), about `most` of each class of bytes of each file, the first and the last among them."""
    dice = random.Random(0)
    for name in snapshot(folder):
        for places in classes(folder / name).values():
            chosen = {places[0], places[-1]} if places else set()
            chosen |= set(dice.sample(places, min(most, len(places))))
            yield from ((name, place, dice.randrange(8)) for place in sorted(chosen))


def missed(folder: Path, most: int, check: Callable[[], object]) -> tuple[list[tuple[str, int, int]], int]:
    """Flip one bit after the other; return those for which `check` raises nothing, and how many were flipped."""
    quiet, count, before = [], 0, snapshot(folder)
    for name, place, bit in flips(folder, most):
        data = bytearray(before[name])
        data[place] ^= 1 << bit
        (folder / name).write_bytes(data)
        count += 1
        try:
            check()
            quiet.append((name, place, bit))
        except SurgeryError as error:
            assert error.what
        assert snapshot(folder) == before | {name: bytes(data)}
        (folder / name).write_bytes(before[name])
    return quiet, count


def test_the_files_have_every_class_of_bytes(world: World) -> None:
    found = {
        kind for path in (world.root / "merged").rglob("*.safetensors") for kind, at in classes(path).items() if at
    }
    assert found == {"length", "header", "padding", "numbers"}
    assert {"model.safetensors.index.json", "config.json", "tokenizer.json", "1_Pooling/config.json", RECEIPT,
            "surgery/residue.bin", "surgery/adapters/own/adapter.json", "surgery/adapters/own/adapter.safetensors",
            "surgery/adapters/theirs/adapter_config.json", "surgery/adapters/theirs/adapter_model.safetensors",
            } < snapshot(world.root / "merged").keys()  # fmt: skip


MOST = [8, pytest.param(1 << 20, marks=pytest.mark.slow)]


@pytest.mark.parametrize("most", MOST, ids=["some", "every-byte"])
@pytest.mark.parametrize("folder", ["merged", "back", "no way back"])
def test_verify_notices(folder: str, most: int, world: World) -> None:
    path = world.root / folder
    if folder == "no way back":
        world.merge(path, undo="none")
        world.sources = snapshot(world.root)
    quiet, count = missed(path, most, lambda: verify_checkpoint(path, jobs=1, registry=REGISTRY))
    assert quiet == []
    assert count > 50
    verify_checkpoint(path, jobs=1, registry=REGISTRY)
    assert world.sources == snapshot(world.root)


@pytest.mark.parametrize("most", MOST, ids=["some", "every-byte"])
@pytest.mark.parametrize("undo", ["residue", "copy", "file"])
def test_unmerge_notices(undo: str, most: int, quick_path: Path) -> None:
    world = World(quick_path, undo=undo)
    quiet, count = missed(quick_path / "merged", most, lambda: world.unmerge(quick_path / "out"))
    assert quiet == []
    assert count > 100
    assert world.sources == snapshot(world.root)
    world.unmerge(quick_path / "out")


@pytest.mark.parametrize(
    "name", ["config.json", "1_Pooling/config.json", "surgery/adapters/own/adapter.json", "surgery/residue.bin"]
)
def test_a_missing_file_is_named(name: str, world: World) -> None:
    (world.root / "merged" / name).unlink()
    for act in (
        lambda: world.unmerge(world.root / "out"),
        lambda: verify_checkpoint(world.root / "merged", registry=REGISTRY),
    ):
        with pytest.raises(SurgeryError, match="missing|no adapter.json") as caught:
            act()
        assert Path(name).name in str(caught.value) or "residue" in str(caught.value)
    assert not (world.root / "out").exists()


# The same command again


def again(world: World, kind: type[SurgeryError], match: str) -> None:
    before = snapshot(world.root)
    with pytest.raises(kind, match=match):
        world.merge(world.root / "merged")
    assert snapshot(world.root) == before


def edit_tensor(path: Path, name: str) -> None:
    """Change one bit of one number, headers as they are."""
    data = bytearray(path.read_bytes())
    head = 8 + int.from_bytes(data[:8], "little")
    start = json.loads(data[8:head])[name]["data_offsets"][0]
    data[head + start] ^= 1
    path.write_bytes(data)


def test_a_finished_merge_is_compared_before_it_is_said_to_be_done(world: World) -> None:
    assert not world.merge(world.root / "merged")
    edit_tensor(world.root / "merged" / "model-00001-of-00002.safetensors", "a.weight")
    again(world, DriftError, "a.weight has other bits than in the receipt")


@pytest.mark.parametrize("name", ["a.weight", "c.weight"])
def test_a_base_that_changed_is_another_base(name: str, world: World) -> None:
    """Also where no adapter says which base it was trained on."""
    world.adapters = world.adapters[1:]
    shutil.rmtree(world.root / "merged")
    assert world.merge(world.root / "merged")
    assert not world.merge(world.root / "merged")
    file = next(path for path in (world.root / "base").glob("*.safetensors") if name in load_file(path))
    edit_tensor(file, name)
    again(world, CheckpointError, f"{name} has other values than when")


def test_a_carried_file_that_changed_is_another_base(world: World) -> None:
    path = world.root / "base" / "config.json"
    path.write_text(path.read_text().replace("4", "5"))
    again(world, CheckpointError, "was made when this file was another")


@pytest.mark.parametrize("what", ["tensors", "config"])
def test_an_adapter_of_peft_that_changed_is_another_adapter(what: str, world: World) -> None:
    if what == "tensors":
        edit_tensor(world.root / "theirs" / "adapter_model.safetensors", "base_model.model.a.lora_A.weight")
    else:
        path = world.root / "theirs" / "adapter_config.json"
        path.write_text(path.read_text().replace('"lora_alpha": 2', '"lora_alpha": 3'))
    again(world, CheckpointError, "holds a merge of other files of the same names: ")


def test_a_finished_unmerge_is_compared_too(world: World) -> None:
    assert not world.unmerge(world.root / "back")
    edit_tensor(world.root / "back" / "model-00001-of-00002.safetensors", "c.weight")
    with pytest.raises(DriftError, match=r"c.weight has other bits"):
        world.unmerge(world.root / "back")


def test_a_finished_merge_onto_a_merged_base_is_compared_with_that_base(world: World) -> None:
    own, theirs = (one.folder for one in world.adapters)

    def merge(adapter: Path, base: str, out: str) -> bool:
        base_folder = world.root / base
        return not merge_checkpoint(base_folder, adapter, world.root / out, jobs=1, registry=REGISTRY).was_done

    merge(theirs, "base", "one")
    assert merge(own, "one", "two")
    assert not merge(own, "one", "two")
    shutil.rmtree(world.root / "one")
    name = "c.weight"  # no adapter knows of it
    path = next(path for path in (world.root / "base").glob("*.safetensors") if name in load_file(path))
    edit_tensor(path, name)
    merge(theirs, "base", "one")
    with pytest.raises(CheckpointError, match=r"c.weight has other values than when"):
        merge(own, "one", "two")


@pytest.mark.parametrize("name", ["own", "theirs"])
def test_an_adapter_that_changes_during_the_merge_is_noticed(name: str, world: World) -> None:
    path = next((world.root / name).glob("*.safetensors"))

    def rewrite(done: int, total: int, what: str) -> None:
        held = load_file(path)
        save_file({key: torch.zeros_like(tensor) for key, tensor in held.items()}, path, {"format": "pt"})

    with pytest.raises(SurgeryError, match="changed while it was merged|other bits"):
        world.merge(world.root / "out", progress=rewrite)
    assert not (world.root / "out").exists()


def test_another_base_than_the_one_that_undo_needs(world: World) -> None:
    shutil.rmtree(world.root / "merged")
    world.merge(world.root / "merged", undo="file")
    path = next(path for path in (world.root / "base").glob("*.safetensors") if "a.weight" in load_file(path))
    edit_tensor(path, "a.weight")
    with pytest.raises(DriftError, match="the base that the residue gives back is not the one that was merged"):
        unmerge_checkpoint(world.root / "merged", world.root / "out", registry=REGISTRY)
    assert not (world.root / "out").exists()
