"""Adapters of any type that hold given factors or values, made as an operation makes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from surgery.adapter import Adapter
from surgery.adapter.replacement import ReplacementAdapter
from surgery.errors import PlanError
from surgery.operation.attach import alike_everywhere, site_seed
from surgery.operation.fold import canonical_view
from surgery.planning import Edit, Plan
from surgery.registry import Registry
from surgery.spectra.gather import Fill
from surgery.spectra.pair import CheckpointPair

__all__ = ["filled_tensors", "replaces"]


def replaces(edit: Edit, plan: Plan, pair: CheckpointPair, registry: Registry) -> bool:
    """Return whether the adapter of an edit takes the parameter's place.

    Raises:
        PlanError: it neither does, nor is it a low-rank update of its own tensors.
    """
    adapter = _build(edit, plan, pair, registry)
    if not isinstance(adapter, ReplacementAdapter):
        _factors(adapter, edit)
    return isinstance(adapter, ReplacementAdapter)


@torch.no_grad()
def filled_tensors(
    plan: Plan, fills: Mapping[str, Fill], pair: CheckpointPair, registry: Registry
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield `site/local name` and tensor of every adapter of `plan`, holding its fill.

    Where factors have fewer columns than the plan's rank, the rest of `up` is zero and the rest of `down` as it was
    built: it changes nothing, and can be trained.
    """
    for edit in plan.edits:
        fill, adapter = fills[edit.site.key], _build(edit, plan, pair, registry)
        if isinstance(adapter, ReplacementAdapter):
            assert fill.value is not None
            adapter.value.copy_(fill.value)
        else:
            up, down, scale = _factors(adapter, edit)
            up.zero_()
            for index, (left, right) in enumerate(zip(fill.up, fill.down, strict=True)):
                at, into = (up[index], down[index]) if up.dim() == 3 else (up, down)
                at[:, : left.shape[1]] = left / scale
                into[: right.shape[0]] = right
        for local, parameter in adapter.named_parameters():
            yield f"{edit.site.key}/{local}", parameter.detach()


def _factors(adapter: Adapter, edit: Edit) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return up, down and scale, the tensors being the adapter's own."""
    said = adapter.factors(edit.site.parameter)
    hint = "name a low-rank adapter such as lora, or one that replaces the parameter such as full"
    what = f"{edit.adapter!r} cannot hold what changed: it is no low-rank update by tensors of its own"
    if said is None or said.up is None or said.down is None or said.rows is not None or said.columns is not None:
        raise PlanError(what, edit.site.key, hint)
    own = {id(parameter) for parameter in adapter.parameters()}
    if id(said.up) not in own or id(said.down) not in own or not said.scale:
        raise PlanError(what, edit.site.key, hint)
    if edit.site.experts and said.up.dim() != 3:
        what = "one pair of factors for all experts cannot hold what changed in each"
        raise PlanError(what, edit.site.key, "say `experts: separate`")
    return said.up, said.down, said.scale


def _build(edit: Edit, plan: Plan, pair: CheckpointPair, registry: Registry) -> Adapter:
    kind = registry.adapter(edit.adapter)
    generator = torch.Generator().manual_seed(site_seed(plan.spec.seed, edit.site.key))
    try:
        with alike_everywhere():
            adapter = kind.build(edit.site, edit.options, _Pristine(edit, pair), generator)
    except Exception as error:
        what = f"build failed: {type(error).__name__}: {error}"
        raise registry.failure("adapter", edit.adapter, what, edit.site.key) from error
    return adapter.requires_grad_(False)


class _Pristine(Mapping[str, torch.Tensor]):
    """The base's tensors of one edit, cut and turned as adapters see them; each look-up reads."""

    def __init__(self, edit: Edit, pair: CheckpointPair) -> None:
        self._sites, self._pair = {site.parameter: site for site in edit.sites}, pair

    def __getitem__(self, name: str) -> torch.Tensor:
        site = self._sites[name]
        return canonical_view(self._pair.base(site.name), site).clone(memory_format=torch.preserve_format)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)
