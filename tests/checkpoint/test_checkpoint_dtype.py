"""Merging into another dtype: rounded once, as transformers loads it, and the base's files come back byte for byte."""

from __future__ import annotations

import json
import shutil
import tempfile
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merging import MIXED, base_of, bytes_of, saved, tensors
from operating import LORA, REGISTRY
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_checkpoint_rounding import DTYPES, peft_folder, rounded

from surgery import merge_checkpoint, unmerge_checkpoint, verify_checkpoint
from surgery.checkpoint.recast import holds
from surgery.errors import CheckpointError, DriftError, StateError

MIDDLES = [1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, -1 - 2.0**-8, 2.0**-25, 3 * 2.0**-25, 0.0, -0.0, 1.5]
TINY = [2.0**-40, -(2.0**-40), 0.0, 2.0**-12, 1.0]


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.dtype]:
    rows, columns, rank = (draw(st.integers(1, 3)) for _ in range(3))
    finite = st.floats(-8, 8, width=32, allow_nan=False)

    def numbers(*shape: int, among: list[float]) -> torch.Tensor:
        count = shape[0] * shape[1]
        some = st.one_of(st.sampled_from(among), finite)
        return torch.tensor(draw(st.lists(some, min_size=count, max_size=count))).view(shape)

    before, after = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(DTYPES))
    weight = numbers(rows, columns, among=MIDDLES).to(before)
    return weight, numbers(rows, rank, among=TINY), numbers(rank, columns, among=TINY), after


@settings(max_examples=150, deadline=None)
@given(cases())
def test_it_is_the_rounded_sum_of_rationals(
    case: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.dtype],
) -> None:
    weight, up, down, dtype = case
    root = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        base, rank = root / "base", down.shape[0]
        base.mkdir()
        save_file({"map.weight": weight, "other.weight": weight.clone()}, base / "model.safetensors")
        peft_folder(root / "a", {"map.lora_A.weight": down, "map.lora_B.weight": up}, lora_alpha=rank)
        name = str(dtype).removeprefix("torch.")
        undo = "residue" if holds(dtype, weight.dtype) else "copy"
        merge_checkpoint(base, root / "a", root / "merged", dtype=name, undo=undo, registry=REGISTRY)
        got = load_file(root / "merged" / "model.safetensors")
        assert {one.dtype for one in got.values()} == {dtype}
        for row in range(weight.shape[0]):
            for column in range(weight.shape[1]):
                before = Fraction(float(weight[row, column]))
                added = sum(Fraction(float(up[row, k])) * Fraction(float(down[k, column])) for k in range(rank))
                assert float(got["map.weight"][row, column]) == float(rounded(before + added, dtype))
                assert float(got["other.weight"][row, column]) == float(rounded(before, dtype))
        unmerge_checkpoint(root / "merged", root / "back", registry=REGISTRY)
        assert bytes_of(root / "back") == bytes_of(base)
    finally:
        shutil.rmtree(root)


