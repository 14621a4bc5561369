"""Round trips of arbitrary numbers, against sums of rationals."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operating import REGISTRY
from safetensors.torch import load_file, save_file

from surgery import merge_checkpoint, unmerge_checkpoint
from surgery.errors import CheckpointError, StateError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def peft_folder(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    """Write a folder as PEFT does."""
    folder.mkdir(parents=True)
    save_file(
        {f"base_model.model.{name}": t.contiguous() for name, t in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["map"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


def rounded(value: Fraction, dtype: torch.dtype) -> torch.Tensor:
    """Return the number of `dtype` nearest to a rational, ties to even, from its neighbours alone."""
    guess = torch.tensor(float(value), dtype=torch.float64).to(dtype)
    upwards, downwards = (torch.tensor(end, dtype=dtype) for end in (math.inf, -math.inf))
    near = [guess, torch.nextafter(guess, upwards), torch.nextafter(guess, downwards)]
    near = [one for one in near if bool(torch.isfinite(one))]
    bits = {2: torch.int16, 4: torch.int32}[guess.element_size()]
    return min(near, key=lambda one: (abs(Fraction(float(one)) - value), int(one.view(bits)) & 1))


finite = st.floats(-8, 8, width=16, allow_nan=False)


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float, bool]:
    rows, columns, rank = (draw(st.integers(1, 4)) for _ in range(3))
    dtype = draw(st.sampled_from(DTYPES))

    def numbers(*shape: int) -> torch.Tensor:
        count = math.prod(shape)
        return torch.tensor(draw(st.lists(finite, min_size=count, max_size=count))).view(shape)

    scale = draw(st.sampled_from([1.0, 0.5, 1 / 3, 2.0**-20, 7.0]))
    return numbers(rows, columns).to(dtype), numbers(rows, rank), numbers(rank, columns), scale, draw(st.booleans())


@settings(max_examples=60, deadline=None)
@given(cases())
def test_merged_is_the_rounded_sum_and_unmerged_the_base(
    case: tuple[torch.Tensor, torch.Tensor, torch.Tensor, float, bool],
) -> None:
    weight, up, down, scale, with_copy = case
    root = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        base = root / "base"
        base.mkdir()
        save_file({"map.weight": weight, "other.weight": weight.clone()}, base / "model.safetensors")
        rank = down.shape[0]
        alpha = scale * rank
        peft_folder(root / "a", {"map.lora_A.weight": down, "map.lora_B.weight": up}, lora_alpha=alpha)
        undo = "copy" if with_copy else "residue"
        try:
            merge_checkpoint(base, root / "a", root / "merged", undo=undo, registry=REGISTRY)
        except StateError as error:
            assert "NaN or inf" in error.what
            return
        got = load_file(root / "merged" / "model.safetensors")
        used = Fraction(float(alpha / rank))
        for row in range(weight.shape[0]):
            for column in range(weight.shape[1]):
                added = used * sum(Fraction(float(up[row, k])) * Fraction(float(down[k, column])) for k in range(rank))
                before = weight[row, column]
                expected = before if added == 0 else rounded(Fraction(float(before)) + added, weight.dtype)
                assert float(got["map.weight"][row, column]) == float(expected)
        assert torch.equal(got["other.weight"], weight)
        unmerge_checkpoint(root / "merged", root / "back", registry=REGISTRY)
        assert (root / "back" / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    finally:
        shutil.rmtree(root)


def test_peft_on_conv1d_and_embeddings_is_turned(tmp_path: Path) -> None:
    from merging import base_of

    model = base_of(tmp_path / "base", "GPT2LMHeadModel", torch.float32)
    held = dict(model.named_parameters())
    name = "transformer.h.0.attn.c_attn"
    fan_in, fan_out = held[f"{name}.weight"].shape
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, fan_in, generator=generator), torch.randn(fan_out, 2, generator=generator)
    table = held["transformer.wte.weight"]
    rows, columns = (
        torch.randn(2, table.shape[0], generator=generator),
        torch.randn(table.shape[1], 2, generator=generator),
    )
    folder = peft_folder(
        tmp_path / "a",
        {
            f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up,
            "transformer.wte.lora_embedding_A": rows, "transformer.wte.lora_embedding_B": columns,
        },
        alpha_pattern={"wte": 5},
    )  # fmt: skip
    merge_checkpoint(tmp_path / "base", folder, tmp_path / "merged", registry=REGISTRY)
    got = {k: v for p in (tmp_path / "merged").glob("*.safetensors") for k, v in load_file(p).items()}
    for key, before, change in (
        (f"{name}.weight", held[f"{name}.weight"], 1.5 * (up.double() @ down.double()).T),
        ("transformer.wte.weight", table, 2.5 * (columns.double() @ rows.double()).T),
    ):
        assert torch.equal(got[key], (before.detach().double() + change).float())
    assert merge_checkpoint(
        tmp_path / "base", folder, tmp_path / "half", weights={"a": 0.5}, registry=REGISTRY
    ).adapters == ("a",)
    half = {k: v for p in (tmp_path / "half").glob("*.safetensors") for k, v in load_file(p).items()}
    expected = held[f"{name}.weight"].detach().double() + 0.75 * (up.double() @ down.double()).T
    assert torch.equal(half[f"{name}.weight"], expected.float())


@pytest.mark.parametrize(
    ("config", "names", "message"),
    [
        ({"peft_type": "LOHA"}, ("map.lora_A.weight", "map.lora_B.weight"), "type 'LOHA' are not read"),
        ({"use_dora": True}, ("map.lora_A.weight", "map.lora_B.weight"), "DoRA"),
        ({"alpha_pattern": {"(a+)+$": 1}}, ("map.lora_A.weight", "map.lora_B.weight"), "regular expressions"),
        ({"lora_alpha": "inf"}, ("map.lora_A.weight", "map.lora_B.weight"), "lora_alpha is 'inf'"),
        ({}, ("map.lora_A.weight",), "lacks one of its two factors"),
        ({}, ("nowhere.lora_A.weight", "nowhere.lora_B.weight"), "has no home: no nowhere in the base"),
        ({}, ("map.lora_A.weight", "map.lora_B.weight", "head.weight"), "'base_model.model.head.weight' has no home"),
    ],
)
def test_other_peft_folders_are_refused(
    config: dict[str, Any], names: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    save_file({"map.weight": torch.ones(3, 3)}, base / "model.safetensors")
    shapes = {name: (3, 2) if "lora_B" in name else (2, 3) for name in names}
    folder = peft_folder(tmp_path / "a", {name: torch.ones(shape) for name, shape in shapes.items()}, **config)
    with pytest.raises(CheckpointError, match=message.replace("(", r"\(")):
        merge_checkpoint(base, folder, tmp_path / "out", registry=REGISTRY)
    assert not (tmp_path / "out").exists()
