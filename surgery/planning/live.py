"""The inventory of a live module, on any device, the meta device included."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from surgery.planning.inventory import Inventory, ParameterEntry

__all__ = ["STATE_CHILD", "host_of", "inventory_of_module"]

STATE_CHILD = "surgery"
"""Name of the one child that an operated host gets; its parameters are not the base model's."""


def inventory_of_module(model: Any, origin: str = "model") -> Inventory:
    """Take the inventory of an `nn.Module`: every parameter under every name, operated or not."""
    entries: list[ParameterEntry] = []
    owners: dict[int, list[str]] = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        if STATE_CHILD in path.split("."):
            continue
        for local, parameter in module._parameters.items():
            if parameter is None:
                continue
            entry = ParameterEntry(
                path=path,
                parameter=local,
                shape=tuple(parameter.shape),
                dtype=str(parameter.dtype).removeprefix("torch."),
                host=host_of(module, parameter),
            )
            entries.append(entry)
            owners[id(parameter)].append(entry.name)
    ties = {
        name: tuple(other for other in names if other != name)
        for names in owners.values()
        if len(names) > 1
        for name in names
    }
    config = getattr(model, "config", None)
    return Inventory(
        model_type=getattr(config, "model_type", None) or None,
        class_name=type(model).__name__,
        origin=origin,
        entries=tuple(entries),
        ties=ties,
    )


def host_of(module: Any, parameter: Any) -> str:
    """Return what kind of host `module` is to its `parameter`: `Site.host`."""
    from torch import nn

    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    # transformers' Conv1D, known by shape and name so that this layer need not import transformers.
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return "conv1d"
    if parameter.dim() == 1 and "norm" in type(module).__name__.lower():
        return "norm"
    return "other"
