"""The fingerprint of a base: names, shapes and dtypes always, and the sha256 of every tensor that matters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from surgery.errors import CheckpointError, Problem, nearest
from surgery.operation.bits import sha256
from surgery.operation.body import Body
from surgery.planning.live import STATE_CHILD

__all__ = ["compare_fingerprints", "fingerprint"]

Fingerprint = Mapping[str, Mapping[str, Any]]


@torch.no_grad()
def fingerprint(body: Body, name: str) -> dict[str, dict[str, Any]]:
    """Return tensor name -> shape, dtype, sha256 of the pristine base, under its first name.

    Tensors that the adapter `name` replaces as a whole (a newly made head that it trained) have no sha256: the
    adapter does not depend on what they were.
    """
    merged = {owner.name: slot for slot in body.slots.values() if slot.original is not None for owner in slot.owners}
    replaced = {
        key
        for built in body.built[name]
        if built.adapter.replaces
        for site in built.edit.sites
        if site.slice is None
        for key in (site.name, *(site.tied if built.edit.tied == "share" else ()))
    }
    table: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()
    for key, parameter in body.model.named_parameters(remove_duplicate=False):
        slot = merged.get(key)
        held = parameter if slot is None else slot.parameter  # a merge puts another object where a tied name is cut
        if STATE_CHILD in key.split(".") or id(held) in seen:
            continue
        seen.add(id(held))
        tensor = parameter.detach() if slot is None else slot.pristine()
        table[key] = {
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "sha256": None if key in replaced else sha256(tensor),
        }
    return table


_SHOWN = 5
"""How many differences are told."""


def compare_fingerprints(saved: Fingerprint, present: Fingerprint, where: str) -> None:
    """Raise CheckpointError, naming tensors, when `present` is not the base that `saved` was made on."""
    problems: list[Problem] = []
    for index, name in enumerate(sorted(set(saved) - set(present))):
        hint = nearest(name, present) if index < _SHOWN else ""  # looking for the nearest is slow
        problems.append(Problem(f"the base lacks {name!r}", where, hint))
    for name in sorted(set(present) - set(saved)):
        problems.append(Problem(f"the base holds {name!r}, which the adapter's base did not", where))
    for name in sorted(set(saved) & set(present)):
        old, new = saved[name], present[name]
        if list(old["shape"]) != list(new["shape"]) or old["dtype"] != new["dtype"]:
            problems.append(
                Problem(
                    f"{name} is {new['dtype']} {list(new['shape'])}; the adapter's base had {old['dtype']} "
                    f"{list(old['shape'])}",
                    where,
                )
            )
        elif old["sha256"] != new["sha256"]:  # None on both sides: the adapter replaces the tensor
            problems.append(Problem(f"{name} has other values than in the adapter's base", where))
    if problems:
        rest = len(problems) - _SHOWN
        shown = problems[:_SHOWN] + ([Problem(f"and {rest} more differences", where)] if rest > 0 else [])
        shown[0] = Problem(
            shown[0].what, where, shown[0].hint or "this adapter was trained on another base: load that one"
        )
        raise CheckpointError.of(shown)
