"""What the process is set to (threads, default dtype, inference mode) changes no bit, and hostile numbers are told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from operating import REGISTRY, planned
from torch import nn

from surgery import Operation, operate
from surgery.errors import DriftError, SpecError, StateError
from surgery.testing import ToyModel


@contextmanager
def settings(threads: int, dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_default_dtype(before[1])


@pytest.mark.parametrize("init", ["kaiming", "gaussian", "orthogonal"])
def test_an_initialisation_depends_on_seed_and_site_alone(init: str) -> None:
    model = nn.Sequential(nn.Linear(96, 64))
    decided = planned(model, {"target": "0", "adapter": "lora", "rank": 32, "init": init})
    starts = set()
    for threads in (1, 2):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            with settings(threads, dtype), operate(model, decided, registry=REGISTRY) as op:
                assert torch.get_num_threads() == threads
                assert torch.get_default_dtype() == dtype
                tensors = op.trainable()
                assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
                starts.add(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors.values()))
    assert len(starts) == 1


def test_in_inference_mode_adapters_are_trainable_and_merge() -> None:
    model = ToyModel(layers=1).eval()
    decided = planned(model, {"role": r"mlp\..*", "adapter": "lora", "rank": 2})
    with torch.inference_mode():
        op = operate(model, decided, registry=REGISTRY)
        op.merge()
        op.unmerge()
    model(ToyModel.batch()).sum().backward()
    assert all(tensor.grad is not None for tensor in op.trainable().values())
    op.undo()


def two_full_adapters_on_an_infinity() -> tuple[nn.Sequential, Operation]:
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight[0, 0] = torch.inf
    decided = planned(model, {"target": "0", "adapter": "full"})
    op = operate(model, decided, name="a", registry=REGISTRY)
    op.add(decided, "b")
    return model, op


def test_an_infinity_that_no_adapter_moves_stays() -> None:
    model, op = two_full_adapters_on_an_infinity()
    with op:
        op.merge()
        assert model[0].weight[0, 0] == torch.inf
        assert not model[0].weight.isnan().any()


def test_a_merge_that_would_make_a_nan_is_refused_whole() -> None:
    _, op = two_full_adapters_on_an_infinity()
    with op:
        with torch.no_grad():
            op.trainable("b")["0.surgery.b.weight.value"][0, 0] = 1.0  # inf + (1 - inf)
        with pytest.raises(StateError, match="NaN or inf"):
            op.merge()


def test_a_float8_base_is_refused_when_operating() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    decided = planned(model.to(torch.float8_e4m3fn), {"target": "0", "adapter": "full"})
    with pytest.raises(StateError, match="is quantised: float8_e4m3fn"):
        operate(model, decided, registry=REGISTRY)


@pytest.mark.parametrize("option", [{"alpha": 1e308}, {"rank": 2**63 - 1}])
def test_numbers_beyond_reason_are_refused(option: dict[str, float]) -> None:
    with pytest.raises(SpecError):
        planned(nn.Sequential(nn.Linear(2, 2)), {"target": "0", "adapter": "lora", "rank": 1, **option})


def test_an_adapter_is_not_saved_beside_a_base_that_was_changed(tmp_path: object) -> None:
    model = ToyModel(layers=1)
    with operate(model, planned(model, {"role": r"mlp\..*", "adapter": "lora", "rank": 2}), registry=REGISTRY) as op:
        weight = model.get_submodule("body.layers.0.up").weight
        kept = weight.detach().clone()
        with torch.no_grad():
            weight[0, 0] += 1
        with pytest.raises(DriftError):
            op.save(f"{tmp_path}/a")
        with torch.no_grad():
            weight.copy_(kept)


def test_flags_that_were_changed_meanwhile_come_back() -> None:
    model = ToyModel(layers=1)
    model.head.weight.requires_grad = False
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with operate(model, planned(model, {"role": r"mlp\..*", "adapter": "lora", "rank": 2}), registry=REGISTRY):
        for parameter in model.parameters():
            parameter.requires_grad = True
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
