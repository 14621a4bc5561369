"""Everything about a model that an operation must give back: bits, keys, classes, identities, flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from surgery.operation.bits import as_bytes

__all__ = ["ModelState", "assert_same_state", "model_state"]


@dataclass(frozen=True)
class ModelState:
    """A picture of a model; two are equal exactly when nothing that counts has changed."""

    keys: tuple[str, ...]
    bits: dict[str, bytes]
    dtypes: dict[str, str]
    classes: dict[str, type]
    children: dict[str, tuple[str, ...]]
    attributes: dict[str, tuple[str, ...]]
    identities: dict[str, int]
    flags: dict[str, bool]
    modes: dict[str, bool]


def model_state(model: nn.Module) -> ModelState:
    """Take the picture. It copies every parameter and buffer, so it is for small models."""
    tensors: dict[str, torch.Tensor] = dict(model.state_dict(keep_vars=True))
    modules = dict(model.named_modules(remove_duplicate=False))
    parameters: dict[str, Any] = dict(model.named_parameters(remove_duplicate=False))
    return ModelState(
        keys=tuple(tensors),
        bits={key: bytes(as_bytes(tensor)) for key, tensor in tensors.items()},
        dtypes={key: f"{tensor.dtype}{tuple(tensor.shape)}" for key, tensor in tensors.items()},
        classes={path: type(module) for path, module in modules.items()},
        children={path: tuple(module._modules) for path, module in modules.items()},
        attributes={path: tuple(sorted(vars(module))) for path, module in modules.items()},
        identities={key: id(parameter) for key, parameter in parameters.items()},
        flags={key: parameter.requires_grad for key, parameter in parameters.items()},
        modes={path: module.training for path, module in modules.items()},
    )


def assert_same_state(before: ModelState, after: ModelState, when: str = "") -> None:
    """Raise AssertionError naming the first thing that differs."""
    for name in ("keys", "dtypes", "classes", "children", "attributes", "identities", "flags", "modes"):
        old, new = getattr(before, name), getattr(after, name)
        assert old == new, f"{name} changed {when}: {_difference(old, new)}"
    changed = [key for key in before.bits if before.bits[key] != after.bits[key]]
    assert not changed, f"bits changed {when}: {changed[:5]}"


def _difference(old: Any, new: Any) -> str:
    if isinstance(old, dict):
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        return ", ".join(f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in keys[:3])
    return f"{set(old) ^ set(new)}"
