"""Inference with measurements: what names and shapes leave without a role is measured on small models built alike."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from surgery.architecture.roles import OTHER
from surgery.planning.infer import Inference, infer
from surgery.planning.inventory import Inventory
from surgery.planning.sites import sites_of
from surgery.registry import Registry

if TYPE_CHECKING:
    from surgery.planning.probe import Finding

__all__ = ["inferred"]

_LAYER = re.compile(r"\.\d+\.")
_KNOWN: dict[str, Mapping[str, Finding]] = {}
"""What was measured in this process, by class, configuration and sources: a plan and an operation ask for the same."""


def inferred(found: Inventory, registry: Registry) -> Inference:
    """Infer the roles of a model that no plugin describes, and measure only what names and shapes do not tell."""
    inference = infer(found)
    wanted = _unknown(found, inference)
    measured = _measured(found, registry, wanted) if wanted else {}
    return infer(found, measured) if measured else inference


def _unknown(found: Inventory, inference: Inference) -> frozenset[str]:
    """Return the paths of linear maps in layers that have no role, a star for the layer's number."""
    return frozenset(
        _LAYER.sub(".*.", f".{site.path}", count=1).removeprefix(".")
        for site in sites_of(found, inference.architecture)
        if site.role.startswith(OTHER)
        and site.parameter == "weight"
        and len(site.shape) == 2
        and site.host in ("linear", "conv1d")
        and _LAYER.search(f".{site.path}.")
    )


def _measured(found: Inventory, registry: Registry, wanted: frozenset[str]) -> Mapping[str, Finding]:
    config: Any = found.config
    if config is None or not found.model_type:
        return {}
    table = config.to_dict() if hasattr(config, "to_dict") else config
    key = json.dumps([found.class_name, table, *registry.models], sort_keys=True, default=str)
    if key not in _KNOWN:
        import torch  # only here, as `measure`: few models need it

        from surgery.planning.probe import measure

        _KNOWN[key] = {}
        # What is measured must not depend on the modes that the caller is in.
        with torch.inference_mode(mode=False), torch.device("cpu"):
            for source in registry.models.values():
                twins = source.value.twins(config, found.class_name)
                if twins is not None:
                    _KNOWN[key] = measure(twins, wanted)
                    break
    return _KNOWN[key]
