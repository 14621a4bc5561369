"""Merging on disk equals merging in memory bit for bit, and unmerging gives the base's files back byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from merging import MIXED, SHARDS, base_of, bytes_of, saved, tensors
from operating import LORA, REGISTRY

from surgery import diff_checkpoints, load_adapter, merge_checkpoint, unmerge_checkpoint, verify_checkpoint
from surgery.checkpoint import read_receipt

FAMILIES = ("BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM", "LlamaForCausalLM-tied", "MixtralForCausalLM")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_and_equality_with_memory(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base, merged, back, want = (tmp_path / name for name in ("base", "merged", "back", "want"))
    name, _, tied = family.partition("-")
    op = saved(base_of(base, name, dtype, **({"tie_word_embeddings": True} if tied else {})), tmp_path / "adapter")
    assert len(list(base.glob("*.safetensors"))) > 1
    report = merge_checkpoint(base, tmp_path / "adapter", merged, registry=REGISTRY)
    assert not report.was_done
    assert {record.name for record in report.tensors}
    op.merge()
    op.finalize().save_pretrained(want, max_shard_size=SHARDS)
    ours, theirs = tensors(merged), tensors(want)
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    assert any(not torch.equal(ours[key], value) for key, value in tensors(base).items())
    assert verify_checkpoint(merged, base, registry=REGISTRY).against == ("receipt", "base")
    unmerge_checkpoint(merged, back, registry=REGISTRY)
    assert bytes_of(back) == bytes_of(base)
    assert diff_checkpoints(base, back, registry=REGISTRY).is_empty
    assert not diff_checkpoints(base, merged, registry=REGISTRY).is_empty


@pytest.mark.parametrize("undo", ["residue", "copy", "file"])
@pytest.mark.parametrize("fast", [False, True])
def test_every_way_back(undo: str, fast: bool, tmp_path: Path) -> None:
    base, merged, back = (tmp_path / name for name in ("base", "merged", "back"))
    saved(base_of(base, "GPT2LMHeadModel", torch.bfloat16), tmp_path / "adapter")
    merge_checkpoint(base, tmp_path / "adapter", merged, undo=undo, fast=fast, registry=REGISTRY)
    unmerge_checkpoint(merged, back, registry=REGISTRY)
    assert bytes_of(back) == bytes_of(base)


def test_one_of_several_is_taken_out_and_order_does_not_matter(tmp_path: Path) -> None:
    base = tmp_path / "base"
    for index, name in enumerate(("a", "b")):
        saved(base_of(base, "LlamaForCausalLM", torch.bfloat16), tmp_path / name, *MIXED, seed=index)
        shutil.rmtree(base)
    base_of(base, "LlamaForCausalLM", torch.bfloat16)
    both = merge_checkpoint(base, [tmp_path / "a", tmp_path / "b"], tmp_path / "ab", registry=REGISTRY)
    assert both.adapters == ("a", "b")
    merge_checkpoint(base, [tmp_path / "b", tmp_path / "a"], tmp_path / "ba", registry=REGISTRY)
    merge_checkpoint(base, tmp_path / "b", tmp_path / "only-b", registry=REGISTRY)
    merge_checkpoint(tmp_path / "only-b", tmp_path / "a", tmp_path / "b-then-a", registry=REGISTRY)
    unmerge_checkpoint(tmp_path / "ab", tmp_path / "ab-without-a", adapters=["a"], registry=REGISTRY)
    assert bytes_of(tmp_path / "ab") == bytes_of(tmp_path / "ba") == bytes_of(tmp_path / "b-then-a")
    assert bytes_of(tmp_path / "ab-without-a") == bytes_of(tmp_path / "only-b")
    residue = "surgery/residue.bin"
    assert (tmp_path / "b-then-a" / residue).read_bytes() == (tmp_path / "ab" / residue).read_bytes()
    unmerge_checkpoint(tmp_path / "ab-without-a", tmp_path / "back", registry=REGISTRY)
    assert bytes_of(tmp_path / "back") == bytes_of(base)


def test_several_adapters_equal_an_operation_with_several(tmp_path: Path) -> None:
    base = tmp_path / "base"
    for index, name in enumerate(("a", "b")):
        saved(base_of(base, "GPT2LMHeadModel", torch.float16), tmp_path / name, *MIXED, seed=index)
    model = base_of(base, "GPT2LMHeadModel", torch.float16)
    merge_checkpoint(base, [tmp_path / "a", tmp_path / "b"], tmp_path / "merged", registry=REGISTRY)
    op = load_adapter(model, tmp_path / "a", name="a", registry=REGISTRY)
    load_adapter(op, tmp_path / "b", name="b")
    op.merge()
    op.finalize().save_pretrained(tmp_path / "want", max_shard_size=SHARDS)
    ours, theirs = tensors(tmp_path / "merged"), tensors(tmp_path / "want")
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []


def test_equal_bytes_whatever_the_threads(tmp_path: Path) -> None:
    base = tmp_path / "base"
    saved(base_of(base, "MixtralForCausalLM", torch.float32), tmp_path / "adapter")
    for jobs in (1, 4):
        merge_checkpoint(base, tmp_path / "adapter", tmp_path / f"jobs-{jobs}", jobs=jobs, registry=REGISTRY)
    one, four = (
        {p.name: p.read_bytes() for p in (tmp_path / f"jobs-{jobs}").rglob("*") if p.is_file()} for jobs in (1, 4)
    )
    assert one == four


def test_a_finished_merge_is_a_no_op(tmp_path: Path) -> None:
    base, merged = tmp_path / "base", tmp_path / "merged"
    saved(base_of(base, "BertForMaskedLM", torch.float32), tmp_path / "adapter")
    merge_checkpoint(base, tmp_path / "adapter", merged, registry=REGISTRY)
    before = {path: path.stat().st_mtime_ns for path in merged.rglob("*")}
    assert merge_checkpoint(base, tmp_path / "adapter", merged, registry=REGISTRY).was_done
    assert {path: path.stat().st_mtime_ns for path in merged.rglob("*")} == before


def test_base_models_are_found_under_their_prefix(tmp_path: Path) -> None:
    """Files of a base model call its tensors without the prefix that a model with a head gives them."""
    from safetensors.torch import load_file, save_file

    base, short = tmp_path / "base", tmp_path / "short"
    saved(
        base_of(base, "GPT2LMHeadModel", torch.float32, "1GB"), tmp_path / "adapter", {"role": r"attention\..*", **LORA}
    )
    shutil.copytree(base, short)
    held = {name.removeprefix("transformer."): tensor for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(held, short / "model.safetensors", metadata={"format": "pt"})
    merge_checkpoint(base, tmp_path / "adapter", tmp_path / "long-merged", registry=REGISTRY)
    merge_checkpoint(short, tmp_path / "adapter", tmp_path / "short-merged", registry=REGISTRY)
    ours, theirs = tensors(tmp_path / "short-merged"), tensors(tmp_path / "long-merged")
    assert all(torch.equal(ours[name.removeprefix("transformer.")], tensor) for name, tensor in theirs.items())


def test_it_loads_in_transformers_as_the_operated_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from families import build
    from transformers import AutoModelForCausalLM

    base = tmp_path / "base"
    op = saved(base_of(base, "LlamaForCausalLM", torch.float32), tmp_path / "adapter")
    _, batch = build("LlamaForCausalLM")
    with torch.no_grad():
        expected = op.model(**batch)[0]
    merge_checkpoint(base, tmp_path / "adapter", tmp_path / "merged", registry=REGISTRY)
    capfd.readouterr()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert "warn" not in capfd.readouterr().err.lower()
    with torch.no_grad():
        found = loaded(**batch)[0]
    # The bound of docs/exactness.md: units of rounding of the dtype, by the depth of the model.
    assert float((found - expected).abs().max() / expected.abs().max()) < 64 * torch.finfo(torch.float32).eps


def test_the_receipt_names_what_was_done(tmp_path: Path) -> None:
    base = tmp_path / "base"
    saved(base_of(base, "BertForMaskedLM", torch.float32), tmp_path / "notes")
    report = merge_checkpoint(base, tmp_path / "notes", tmp_path / "merged", registry=REGISTRY)
    receipt = read_receipt(tmp_path / "merged")
    assert receipt is not None
    record = receipt["merge"]
    assert [one["name"] for one in record["adapters"]] == ["notes"] == list(report.adapters)
    assert record["undo"] == "residue"
    assert (tmp_path / "merged" / "surgery" / "residue.bin").stat().st_size == report.residue_bytes