@pytest.mark.parametrize("undo", ["copy", "file", "residue"])
@pytest.mark.parametrize("after", DTYPES, ids=str)
@pytest.mark.parametrize("before", DTYPES, ids=str)
def test_there_and_back_through_every_pair(before: torch.dtype, after: torch.dtype, undo: str, tmp_path: Path) -> None:
    base, merged, back = (tmp_path / name for name in ("base", "merged", "back"))
    saved(base_of(base, "LlamaForCausalLM", before), tmp_path / "adapter")
    name = str(after).removeprefix("torch.")
    options = {"dtype": name, "undo": undo, "registry": REGISTRY}
    if undo == "residue" and not holds(after, before):
        with pytest.raises(StateError, match="does not hold its numbers") as caught:
            merge_checkpoint(base, tmp_path / "adapter", merged, **options)
        assert "--undo copy" in caught.value.hint
        assert not merged.exists()
        return
    merge_checkpoint(base, tmp_path / "adapter", merged, **options)
    assert merge_checkpoint(base, tmp_path / "adapter", merged, **options).was_done
    for path in merged.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            assert {file.get_tensor(key).dtype for key in file.keys()} == {after}  # noqa: SIM118 - it is no dict
    assert json.loads((merged / "config.json").read_text())["dtype"] == name
    index = json.loads((merged / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(len(one) for one in tensors(merged).values())
    assert verify_checkpoint(merged, base, registry=REGISTRY).against == ("receipt", "base")
    unmerge_checkpoint(merged, back, registry=REGISTRY)
    assert bytes_of(back) == bytes_of(base)
    assert not (back / "surgery").exists()


def test_one_of_several_leaves_and_another_comes(tmp_path: Path) -> None:
    base = tmp_path / "base"
    for index, name in enumerate(("a", "b")):
        saved(base_of(base, "GPT2LMHeadModel", torch.bfloat16), tmp_path / name, *MIXED, seed=index)
        shutil.rmtree(base)
    base_of(base, "GPT2LMHeadModel", torch.bfloat16)
    both = [tmp_path / "a", tmp_path / "b"]
    merge_checkpoint(base, both, tmp_path / "ab", dtype="float32", registry=REGISTRY)
    merge_checkpoint(base, tmp_path / "b", tmp_path / "b-wide", dtype="float32", registry=REGISTRY)
    unmerge_checkpoint(tmp_path / "ab", tmp_path / "without-a", adapters=["a"], registry=REGISTRY)
    merge_checkpoint(tmp_path / "without-a", tmp_path / "a", tmp_path / "again", registry=REGISTRY)
    assert bytes_of(tmp_path / "without-a") == bytes_of(tmp_path / "b-wide")
    assert bytes_of(tmp_path / "again") == bytes_of(tmp_path / "ab")
    merge_checkpoint(tmp_path / "b-wide", tmp_path / "a", tmp_path / "narrow", dtype="bfloat16", registry=REGISTRY)
    merge_checkpoint(base, both, tmp_path / "plain", registry=REGISTRY)
    assert bytes_of(tmp_path / "narrow") == bytes_of(tmp_path / "plain")
    assert not (tmp_path / "narrow" / "surgery" / "original").exists()


@pytest.mark.parametrize(("dtype", "undo"), [("float32", "residue"), ("float16", "copy")])
def test_in_place(dtype: str, undo: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    saved(base_of(base, "LlamaForCausalLM", torch.bfloat16), tmp_path / "a")
    before = bytes_of(base)
    options = {"dtype": dtype, "undo": undo, "registry": REGISTRY}
    merge_checkpoint(base, tmp_path / "a", tmp_path / "new", **options)
    merge_checkpoint(base, tmp_path / "a", in_place=True, **options)
    assert bytes_of(base) == bytes_of(tmp_path / "new")
    assert merge_checkpoint(base, tmp_path / "a", in_place=True, **options).was_done
    unmerge_checkpoint(base, in_place=True, registry=REGISTRY)
    assert bytes_of(base) == before
    assert not (base / "surgery").exists()


def test_it_loads_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    saved(base_of(tmp_path / "base", "LlamaForCausalLM", torch.bfloat16), tmp_path / "a")
    merge_checkpoint(tmp_path / "base", tmp_path / "a", tmp_path / "wide", dtype="float32", registry=REGISTRY)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "wide")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    found = {
        name: tensor for path in (tmp_path / "wide").glob("*.safetensors") for name, tensor in load_file(path).items()
    }
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in found.items())


def test_what_has_no_sixteen_bits_stays(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    held = {
        "map.weight": torch.ones(3, 3),
        "odd": torch.arange(3, dtype=torch.uint8),
        "long": torch.arange(2),
        "small.weight": torch.ones(3, 3).to(torch.float8_e4m3fn),
        "nan.weight": torch.tensor([[float("nan"), float("inf"), -0.0]]),
    }
    save_file(held, base / "model.safetensors", metadata={"made": "by hand"})
    peft_folder(tmp_path / "a", {"map.lora_A.weight": torch.ones(2, 3), "map.lora_B.weight": torch.ones(3, 2)})
    merge_checkpoint(base, tmp_path / "a", tmp_path / "out", dtype="bfloat16", undo="copy", registry=REGISTRY)
    got = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(got[name].view(torch.uint8), held[name].view(torch.uint8)) for name in ("odd", "long"))
    assert got["small.weight"].dtype == torch.float8_e4m3fn
    assert str(got["nan.weight"].tolist()) == "[[nan, inf, -0.0]]"
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"made": "by hand"}
    unmerge_checkpoint(tmp_path / "out", tmp_path / "back", registry=REGISTRY)
    assert bytes_of(tmp_path / "back") == bytes_of(base)


def test_overflow_is_refused_before_anything_appears(tmp_path: Path) -> None:
    for name in ("map.weight", "other.weight"):
        root = tmp_path / name
        (root / "base").mkdir(parents=True)
        held = {one: torch.ones(3, 3) for one in ("map.weight", "other.weight")}
        held[name][1, 2] = 65520.0
        save_file(held, root / "base" / "model.safetensors")
        factors = {"map.lora_A.weight": torch.ones(2, 3) / 99, "map.lora_B.weight": torch.ones(3, 2)}
        peft_folder(root / "a", factors)
        with pytest.raises(StateError, match="NaN or inf in float16") as caught:
            merge_checkpoint(root / "base", root / "a", root / "out", dtype="float16", undo="none", registry=REGISTRY)
        assert f"tensor '{name}', row 1, column 2" in str(caught.value)
        assert not (root / "out").exists()


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors.head", "config.json"])
def test_originals_that_were_changed_are_noticed(name: str, tmp_path: Path) -> None:
    saved(base_of(tmp_path / "base", "LlamaForCausalLM", torch.bfloat16), tmp_path / "a", {"role": ".*query", **LORA})
    merge_checkpoint(tmp_path / "base", tmp_path / "a", tmp_path / "out", dtype="float32", registry=REGISTRY)
    path = tmp_path / "out" / "surgery" / "original" / name
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    with pytest.raises((DriftError, CheckpointError)):
        unmerge_checkpoint(tmp_path / "out", tmp_path / "back", registry=REGISTRY)
    assert not (tmp_path / "back").exists()


def test_an_unknown_dtype(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="dtype='float8' is unknown"):
        merge_checkpoint(tmp_path, tmp_path, tmp_path / "out", dtype="float8", registry=REGISTRY)
