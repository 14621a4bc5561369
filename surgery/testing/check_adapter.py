"""The contract of adapter types, as one function that an author's test calls."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgery.adapter import AdapterType
from surgery.operation import load_adapter, operate
from surgery.planning import Plan, plan, sites
from surgery.registry import Registry
from surgery.spec import Rule, Spec
from surgery.testing.check_effect import check_beside, check_draws, check_fresh, check_state, check_tensors
from surgery.testing.check_factors import check_experts, check_factors
from surgery.testing.check_fold import check_fold, check_replaces
from surgery.testing.check_kind import check_kind
from surgery.testing.check_order import check_adds, check_order
from surgery.testing.check_work import check_work
from surgery.testing.partners import PARTNERS
from surgery.testing.state import assert_same_state, model_state
from surgery.testing.toy import ToyModel, perturb, toy_registry

__all__ = ["check_adapter"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# How far merged and unmerged outputs of the toy model may be apart, relative to the largest output: a few dozen
# roundings of the dtype's precision. This is the one place where the promise is a bound and not a bit.
_BOUND = {torch.float64: 4e-14, torch.float32: 2e-5, torch.bfloat16: 0.15, torch.float16: 2e-2}


def check_adapter(
    kind: AdapterType[Any], options: Mapping[str, Any] | None = None, dtypes: Sequence[torch.dtype] = _DTYPES
) -> None:
    """Check everything that the toolkit promises of an adapter type, on a toy model with every kind of host.

    Args:
        kind: the adapter type.
        options: its options where it has required ones; by default `kind.defaults()`.
        dtypes: dtypes of the base to check with.

    Raises:
        AssertionError: a promise is broken; the message says which.
    """
    chosen = check_kind(kind, options)
    registry = toy_registry(kind, *PARTNERS)
    for dtype in dtypes:
        model = ToyModel(dtype=dtype).eval()
        decided = plan(_spec(kind, chosen), model, registry)
        for check in _CHECKS:
            before = model_state(model)
            check(model, decided, registry, dtype)
            assert_same_state(before, model_state(model), f"after {check.__name__.removeprefix('_check_')} in {dtype}")
    model = ToyModel().eval()
    partners = [plan(_spec(partner, {}), model, registry) for partner in PARTNERS]
    check_order(plan(_spec(kind, chosen), model, registry), partners, registry, _BOUND[torch.float32])
    _check_alone(kind, chosen, registry)
    check_experts(kind, chosen)


def _spec(kind: AdapterType[Any], options: Mapping[str, Any], pattern: str = ".*") -> Spec:
    rule = Rule(target=pattern, adapter=kind.name, allow_oversized=True, tied="share", **options)
    return Spec(name=f"check-{kind.name}", seed=7, rules=(rule,))


def _check_attach(model: nn.Module, decided: Plan, registry: Registry, dtype: torch.dtype) -> None:
    batch = ToyModel.batch()
    flags = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    keys = list(model.state_dict())
    pristine = model(batch)
    with operate(model, decided, registry=registry) as op:
        trainable = op.trainable()
        total = sum(parameter.numel() for parameter in trainable.values())
        assert total == decided.parameters, f"parameters() promises {decided.parameters}, build makes {total}"
        sites_of = op.trainable_sites()
        for name, parameter in trainable.items():
            wanted = next(edit.dtype for edit in decided.edits if edit.site.key == sites_of[name].key)
            assert str(parameter.dtype) == f"torch.{wanted}", f"trainable_dtype() promises {wanted}: {name}"
        named = dict(model.named_parameters())
        assert all(named[name] is parameter for name, parameter in trainable.items()), (
            "trainable() names are not the model's"
        )
        assert all(not named[name].requires_grad for name in flags), "a base parameter is trainable while operated"
        assert [key for key in model.state_dict() if key in keys] == keys, "base keys of the state dict are gone"
        model.load_state_dict({key: value for key, value in model.state_dict().items() if key in keys})
        model.train()
        model(batch).float().square().sum().backward()
        idle = [name for name, parameter in trainable.items() if parameter.grad is None]
        assert not idle, f"no gradient reaches {idle[:3]}"
        assert all(named[name].grad is None for name in flags), "a base parameter got a gradient"
        model.eval()
        uses = op.probe(batch)
        assert len(uses) == len(decided.edits), "probe does not see every site"
        with op.disabled():
            assert torch.equal(model(batch), pristine), "the disabled model is not the pristine one"
    assert torch.equal(model(batch), pristine), "the undone model computes something else"


def _check_seed(model: nn.Module, decided: Plan, registry: Registry, dtype: torch.dtype) -> None:
    state = torch.random.get_rng_state()
    first = _initial(model, decided, registry)
    assert torch.equal(state, torch.random.get_rng_state()), "build draws from torch's global generator"
    torch.manual_seed(20240229)  # another global state must make no difference
    second = _initial(model, decided, registry)
    torch.random.set_rng_state(state)
    _assert_equal(first, second, "the same seed gives other bits: draw from `generator` alone")
    rule = decided.spec.rules[0]
    alone = decided.edits[-1].site
    narrow = rule.model_copy(update={"target": None, "role": _escape(alone.role)})
    one = plan(decided.spec.model_copy(update={"rules": (narrow,)}), model, registry)
    some = _initial(model, one, registry)
    assert some, "the narrow plan adapts nothing"
    _assert_equal({key: first[key] for key in some}, some, "a site's bits depend on what else is targeted")


def _escape(role: str) -> str:
    return role.replace(".", r"\.").replace("+", "|")


def _initial(model: nn.Module, decided: Plan, registry: Registry) -> dict[str, torch.Tensor]:
    """Everything that `build` made: parameters, and buffers, which are not saved and must come out the same again."""
    with operate(model, decided, registry=registry) as op:
        made = {key: parameter.detach().clone() for key, parameter in op.trainable().items()}
        for built in op.body.built["default"]:
            for name, buffer in built.adapter.named_buffers():
                made[f"{built.edit.site.key} buffer {name}"] = buffer.clone()
        return made


def _check_merge(model: nn.Module, decided: Plan, registry: Registry, dtype: torch.dtype) -> None:
    batch = ToyModel.batch()
    pristine = model_state(model)
    with operate(model, decided, registry=registry) as op:
        base = model_state(model)
        perturb(op, 1)
        unmerged = model(batch).detach().double()
        op.merge()
        merged = model(batch).detach().double()
        error = float((merged - unmerged).abs().max() / unmerged.abs().max().clamp_min(1e-6))
        assert error <= _BOUND[dtype], f"merged and unmerged outputs differ by {error:.3g} in {dtype}"
        moved = [key for key in pristine.bits if model_state(model).bits[key] != pristine.bits[key]]
        assert moved, "merging a trained adapter changes nothing"
        first = {key: model_state(model).bits[key] for key in pristine.bits}
        for _ in range(3):
            op.unmerge()
            back = model_state(model)
            assert all(back.bits[key] == pristine.bits[key] for key in pristine.bits), "unmerge leaves other bits"
            assert back.identities == base.identities, "unmerge leaves other Parameter objects"
            op.merge()
            again = model_state(model)
            assert all(again.bits[key] == first[key] for key in first), "merging again gives other bits"


def _check_composition(model: nn.Module, decided: Plan, registry: Registry, dtype: torch.dtype) -> None:
    def live(order: Sequence[str], out: Sequence[str] = ()) -> dict[str, bytes]:
        with operate(model, decided, name="a", registry=registry) as op:
            op.add(decided, "b")
            perturb(op, 2)
            for name in order:
                op.merge(name)
            for name in out:
                op.unmerge(name)
            return {key: bits for key, bits in model_state(model).bits.items() if "surgery" not in key.split(".")}

    assert live("ab") == live("ba"), "merging {a, b} and {b, a} gives other bits"
    assert live("ab", "a") == live("b"), "unmerging a from {a, b} is not merging b alone"
    assert live("ba", "b") == live("a"), "unmerging b from {a, b} is not merging a alone"


def _check_files(model: nn.Module, decided: Plan, registry: Registry, dtype: torch.dtype) -> None:
    batch = ToyModel.batch()
    with tempfile.TemporaryDirectory() as folder:
        with operate(model, decided, registry=registry) as op:
            perturb(op, 3)
            logits = model(batch)
            op.save(Path(folder) / "one")
            op.save(Path(folder) / "two")
        files = [sorted(path for path in (Path(folder) / name).iterdir()) for name in ("one", "two")]
        for left, right in zip(*files, strict=True):
            assert left.read_bytes() == right.read_bytes(), f"{left.name} differs between two saves"
        with load_adapter(model, Path(folder) / "one", registry=registry):
            assert torch.equal(model(batch), logits), "the loaded adapter computes something else"


def _check_alone(kind: AdapterType[Any], options: Mapping[str, Any], registry: Registry) -> None:
    """Each site by itself: the other parts of a fused weight, and every other parameter, keep their bits."""
    model = ToyModel(layers=1)
    claimed = [site for site in sites(model, registry) if kind.claims(site) and not site.tied]
    assert claimed, "the adapter type claims no site of the toy model"
    for site in claimed:
        rule = Rule(
            role=_escape(site.role), target=_escape(site.name), adapter=kind.name, allow_oversized=True, **options
        )
        decided = plan(Spec(name="alone", rules=(rule,)), model, registry)
        assert [edit.site for edit in decided.edits] == [site], f"a rule for {site.key} edits something else"
        before = model_state(model)
        touched = {other.name for edit in decided.edits for other in edit.sites}
        with operate(model, decided, registry=registry) as op:
            perturb(op, 4)
            op.merge()
            after = model_state(model)
            for key in before.bits:
                assert key in touched or before.bits[key] == after.bits[key], f"editing {site.key} changed {key}"
            if site.slice is not None and site.parameter == "weight":
                _assert_others_kept(
                    model, site.path, site.slice.axis, set(site.slice.indices()), before.bits[site.name]
                )
        assert_same_state(before, model_state(model), f"after editing {site.key} alone")


def _assert_others_kept(model: nn.Module, path: str, axis: int, own: set[int], old: bytes) -> None:
    weight = model.get_submodule(path)._parameters["weight"]
    assert weight is not None
    others = torch.tensor([index for index in range(weight.shape[axis]) if index not in own])
    was = torch.frombuffer(bytearray(old), dtype=weight.dtype).reshape(weight.shape)
    same = torch.equal(was.index_select(axis, others), weight.detach().index_select(axis, others))
    assert same, f"editing one part of {path} changed another part"


def _assert_equal(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor], message: str) -> None:
    for key, tensor in left.items():
        assert torch.equal(tensor, right[key]), f"{message}: {key}"


# In this order: what is asked of one function comes before what shows in a whole model, so that the message is near.
_CHECKS = (
    check_fold, check_factors, check_work, check_adds, check_tensors, check_replaces, check_state, _check_attach,
    _check_seed, check_draws, _check_merge, _check_composition, check_beside, _check_files, check_fresh,
)  # fmt: skip
