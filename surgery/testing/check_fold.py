"""The laws of `fold`, asked of it directly: what it may read, what it must keep, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from surgery.adapter import Adapter
from surgery.adapter.factors import Factors
from surgery.architecture import Site
from surgery.operation import Operation, operate
from surgery.operation.bits import same_bits
from surgery.operation.fold import canonical_view
from surgery.operation.said import misfit
from surgery.planning import Plan
from surgery.registry import Registry
from surgery.testing.toy import ToyModel, perturb

__all__ = ["check_fold", "check_replaces"]

# So little that float32 does not see it, and float64 does.
_NEAR = 1 + 2.0**-40


def check_fold(model: nn.Module, decided: Plan, registry: Registry, dtype: torch.dtype) -> None:
    """Fold into float64, as a merge does: `weight` counts, precision stays, and every call gives the same."""
    with operate(model, decided, registry=registry) as op:
        perturb(op, 5)
        for adapter, site, weight in _folds(op):
            _check_repeats(adapter, site, weight)
            _check_weight_counts(adapter, site, weight)


def check_replaces(model: nn.Module, decided: Plan, registry: Registry, dtype: torch.dtype) -> None:
    """What is said to replace a parameter gives the same on any base: a saved one is loaded on other bits there."""
    elsewhere = ToyModel(dtype=dtype, seed=1).eval()
    with operate(model, decided, registry=registry) as op, operate(elsewhere, decided, registry=registry) as other:
        perturb(op, 6)
        with torch.no_grad():
            for name, parameter in other.trainable().items():
                parameter.copy_(op.trainable()[name])
        for (adapter, site, here), (twin, _, there) in zip(_folds(op), _folds(other), strict=True):
            if adapter.replaces:
                same = torch.equal(_fold(adapter, site, here, here), _fold(twin, site, there, there))
                assert same, (
                    f"{_call(adapter, site)} depends on the base, and the class says `replaces`: leave `replaces` out, "
                    "or derive it from ReplacementAdapter"
                )


def _check_repeats(adapter: Adapter, site: Site, weight: torch.Tensor) -> None:
    first, again = (_fold(adapter, site, weight, weight) for _ in range(2))
    assert torch.equal(first, again), (
        f"{_call(adapter, site)} gives something else when called again: it must draw nothing and remember nothing"
    )
    was_training = adapter.training
    adapter.train(not was_training)
    turned, again = (_fold(adapter, site, weight, weight) for _ in range(2))
    adapter.train(was_training)
    assert torch.equal(first, turned), (
        f"{_call(adapter, site)} gives something else in training mode: a merge would not mean what was trained; "
        "dropout belongs into activate"
    )
    assert torch.equal(turned, again), f"{_call(adapter, site)} gives something else when called again"


def _check_weight_counts(adapter: Adapter, site: Site, weight: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(9)
    other = weight + 0.1 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    alone = _fold(adapter, site, weight, weight)
    assert not torch.equal(_fold(adapter, site, other, weight), alone), (
        f"{_call(adapter, site)} ignores `weight`, and so wipes out the adapters that were folded in before: "
        "change `weight`; it is `pristine` only where nothing was folded before"
    )
    assert not torch.equal(_fold(adapter, site, weight * _NEAR, weight), alone), (
        f"{_call(adapter, site)} computes in less than float64: bring your tensors to the dtype of `weight`, and "
        "leave `weight` as it is"
    )


def _folds(op: Operation) -> Iterator[tuple[Adapter, Site, torch.Tensor]]:
    """Yield every fold that the operation would call, with the base's value as a float32 number held in float64."""
    for built in op.body.built["default"]:
        for site in built.edit.sites:
            stored = op.model.get_submodule(site.path)._parameters[site.parameter]
            assert stored is not None
            yield built.adapter, site, canonical_view(stored.detach(), site).float().double()


def _fold(adapter: Adapter, site: Site, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
    kept = (weight.clone(), pristine.clone())
    try:
        with torch.no_grad():
            folded: object = adapter.fold(site.parameter, weight, pristine)
    except Exception as error:
        # A fold that is made of factors fails wherever torch notices; what does not fit is theirs to say.
        said: object = adapter.factors(site.parameter)
        wrong = misfit(said, site) if isinstance(said, Factors) else ""
        if not wrong:
            raise
        what = f"factors of {type(adapter).__name__} on {site.key} do not fit the weight: {wrong}"
        raise AssertionError(what) from error
    is_kept = same_bits(weight, kept[0]).all() and same_bits(pristine, kept[1]).all()
    assert is_kept, f"{_call(adapter, site)} writes to its arguments: return a new tensor"
    assert isinstance(folded, torch.Tensor), f"{_call(adapter, site)} must return a tensor, not {type(folded).__name__}"
    assert folded.shape == kept[0].shape, (
        f"{_call(adapter, site)} must return shape {list(kept[0].shape)}, not {list(folded.shape)}"
    )
    assert folded.dtype == kept[0].dtype, (
        f"{_call(adapter, site)} returns {folded.dtype} for {kept[0].dtype}: bring your tensors to that dtype"
    )
    assert folded.isfinite().all(), f"{_call(adapter, site)} returns NaN or infinity for finite weights"
    return folded


def _call(adapter: Adapter, site: Site) -> str:
    return f"{type(adapter).__name__}.fold({site.parameter!r}) on {site.key}"
