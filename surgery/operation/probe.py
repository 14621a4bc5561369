"""Probing: run the model once and see which adapters were really used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from surgery.errors import Problem, StateError
from surgery.operation.attach import Built
from surgery.operation.body import Body

__all__ = ["probe_model"]


@torch.no_grad()
def probe_model(body: Body, active: Sequence[Built], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, int]:
    """Return site key -> uses in one forward in evaluation mode; modes and random state are put back.

    Raises:
        StateError: the sites that were never used.
    """
    if not kwargs and [isinstance(argument, Mapping) for argument in args] == [True]:
        args, kwargs = (), dict(*args)
    calls: dict[int, int] = {}
    modes = {module: module.training for module in body.model.modules()}
    states = {id(owner.state): owner.state for slot in body.slots.values() for owner in slot.owners}
    with torch.random.fork_rng(devices=[]):
        try:
            body.model.eval()
            for state in states.values():
                state.calls = calls
            body.model(*args, **kwargs)
        finally:
            for state in states.values():
                state.calls = None
            for module, mode in modes.items():
                module.training = mode
    silent = [built for built in active if not calls.get(id(built.adapter))]
    if silent:
        raise StateError.of(
            [
                Problem(
                    "the adapter is never used in a forward pass: the model reads this weight past its module",
                    built.edit.site.key,
                    "exclude the site, or target the weight that is really used",
                )
                for built in silent
            ]
        )
    return {built.edit.site.key: calls[id(built.adapter)] for built in active}
