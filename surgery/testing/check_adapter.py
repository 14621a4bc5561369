"""The contract of adapter types, as one function that an author's test calls."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgery.adapter import AdapterType
from surgery.operation import Operation, load_adapter, operate
from surgery.operation.fold import canonical_view
from surgery.planning import Plan, plan, sites
from surgery.registry import Registry
from surgery.spec import Rule, Spec
from surgery.testing.partners import PARTNERS
from surgery.testing.state import assert_same_state, model_state
from surgery.testing.toy import ToyModel, toy_registry

__all__ = ["check_adapter"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# How far merged and unmerged outputs of the toy model may be apart, relative to the largest output: a few dozen
# roundings of the dtype's precision. This is the one place where the promise is a bound and not a bit.
_BOUND = {torch.float32: 2e-5, torch.bfloat16: 0.15, torch.float16: 2e-2}


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
    chosen = dict(kind.defaults() if options is None else options)
    _check_import(kind)
    registry = toy_registry(kind, *PARTNERS)
    for dtype in dtypes:
        model = ToyModel(dtype=dtype).eval()
        decided = plan(_spec(kind, chosen), model, registry)
        for check in (_check_fold, _check_attach, _check_seed, _check_merge, _check_composition, _check_files):
            before = model_state(model)
            check(model, decided, registry, dtype)
            assert_same_state(before, model_state(model), f"after {check.__name__.removeprefix('_check_')} in {dtype}")
    _check_beside(kind, chosen, registry)
    _check_alone(kind, chosen, registry)


def _spec(kind: AdapterType[Any], options: Mapping[str, Any], pattern: str = ".*") -> Spec:
    rule = Rule(target=pattern, adapter=kind.name, allow_oversized=True, tied="share", **options)
    return Spec(name=f"check-{kind.name}", seed=7, rules=(rule,))


def _check_import(kind: AdapterType[Any]) -> None:
    """Plans are made from file headers without importing torch; the plugin's module must not import it either."""
    module = type(kind).__module__
    if module == "__main__" or "." in module or not getattr(sys.modules[module], "__file__", None):
        return
    folder = Path(str(sys.modules[module].__file__)).resolve().parent
    root = folder.parent if (folder / "__init__.py").is_file() else folder
    code = f"import sys; sys.path.insert(0, {str(root)!r}); import {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"importing {module} imports torch (import it inside build)\n{done.stderr}"


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
        _perturb(op, 1)
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
            _perturb(op, 2)
            for name in order:
                op.merge(name)
            for name in out:
                op.unmerge(name)
            return {key: bits for key, bits in model_state(model).bits.items() if "surgery" not in key.split(".")}

    assert live("ab") == live("ba"), "merging {a, b} and {b, a} gives other bits"
    assert live("ab", "a") == live("b"), "unmerging a from {a, b} is not merging b alone"
    assert live("ba", "b") == live("a"), "unmerging b from {a, b} is not merging a alone"


def _check_fold(model: nn.Module, decided: Plan, registry: Registry, dtype: torch.dtype) -> None:
    """What `fold` says of itself, asked directly: it writes to no argument, and with `adds` it merely adds."""
    with operate(model, decided, registry=registry) as op, torch.no_grad():
        _perturb(op, 5)
        for built in op.body.built["default"]:
            name = f"{type(built.adapter).__name__}.fold on {built.edit.site.key}"
            for site in built.edit.sites:
                stored = model.get_submodule(site.path)._parameters[site.parameter]
                assert stored is not None
                base = canonical_view(stored.detach(), site).double()
                given, changes = base + 1, []
                for weight in (base.clone(), given.clone()):
                    before, pristine = weight.clone(), base.clone()
                    folded = built.adapter.fold(site.parameter, weight, pristine)
                    is_kept = torch.equal(weight, before) and torch.equal(pristine, base)
                    assert is_kept, f"{name} wrote to its arguments: return a new tensor"
                    changes.append(folded - before)
                alike = torch.allclose(changes[0], changes[1], rtol=1e-6, atol=1e-9)
                assert alike or not type(built.adapter).adds, f"{name} depends on the value so far: `adds` is not true"


def _check_beside(kind: AdapterType[Any], options: Mapping[str, Any], registry: Registry) -> None:
    """Each of two adapters merged while the other is live: the outputs stay, also where they do not commute."""
    batch, dtype = ToyModel.batch(), torch.float32
    model = ToyModel(dtype=dtype).eval()
    own = plan(_spec(kind, options), model, registry)
    for partner in PARTNERS:
        other = plan(_spec(partner, {}), model, registry)
        for first, second in ((own, other), (other, own)):
            with operate(model, first, name="a", registry=registry) as op, torch.no_grad():
                op.add(second, "b")
                _perturb(op, 6)
                live = model(batch)
                for merged in (("a",), ("b",), ("a", "b")):
                    op.merge(*merged)
                    error = float((model(batch) - live).abs().max() / live.abs().max().clamp_min(1e-6))
                    op.unmerge(*merged)
                    names = " then ".join(decided.spec.rules[0].adapter for decided in (first, second))
                    assert error <= _BOUND[dtype], (
                        f"{names}: merging {' and '.join(merged)} moves outputs by {error:.3g}"
                    )


def _check_files(model: nn.Module, decided: Plan, registry: Registry, dtype: torch.dtype) -> None:
    batch = ToyModel.batch()
    with tempfile.TemporaryDirectory() as folder:
        with operate(model, decided, registry=registry) as op:
            _perturb(op, 3)
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
            _perturb(op, 4)
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


def _perturb(op: Operation, seed: int) -> None:
    """Move every trainable tensor, as training would, deterministically."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(op.trainable().items()):
            parameter.add_((torch.randn(parameter.shape, generator=generator) * 0.1).to(parameter.dtype))


def _assert_equal(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor], message: str) -> None:
    for key, tensor in left.items():
        assert torch.equal(tensor, right[key]), f"{message}: {key}"
