"""What an adapter does to the model around it: gradients, its own state, and the adapters beside it."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgery.adapter import Adapter, AdapterType
from surgery.architecture import Site
from surgery.operation import Operation, load_adapter, operate
from surgery.planning import Plan, plan
from surgery.registry import Registry
from surgery.spec import Options, Rule
from surgery.testing.state import model_state
from surgery.testing.toy import ToyModel, perturb, toy_registry

__all__ = ["check_beside", "check_draws", "check_fresh", "check_state", "check_tensors"]


def check_tensors(model: nn.Module, decided: Plan, registry: Registry, dtype: torch.dtype) -> None:
    """Every trainable tensor belongs to one site, is trainable, and has a part in what the model computes."""
    with operate(model, decided, registry=registry) as op:
        for cls in {type(built.adapter) for built in op.body.built["default"]}:
            _check_activate(cls)
        owners: dict[int, str] = {}
        for built in op.body.built["default"]:
            for name, parameter in built.adapter.named_parameters():
                where = f"{name!r} on {built.edit.site.key}"
                assert parameter.requires_grad, f"the parameter {where} takes no gradient: make what is frozen a buffer"
                owner = owners.setdefault(id(parameter), where)
                assert owner == where, f"the parameters {owner} and {where} are one: each site must have its own"
        model.train()
        has_part = model(ToyModel.batch()).requires_grad
        model.eval()
        assert has_part, "no trainable tensor has a part in the output: fold (or activate) leaves them out or detaches"


def _check_activate(cls: type[Adapter]) -> None:
    if not cls.activates:
        return
    method = inspect.getattr_static(cls, "activate")
    assert method is not inspect.getattr_static(Adapter, "activate"), (
        f"{cls.__name__} sets `activates` and does not implement `activate`"
    )
    assert isinstance(method, classmethod), (
        f"{cls.__name__}.activate must be a classmethod: @classmethod, def activate(cls, group, inputs, output)"
    )


def check_state(model: nn.Module, decided: Plan, registry: Registry, dtype: torch.dtype) -> None:
    """A forward changes no tensor of an adapter, and in evaluation it gives the same twice."""
    batch = ToyModel.batch()
    with operate(model, decided, registry=registry) as op:
        perturb(op, 7)
        assert torch.equal(model(batch), model(batch)), (
            "two forwards in evaluation mode differ: `activate` may drop out only while `training` is set"
        )
        for is_training in (False, True):
            before = _tensors(op)
            model.train(is_training)
            model(batch)
            model.eval()
            after = _tensors(op)
            changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
            assert not changed, f"a forward changes {changed[0]}: fold and activate must change nothing"


def _tensors(op: Operation) -> dict[str, torch.Tensor]:
    """Copies of every tensor that an adapter holds: parameters, buffers, and plain attributes."""
    held: dict[str, torch.Tensor] = {}
    for built in op.body.built["default"]:
        adapter, key = built.adapter, built.edit.site.key
        plain = {name: value for name, value in vars(adapter).items() if isinstance(value, torch.Tensor)}
        kinds = {"parameter": adapter.named_parameters(), "buffer": adapter.named_buffers(), "tensor": plain.items()}
        for word, found in kinds.items():
            held.update({f"the {word} {name!r} on {key}": tensor.detach().clone() for name, tensor in found})
    return held


def check_draws(model: nn.Module, decided: Plan, registry: Registry, dtype: torch.dtype) -> None:
    """Whatever else an adapter holds, a plain attribute say, comes from `generator` and not from global state."""
    state = torch.random.get_rng_state()
    outputs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with operate(model, decided, registry=registry) as op:
            perturb(op, 8)
            outputs.append(model(ToyModel.batch()))
    torch.random.set_rng_state(state)
    assert torch.equal(*outputs), (
        "two builds with one seed and equal parameters compute different things: build keeps something that is drawn "
        "elsewhere than from `generator`"
    )


def check_fresh(model: nn.Module, decided: Plan, registry: Registry, dtype: torch.dtype) -> None:
    """After its parameters have moved, an adapter that has run before computes what a newly loaded copy computes."""
    batch = ToyModel.batch()
    with tempfile.TemporaryDirectory() as folder:
        with operate(model, decided, registry=registry) as op:
            model(batch)
            op.merge()
            op.unmerge()
            perturb(op, 10)
            worn = model(batch)
            op.save(Path(folder) / "saved")
            worn_merged = _merged(op)
        with load_adapter(model, Path(folder) / "saved", registry=registry) as op:
            fresh = model(batch)
            fresh_merged = _merged(op)
    is_same = torch.equal(worn, fresh) and worn_merged == fresh_merged
    assert is_same, (
        "after its parameters moved, the adapter computes something else than a newly loaded copy: fold or activate "
        "remembers what it computed before"
    )


def _merged(op: Operation) -> dict[str, bytes]:
    op.merge()
    return {key: bits for key, bits in model_state(op.model).bits.items() if "surgery" not in key.split(".")}


def check_beside(model: nn.Module, decided: Plan, registry: Registry, dtype: torch.dtype) -> None:
    """An adapter on the same sites that comes first in the order keeps its effect."""
    shift = _Shift(registry.adapter(decided.edits[0].adapter))
    both = toy_registry(shift, *(found.value for found in registry.adapters.values()))
    rule = Rule(target=".*", adapter=shift.name, tied="share")
    first = plan(decided.spec.model_copy(update={"rules": (rule,)}), model, both)
    batch = ToyModel.batch()
    with operate(model, first, name="a", registry=both) as op:
        op.add(decided, "b")
        perturb(op, 11)
        together = model(batch)
        with op.disabled("a"):
            alone = model(batch)
        assert not torch.equal(together, alone), "an adapter that was applied before on the same sites loses its effect"


class _Shift(AdapterType[Options]):
    """Adds one number to every element of the sites that another type claims."""

    name = "surgery-testing-shift"
    summary = "for check_adapter"

    def __init__(self, other: AdapterType[Any]) -> None:
        self.joins_parts = other.joins_parts  # type: ignore[misc]  # of this instance: the two must have equal sites
        self._other = other

    def claims(self, site: Site) -> bool:
        return self._other.claims(site)

    def parameters(self, site: Site, options: Options) -> int:
        return 1

    def build(
        self, site: Site, options: Options, pristine: Mapping[str, torch.Tensor], generator: torch.Generator
    ) -> Adapter:
        return _ShiftAdapter(site)


class _ShiftAdapter(Adapter):
    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.shift = nn.Parameter(torch.zeros(1))

    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        return weight + self.shift.to(weight.dtype)
