"""`work` says what the built adapter does: cost models believe it."""

from __future__ import annotations

import torch
from torch import nn

from surgery.adapter import Work
from surgery.operation import operate
from surgery.planning import Plan
from surgery.registry import Registry

__all__ = ["check_work"]


def check_work(model: nn.Module, decided: Plan, registry: Registry, dtype: torch.dtype) -> None:
    """Where a type says what it computes, its adapters do that: they replace or not, at this rank and dropout."""
    with operate(model, decided, registry=registry) as op:
        for built in op.body.built["default"]:
            edit, adapter = built.edit, built.adapter
            told: object = registry.adapter(edit.adapter).work(edit.site, edit.options)
            if told is None:
                continue
            where = f"on {edit.site.key}"
            assert isinstance(told, Work), f"work() must return a Work or None, not {told!r}, {where}"
            assert told.replaces is type(adapter).replaces, (
                f"work() says replaces={told.replaces} {where}, and {type(adapter).__name__} says otherwise"
            )
            factors = adapter.factors(edit.site.parameter)
            if factors is None or factors.down is None:
                continue
            rank = factors.down.shape[-2]
            assert told.rank == rank, f"work() says rank {told.rank} {where}, and factors() {rank}"
            assert told.dropout == factors.dropout, (
                f"work() says dropout {told.dropout} {where}, and factors() {factors.dropout}"
            )
