"""Tied tensors: shared or cut, by several adapters, under any of their names, saved while merged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from operating import REGISTRY, base_bits, move, operated, planned, unchanged

from surgery import load_adapter, operate
from surgery.errors import StateError
from surgery.testing import ToyModel, assert_same_state, model_state

HEAD, EMBEDDING = "head", r"body\.embedding"


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize(("first", "second"), [(HEAD, EMBEDDING), (EMBEDDING, HEAD), (HEAD, HEAD), (".*", EMBEDDING)])
def test_two_adapters_share_one_tensor_under_different_names(adapter: str, first: str, second: str) -> None:
    model, batch = ToyModel(), ToyModel.batch()
    more = {"rank": 1} if adapter == "lora" else {}
    before = model_state(model)
    op = operate(
        model,
        planned(model, {"target": first, "adapter": adapter, "tied": "share", **more}),
        name="a",
        registry=REGISTRY,
    )
    op.add(planned(model, {"target": second, "adapter": adapter, "tied": "share", **more}), "b")
    assert sum(slot.parameter is model.head._parameters["weight"] for slot in op.body.slots.values()) == 1
    move(op, 1)
    live = model(batch)
    op.merge("a")
    assert torch.allclose(model(batch), live, atol=1e-4)
    op.merge("b")
    both = base_bits(model)
    assert torch.allclose(model(batch), live, atol=1e-4)
    assert model.head.weight is model.body.embedding.weight
    op.unmerge("a")
    op.unmerge()
    op.merge("b", "a")
    assert base_bits(model) == both
    op.undo()
    assert_same_state(before, model_state(model))


@pytest.mark.parametrize(("first", "second"), [("share", "untie"), ("untie", "share")])
def test_one_tensor_is_not_shared_and_cut_at_once(first: str, second: str) -> None:
    model = ToyModel()
    with operated(model, {"target": HEAD, "adapter": "full", "tied": first}) as op:
        decided = planned(model, {"target": EMBEDDING, "adapter": "full", "tied": second})
        with unchanged(model), pytest.raises(StateError, match="say the same in both specs"):
            op.add(decided, "b")
        op.merge()


def test_two_cuts_of_one_tensor() -> None:
    model, batch = ToyModel(), ToyModel.batch()
    before = model_state(model)
    rule = {"adapter": "lora", "rank": 1, "tied": "untie"}
    op = operated(model, {"target": f"{HEAD}|{EMBEDDING}", **rule, "expect": 2})
    live = model(batch)
    op.merge()
    assert not torch.equal(model.head.weight, model.body.embedding.weight)
    assert torch.allclose(model(batch), live, atol=1e-4)
    op.undo()
    assert_same_state(before, model_state(model))


def test_a_cut_that_is_merged_keeps_others_away() -> None:
    """While the cut is merged the other name looks untied; an adapter built then would be wrong after unmerging."""
    model = ToyModel()
    with operated(model, {"target": HEAD, "adapter": "full", "tied": "untie"}) as op:
        op.merge()
        decided = planned(model, {"target": EMBEDDING, "adapter": "full"})
        with unchanged(model), pytest.raises(StateError, match="a merge is live in"):
            op.add(decided, "b")


@pytest.mark.parametrize("adapter", ["lora", "full", "both"])
@pytest.mark.parametrize("tied", ["share", "untie"])
@pytest.mark.parametrize("target", [HEAD, EMBEDDING, f"{HEAD}|{EMBEDDING}", ".*"])
def test_an_adapter_that_is_saved_while_merged_loads_on_the_base(
    adapter: str, tied: str, target: str, tmp_path: Path
) -> None:
    model, batch = ToyModel(), ToyModel.batch()
    kind = {"adapter": "lora", "rank": 1} if adapter == "lora" else {"adapter": "full"}
    with operated(model, {"target": target, "tied": tied, "allow_oversized": True, **kind}) as op:
        if adapter == "both":
            op.add(
                planned(model, {"target": target, "tied": tied, "adapter": "lora", "rank": 1, "allow_oversized": True}),
                "other",
            )
        live = model(batch)
        op.save(tmp_path / "before", "default")
        op.merge()
        op.save(tmp_path / "merged", "default")
        op.unmerge()
        op.merge(*[name for name in op.names if name != "default"] or ["default"])
        op.save(tmp_path / "other", "default")
    for name in ("merged", "other"):
        for file in (tmp_path / "before").iterdir():
            assert (tmp_path / name / file.name).read_bytes() == file.read_bytes()
    with load_adapter(ToyModel(), tmp_path / "merged", registry=REGISTRY) as op:
        if adapter != "both":
            assert torch.equal(op.model(batch), live)
