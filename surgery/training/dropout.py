"""The base model's own dropout, switched off while adapters train."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["without_dropout"]

_ADAPTERS = "surgery"


@contextlib.contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Set every dropout probability of `model` to 0, adapters' own aside, and put each back.

    They stand in three kinds of place: `p` of dropout modules, numbers of modules (`attention_dropout`, `layerdrop`),
    and numbers of configurations that are read while the model computes.
    """
    before: list[tuple[Any, str, Any]] = []
    try:
        for owner, name in _places(model):
            before.append((owner, name, getattr(owner, name)))
            setattr(owner, name, 0.0)
        yield
    finally:
        for owner, name, value in reversed(before):
            setattr(owner, name, value)


def _places(model: nn.Module) -> Iterator[tuple[Any, str]]:
    configurations: dict[int, Any] = {}
    for path, module in model.named_modules():
        if _ADAPTERS in path.split("."):
            continue
        if isinstance(module, nn.modules.dropout._DropoutNd):
            yield module, "p"
        yield from ((module, name) for name in _rates(module))
        config = getattr(module, "config", None)
        if config is not None and not isinstance(config, dict):
            configurations[id(config)] = config
    for config in configurations.values():
        yield from ((config, name) for name in _rates(config))


def _rates(owner: Any) -> list[str]:
    """Return the attributes of `owner` that are probabilities and are called after dropping, whatever is dropped."""
    return [name for name, value in vars(owner).items() if "drop" in name and type(value) is float and 0 < value <= 1]
