"""What nobody means well with: sealed receipts that say nonsense, folders with FIFOs, PEFT folders that do more than add."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from operating import REGISTRY
from safetensors.torch import save_file
from tiny import snapshot, write_base

from surgery import diff_checkpoints, merge_checkpoint, unmerge_checkpoint, verify_checkpoint
from surgery.checkpoint import RECEIPT
from surgery.checkpoint.receipt import _sealed
from surgery.checkpoint.record import _digest
from surgery.errors import CheckpointError, SurgeryError

DOWN, UP = torch.tensor([[1.0, 2.0, 0.0, -1.0]]), torch.tensor([[1.0], [0.5], [-1.0], [2.0]])
FACTORS = {"q.lora_A.weight": DOWN, "q.lora_B.weight": UP}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tensors = {"q.weight": torch.randn(4, 4), "norm.weight": torch.ones(4)}
    return write_base(tmp_path / "base", tensors)


def peft(folder: Path, tensors: Mapping[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir()
    named = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors", {"format": "pt"})
    said = {"peft_type": "LORA", "lora_alpha": 4, **config}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


def resealed(folder: Path, place: tuple[Any, ...], value: Any) -> None:
    receipt = json.loads((folder / RECEIPT).read_bytes())
    del receipt["sha256"]
    inner = receipt
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    if "merge" in receipt:
        receipt["merge"].pop("sha256")
        receipt["merge"]["sha256"] = _digest(receipt["merge"])
    (folder / RECEIPT).write_bytes(_sealed(receipt))


NONSENSE: tuple[tuple[tuple[Any, ...], Any], ...] = (
    (("merge", "heads"), None),
    (("merge", "written"), [1]),
    (("merge", "written"), {"model.safetensors": 1}),
    (("merge", "undo"), []),
    (("merge", "undo"), "else"),
    (("merge", "dtype"), "int8"),
    (("merge", "base"), 0),
    (("merge", "fast"), "no"),
    (("merge", "adapters"), []),
    (("merge", "adapters", 0, "factor"), None),
    (("merge", "adapters", 0, "name"), "../../.."),
    (("merge", "adapters", 0, "files"), 1),
    (("merge", "adapters", 0, "files"), [1]),
    (("merge", "tensors", "q.weight", "at"), 1.5),
    (("merge", "tensors", "q.weight", "at"), 10**30),
    (("merge", "tensors", "q.weight", "blocks"), [-1]),
    (("merge", "tensors", "q.weight", "blocks"), ["a"]),
    (("merge", "tensors", "q.weight", "blocks"), [1 << 62]),
    (("merge", "tensors", "q.weight", "base"), None),
)


@pytest.mark.parametrize(("place", "value"), NONSENSE)
def test_a_sealed_record_that_makes_no_sense_is_damaged(
    base: Path, tmp_path: Path, place: tuple[Any, ...], value: Any
) -> None:
    merge_checkpoint(base, peft(tmp_path / "a", FACTORS), tmp_path / "merged", registry=REGISTRY)
    resealed(tmp_path / "merged", place, value)
    before = snapshot(tmp_path / "merged")
    with pytest.raises(CheckpointError, match="record of the merge is damaged"):
        unmerge_checkpoint(tmp_path / "merged", tmp_path / "out", registry=REGISTRY)
    with pytest.raises(CheckpointError, match="record of the merge is damaged"):
        unmerge_checkpoint(tmp_path / "merged", in_place=True, registry=REGISTRY)
    with pytest.raises(CheckpointError, match="record of the merge is damaged"):
        verify_checkpoint(tmp_path / "merged", registry=REGISTRY)
    assert snapshot(tmp_path / "merged") == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["tensors", "heads"])
def test_a_sealed_receipt_of_a_base_that_makes_no_sense_is_damaged(base: Path, tmp_path: Path, part: str) -> None:
    merge_checkpoint(base, peft(tmp_path / "a", FACTORS), in_place=True, registry=REGISTRY)
    unmerge_checkpoint(base, in_place=True, registry=REGISTRY)
    resealed(base, ("weights", part), [1])
    with pytest.raises(CheckpointError, match="the receipt is damaged"):
        verify_checkpoint(base, registry=REGISTRY)


@pytest.mark.parametrize("is_fifo", [True, False])
def test_kept_headers_are_files_of_a_size(base: Path, tmp_path: Path, is_fifo: bool) -> None:
    """They are read before they are compared with the receipt: neither waited for nor read without end."""
    adapter, merged = peft(tmp_path / "a", FACTORS), tmp_path / "merged"
    merge_checkpoint(base, adapter, merged, dtype="bfloat16", undo="copy", registry=REGISTRY)
    head = merged / "surgery" / "original" / "model.safetensors.head"
    head.unlink()
    if is_fifo:
        os.mkfifo(head)
    else:
        head.touch()
        os.truncate(head, 1 << 40)
    with pytest.raises(CheckpointError, match="no file, or too large"):
        unmerge_checkpoint(merged, tmp_path / "out", registry=REGISTRY)


WHOLE = {"q.weight": torch.zeros(4, 4)}
REFUSED: tuple[tuple[Mapping[str, torch.Tensor], dict[str, Any], str], ...] = (
    ({"q.lora_A.weight": torch.zeros(0, 4), "q.lora_B.weight": torch.zeros(4, 0)}, {}, "factors"),
    ({**FACTORS, "q.lora_A": DOWN * 2}, {}, "are the same factor"),
    ({**FACTORS, **WHOLE}, {"modules_to_save": ["q"]}, "saved whole, and adapted"),
    ({**WHOLE, "model.q.weight": torch.ones(4, 4)}, {"modules_to_save": ["q"]}, "are both for"),
    (FACTORS, {"fan_in_fan_out": True}, "fan_in_fan_out"),
    (FACTORS, {"layer_replication": [[0, 1], [0, 1]]}, "layer_replication"),
    (FACTORS, {"lora_alpha": 10**400}, "no number"),
    *((FACTORS, {"init_lora_weights": name}, "has changed the base") for name in ("pissa_niter_4", "OLoRA", "loftq")),
)


@pytest.mark.parametrize(("held", "config", "match"), REFUSED)
def test_peft_folders_that_would_be_merged_wrongly_are_refused(
    base: Path, tmp_path: Path, held: Mapping[str, torch.Tensor], config: dict[str, Any], match: str
) -> None:
    with pytest.raises(CheckpointError, match=match):
        merge_checkpoint(base, peft(tmp_path / "a", held, **config), tmp_path / "out", registry=REGISTRY)
    assert not (tmp_path / "out").exists()


def test_adapters_of_eight_bits_are_searched_for_nan(base: Path, tmp_path: Path) -> None:
    small = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in FACTORS.items()}
    merge_checkpoint(base, peft(tmp_path / "a", small), tmp_path / "small", registry=REGISTRY)
    merge_checkpoint(base, peft(tmp_path / "b", FACTORS), tmp_path / "wide", registry=REGISTRY)
    assert diff_checkpoints(tmp_path / "small", tmp_path / "wide", registry=REGISTRY).is_empty
    small["q.lora_A.weight"] = torch.full((1, 4), torch.nan).to(torch.float8_e4m3fn)
    with pytest.raises(SurgeryError, match="NaN"):
        merge_checkpoint(base, peft(tmp_path / "c", small), tmp_path / "out", registry=REGISTRY)


def test_a_header_may_speak_of_any_number_of_empty_matrices(base: Path, tmp_path: Path) -> None:
    """Nothing is made for each of them."""
    data = (base / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    end = len(data) - 8 - length
    table["none"] = {"dtype": "F32", "shape": [2**61, 0, 2**61], "data_offsets": [end, end]}
    text = json.dumps(table).encode()
    (base / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    adapter, merged = peft(tmp_path / "a", FACTORS), tmp_path / "merged"
    merge_checkpoint(base, adapter, merged, dtype="bfloat16", undo="copy", registry=REGISTRY)
    unmerge_checkpoint(merged, tmp_path / "out", registry=REGISTRY)
    again = snapshot(tmp_path / "out")
    del again[RECEIPT]
    assert again == snapshot(base)


def test_differences_of_numbers_without_squares_and_of_wide_rows(tmp_path: Path) -> None:
    """JSON knows no NaN, and a row of millions is not looked at in 96 directions."""
    for name, value in (("a", 1e300), ("b", -1e308)):
        tensors = {
            "huge": torch.full((4, 4), value, dtype=torch.float64),
            "wide": torch.full((1, 300_000), value / 1e300),
            "zero": torch.full((3, 3), float(name == "b")),
        }
        write_base(tmp_path / name, tensors)
    found = diff_checkpoints(tmp_path / "a", tmp_path / "b", registry=REGISTRY)
    huge, wide, zero = found.tensors
    assert [huge.relative, huge.effective_rank, wide.effective_rank, zero.relative] == [math.inf, 0, 0, math.inf]
    said = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [one["relative"] is None for one in said["tensors"]] == [True, False, True]


def test_the_report_of_a_merge_into_zeros_is_json(tmp_path: Path) -> None:
    zeros = write_base(tmp_path / "zeros", {"q.weight": torch.zeros(4, 4)})
    report = merge_checkpoint(zeros, peft(tmp_path / "a", FACTORS), tmp_path / "out", registry=REGISTRY)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["tensors"][0]["delta_rel"] is None
