"""What is refused: each with its own message, and nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from merging import base_of, bytes_of, saved
from operating import LORA, REGISTRY
from safetensors.torch import load_file, save_file

from surgery import SurgeryError, merge_checkpoint, unmerge_checkpoint, verify_checkpoint
from surgery.errors import CheckpointError, DriftError, StateError

RULES = ({"role": r"attention\.(query|value)", **LORA}, {"role": r"attention\.output", "adapter": "ia3"})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    saved(base_of(folder / "base", "LlamaForCausalLM", torch.bfloat16, "1GB"), folder / "notes", *RULES)
    merge_checkpoint(folder / "base", folder / "notes", folder / "merged", registry=REGISTRY)
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(made, tmp_path / "world")
    yield tmp_path / "world"
    assert not (tmp_path / "world" / "out").exists()
    assert not list((tmp_path / "world").glob(".*"))


def refused(kind: type[SurgeryError], world: Path, *, unmerge: bool = False) -> str:
    with pytest.raises(kind) as caught:
        if unmerge:
            unmerge_checkpoint(world / "merged", world / "out", registry=REGISTRY)
        else:
            merge_checkpoint(world / "base", world / "notes", world / "out", registry=REGISTRY)
    return str(caught.value)


def flip(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[min(int(len(data) * place), len(data) - 1)] ^= 4
    path.write_bytes(data)


TAMPERED = (
    "model.safetensors",
    "surgery/residue.bin",
    "surgery/adapters/notes/adapter.safetensors",
    "surgery/adapters/notes/adapter.json",
    "surgery-receipt.json",
)


@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("name", TAMPERED)
def test_any_flipped_bit_is_noticed_before_anything_is_written(world: Path, name: str, place: float) -> None:
    flip(world / "merged" / name, place)
    before = bytes_of(world / "merged")
    refused(SurgeryError, world, unmerge=True)
    assert bytes_of(world / "merged") == before
    with pytest.raises(SurgeryError):
        verify_checkpoint(world / "merged", registry=REGISTRY)


def test_every_bit_of_one_merged_row_is_noticed(world: Path) -> None:
    """Even where the residue would still decode."""
    path = world / "merged" / "model.safetensors"
    whole = path.read_bytes()
    for bit in range(0, 16 * 8, 7):
        data = bytearray(whole)
        data[len(data) // 2 + bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(data)
        refused(DriftError, world, unmerge=True)


@pytest.mark.parametrize("undo", ["copy", "file"])
def test_merged_bits_are_compared_where_the_way_back_does_not_need_them(world: Path, undo: str) -> None:
    shutil.rmtree(world / "merged")
    merge_checkpoint(world / "base", world / "notes", world / "merged", undo=undo, registry=REGISTRY)
    name = "model.layers.0.self_attn.q_proj.weight"
    held = load_file(world / "merged" / "model.safetensors")
    bits = held[name].view(torch.int16)
    bits[0, 0] ^= 1
    save_file(held, world / "changed", metadata={"format": "pt"})
    whole, own = (world / "changed").read_bytes(), (world / "merged" / "model.safetensors").read_bytes()
    size = int.from_bytes(own[:8], "little") + 8
    (world / "merged" / "model.safetensors").write_bytes(own[:size] + whole[-(len(own) - size) :])
    assert "the merged weights were changed" in refused(DriftError, world, unmerge=True)


def test_another_adapter_in_its_place_is_noticed(world: Path) -> None:
    saved(base_of(world / "again", "LlamaForCausalLM", torch.bfloat16), world / "other", *RULES, seed=5)
    kept = world / "merged" / "surgery" / "adapters" / "notes"
    shutil.rmtree(kept)
    shutil.copytree(world / "other", kept)
    assert "changed since it was written" in refused(DriftError, world, unmerge=True)


def test_another_base_is_refused(world: Path) -> None:
    path = world / "base" / "model.safetensors"
    held = load_file(path)
    name = "model.layers.0.mlp.up_proj.weight"
    held[name] = held[name] * 2
    save_file(held, path, metadata={"format": "pt"})
    assert f"{name} has other values than in the base of 'notes'" in refused(CheckpointError, world)


def test_another_architecture_is_refused(world: Path) -> None:
    shutil.rmtree(world / "base")
    base_of(world / "base", "BertForMaskedLM", torch.bfloat16)
    assert "the base lacks" in refused(CheckpointError, world)


def test_merging_twice_is_an_error(world: Path) -> None:
    with pytest.raises(StateError, match="is merged already"):
        merge_checkpoint(world / "merged", world / "notes", world / "out", registry=REGISTRY)
    shutil.copytree(world / "notes", world / "copy")
    with pytest.raises(StateError, match="is given twice"):
        merge_checkpoint(world / "base", [world / "notes", world / "copy"], world / "out", registry=REGISTRY)


def test_what_is_not_merged_is_not_unmerged(world: Path) -> None:
    with pytest.raises(StateError, match="it has no receipt of a merge"):
        unmerge_checkpoint(world / "base", world / "out", registry=REGISTRY)
    with pytest.raises(StateError, match="'ntoes' is not merged here") as caught:
        unmerge_checkpoint(world / "merged", world / "out", adapters=["ntoes"], registry=REGISTRY)
    assert "notes" in caught.value.hint


def test_undo_none_says_that_there_is_no_way_back(world: Path) -> None:
    merge_checkpoint(world / "base", world / "notes", world / "none", undo="none", registry=REGISTRY)
    shutil.rmtree(world / "merged")
    (world / "none").rename(world / "merged")
    assert "nothing was kept" in refused(StateError, world, unmerge=True)


def test_undo_file_notices_a_base_that_changed(world: Path) -> None:
    merge_checkpoint(world / "base", world / "notes", world / "by-file", undo="file", registry=REGISTRY)
    shutil.rmtree(world / "merged")
    (world / "by-file").rename(world / "merged")
    flip(world / "base" / "model.safetensors", 0.9)
    refused(DriftError, world, unmerge=True)
    shutil.rmtree(world / "base")
    assert "the base is gone" in refused(CheckpointError, world, unmerge=True)


def rewrite(world: Path, value: float, *, extra: bool = False) -> None:
    """Change an adapter as its owner would: with a right checksum."""
    import hashlib

    path, config = world / "notes" / "adapter.safetensors", world / "notes" / "adapter.json"
    held = load_file(path)
    key = next(name for name in held if name.endswith("/B"))
    held[key] = torch.full_like(held[key], value)
    if extra:
        held["model.layers.7.nowhere/B"] = held[key].clone()
    save_file(held, path, metadata={"format": "pt"})
    said = json.loads(config.read_text())
    said["tensors_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    config.write_text(json.dumps(said))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_refused(world: Path, value: float) -> None:
    rewrite(world, value)
    assert "holds NaN or inf" in refused(StateError, world)


def test_an_overflow_is_refused_with_its_place(world: Path) -> None:
    rewrite(world, 3e38)
    text = refused(StateError, world)
    assert "would turn a finite weight into NaN or inf" in text
    assert "model.safetensors: tensor 'model.layers.0.self_attn" in text


def test_a_tensor_without_a_home_is_an_error(world: Path) -> None:
    rewrite(world, 1.0, extra=True)
    assert "has no home in the base" in refused(CheckpointError, world)


def test_damaged_bases_are_refused(world: Path) -> None:
    path = world / "base" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    assert "file's size" in refused(CheckpointError, world)
    path.rename(path.with_suffix(".bin"))
    assert "only pickled weights here" in refused(CheckpointError, world)


def test_an_output_that_exists_is_left_alone(world: Path) -> None:
    (world / "there").mkdir()
    (world / "there" / "mine").write_text("mine")
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        merge_checkpoint(world / "base", world / "notes", world / "there", registry=REGISTRY)
    assert bytes_of(world / "there") == {"mine": b"mine"}


def test_an_output_that_holds_another_merge_is_described(world: Path) -> None:
    before = bytes_of(world / "merged")
    with pytest.raises(CheckpointError, match=r"holds another merge: notes into .*base \(undo residue\)"):
        merge_checkpoint(world / "base", world / "notes", world / "merged", undo="copy", registry=REGISTRY)
    assert bytes_of(world / "merged") == before


def test_an_output_within_the_base_is_refused(world: Path) -> None:
    before = bytes_of(world / "base")
    for inside in ("merged", "a/b"):
        with pytest.raises(StateError, match="would lie within the checkpoint"):
            merge_checkpoint(world / "base", world / "notes", world / "base" / inside, registry=REGISTRY)
    assert bytes_of(world / "base") == before


def test_weights_are_for_adapters_that_add(world: Path) -> None:
    with pytest.raises(StateError, match="cannot be weighted|that add can be weighted"):
        merge_checkpoint(world / "base", world / "notes", world / "out", weights={"notes": 0.5}, registry=REGISTRY)
    with pytest.raises(StateError, match="which is not merged"):
        merge_checkpoint(world / "base", world / "notes", world / "out", weights={"other": 0.5}, registry=REGISTRY)
