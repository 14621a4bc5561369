"""Inference with measurements: what names and shapes leave without a role is measured on small models built alike."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from surgery.architecture.roles import OTHER
from surgery.planning.infer import Inference, infer
from surgery.planning.inventory import Inventory
from surgery.planning.names import starred
from surgery.planning.sites import sites_of
from surgery.registry import Registry, Twins

if TYPE_CHECKING:
    from surgery.planning.probe import Finding

__all__ = ["inferred", "measured_on_twins"]

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
        starred(site.path)
        for site in sites_of(found, inference.architecture)
        if site.role.startswith(OTHER)
        and site.parameter == "weight"
        and len(site.shape) == 2
        and site.host in ("linear", "conv1d")
    ) - {""}


def _measured(found: Inventory, registry: Registry, wanted: frozenset[str]) -> Mapping[str, Finding]:
    config: Any = found.config
    if config is None or not found.model_type:
        return {}
    table = config.to_dict() if hasattr(config, "to_dict") else config
    key = json.dumps([found.class_name, table, *registry.models], sort_keys=True, default=str)
    if key not in _KNOWN:
        _KNOWN[key] = measured_on_twins(config, found.class_name, registry, wanted)[1]
    return _KNOWN[key]


def measured_on_twins(
    config: Any, class_name: str, registry: Registry, wanted: Collection[str] | None = None
) -> tuple[Twins | None, Mapping[str, Finding]]:
    """Have small models built and measured; return them, None where no source can, and what was measured.

    Args:
        config, class_name: see `ModelSource.twins`.
        registry: the sources that are asked.
        wanted: see `surgery.planning.probe.measure`.
    """
    import torch  # only here, as `measure`: few models need it

    from surgery.planning.probe import measure

    # What is measured must not depend on the modes that the caller is in.
    with torch.inference_mode(mode=False), torch.device("cpu"):
        for source in registry.models.values():
            twins = source.value.twins(config, class_name)
            if twins is not None:
                return twins, measure(twins, wanted)
    return None, {}
