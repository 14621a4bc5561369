"""The inventory of a live module, on any device, the meta device included."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
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
                interleaved=parameter.dim() == 3 and not getattr(module, "is_concatenated", True),
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
        settings=_Settings(config),
        config=config,
    )


class _Settings(Mapping[str, Any]):
    """A live configuration by name, common names of its kind included (`hidden_size` for GPT-2's `n_embd`)."""

    def __init__(self, config: Any) -> None:
        # A model of several parts keeps the sizes of its text part in a configuration of their own.
        part = getattr(config, "get_text_config", None)
        self._configs = [config, part()] if callable(part) else [config]

    def __getitem__(self, name: str) -> Any:
        for config in self._configs:
            with suppress(Exception):  # what differs between layers raises an error of its own kind
                return getattr(config, name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for config in self._configs for name in getattr(config, "__dict__", {})))

    def __len__(self) -> int:
        return len(list(iter(self)))


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
    # transformers marks classes that hold one 3-D tensor for all experts, and says how it is stored.
    if parameter.dim() == 3 and hasattr(module, "is_transposed"):
        return "transposed-experts" if module.is_transposed else "experts"
    return "other"
