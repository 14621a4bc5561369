"""Adapters that do not commute, on one tensor of a file: canonical order decides, and nothing else does."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from merging import SHARDS, base_of, bytes_of, tensors
from operating import LORA, REGISTRY, planned
from oracle import rounded

from surgery import load_adapter, merge_checkpoint, operate, unmerge_checkpoint

WHERE = "model.layers.0.self_attn.k_proj"
RULES: dict[str, dict[str, Any]] = {
    "lora": {"target": WHERE.replace(".", r"\."), **LORA, "alpha": 2},
    "ia3": {"role": r"attention\.key", "layers": [0], "adapter": "ia3"},
    "full": {"target": WHERE.replace(".", r"\."), "adapter": "full"},
}


def made(base: Path, folder: Path, kind: str, draw: torch.Generator) -> dict[str, torch.Tensor]:
    """Save an adapter of few bits, so that sums and products of it are exact in float64; return its tensors."""
    model = base_of(base, "LlamaForCausalLM", torch.bfloat16)
    held = {}
    with operate(model, planned(model, RULES[kind]), registry=REGISTRY) as op:
        for name, parameter in op.trainable().items():
            bits = torch.randint(-7, 8, parameter.shape, generator=draw) / 16
            with torch.no_grad():
                parameter.copy_(bits + 1 if kind == "ia3" else bits)
            held[name.rpartition(".")[2]] = parameter.detach().double()
        op.save(folder)
    return held


def step(kind: str, held: dict[str, torch.Tensor], value: torch.Tensor) -> torch.Tensor:
    """What one adapter makes of a weight, exactly."""
    if kind == "full":
        return held["value"]
    if kind == "ia3":
        return value * held["scale"][:, None]
    return value + held["B"] @ held["A"]


def order_decides(root: Path, first: str, second: str) -> None:
    """Merge two adapters on one tensor, of which `first` is called a and `second` b, and compare with a sum by hand."""
    base, draw = root / "base", torch.Generator().manual_seed(3)
    held = {name: (kind, made(base, root / name, kind, draw)) for name, kind in (("a", first), ("b", second))}
    weight = dict(base_of(base, "LlamaForCausalLM", torch.bfloat16).named_parameters())[f"{WHERE}.weight"].detach()
    # What acts on parameters comes before what acts on outputs, and of those the names decide.
    names = sorted(held, key=lambda name: (held[name][0] != "full", name))
    other = list(reversed(names))
    results = []
    for order in (names, other):
        value = weight.double()
        for name in order:
            value = step(*held[name], value)
        numbers = [float(rounded(Fraction(number), torch.bfloat16)) for number in value.flatten().tolist()]
        results.append(torch.tensor(numbers, dtype=torch.float64).view_as(weight).bfloat16())
    assert not torch.equal(*results), "these commute, and tell nothing"
    for folders, out in ((["a", "b"], "ab"), (["b", "a"], "ba")):
        merge_checkpoint(base, [root / name for name in folders], root / out, registry=REGISTRY)
    merge_checkpoint(base, root / "b", root / "only-b", registry=REGISTRY)
    merge_checkpoint(root / "only-b", root / "a", root / "b-then-a", registry=REGISTRY)
    got = tensors(root / "ab")
    assert torch.equal(got[f"{WHERE}.weight"].view(torch.bfloat16).view_as(weight), results[0])
    assert bytes_of(root / "ab") == bytes_of(root / "ba") == bytes_of(root / "b-then-a")
    model = base_of(root / "again", "LlamaForCausalLM", torch.bfloat16)
    op = load_adapter(model, root / "b", name="b", registry=REGISTRY)
    load_adapter(op, root / "a", name="a")
    op.merge()
    op.finalize().save_pretrained(root / "want", max_shard_size=SHARDS)
    want = tensors(root / "want")
    assert [name for name in want if not torch.equal(got[name], want[name])] == []
    unmerge_checkpoint(root / "ab", root / "ab-without-a", adapters=["a"], registry=REGISTRY)
    assert bytes_of(root / "ab-without-a") == bytes_of(root / "only-b")
    unmerge_checkpoint(root / "ab", root / "back", registry=REGISTRY)
    assert bytes_of(root / "back") == bytes_of(base)


@pytest.mark.parametrize(
    "pair",
    [("lora", "ia3"), ("ia3", "lora"), ("lora", "full"), ("full", "lora"), ("full", "ia3")],
    ids="-".join,
)
def test_the_canonical_order_decides(pair: tuple[str, str], tmp_path: Path) -> None:
    order_decides(tmp_path, *pair)
