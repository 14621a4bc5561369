"""Whether weights do what a description says of them: what is measured on small models, against the roles."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from surgery.architecture import Part, Site
from surgery.architecture.counts import count_of
from surgery.errors import Problem
from surgery.planning import sites
from surgery.registry import Registry, Twin, Twins
from surgery.testing.architecture_checks import Finding

if TYPE_CHECKING:
    from surgery.planning.probe import Finding as Measured

__all__ = ["compare_with_measured"]

_LAYER = re.compile(r"\.\d+\.")
_HINT = "read the model's forward: a row of this weight was moved, and this is what moved with it first"


def compare_with_measured(kind: str, config: Any, class_name: str, registry: Registry) -> Finding:
    """Compare the roles of linear maps in layers with what moves when a row of their output is moved.

    Args:
        kind: the model's type, which the registry knows a description of.
        config: the configuration whose choices count; its sizes do not.
        class_name: the model's class.
        registry: the description, and the sources of models that are asked for small ones.
    """
    from surgery.planning.probe import measure

    twins = next((built for one in registry.models.values() if (built := one.value.twins(config, class_name))), None)
    found = measure(twins) if twins is not None else {}
    if twins is None or not found:
        return Finding("measure", kind, class_name, skipped="nothing can be measured on small models of this class")
    problems = tuple(
        Problem(problem.what, f"{kind}, {class_name}, measure: {problem.where}", problem.hint)
        for problem in _contradictions(found, twins, registry)
    )
    maps = len(_maps(twins.models[0], registry))
    return Finding("measure", kind, class_name, problems, note=f"{len(found)} of {maps} linear maps of a layer")


def _contradictions(found: Mapping[str, Measured], twins: Twins, registry: Registry) -> Iterator[Problem]:
    twin = twins.models[0]
    described = _maps(twin, registry)
    for path, one in found.items():
        if path not in described:
            continue
        said = {site.role: _rows(site.slice) for site in described[path] if not site.role.startswith("other.")}
        measured = {role: _resolved(one, role, described[path], twin) for role in one.parts}
        for role in sorted(said.keys() | measured.keys()):
            if role not in measured and not one.parts and not role.startswith(("attention.", "mlp.")):
                continue
            if (role in said, said.get(role)) != (role in measured, measured.get(role)):  # None: the whole weight
                does = " and ".join(measured) or "no role: it scales what an attention has mixed"
                says = " and ".join(said) or "nothing"
                rows = " in other rows" if role in measured and role in said else ""
                yield Problem(f"it is described as {says}, and does what {does} does{rows}", path, _HINT)
                break


def _maps(twin: Twin, registry: Registry) -> dict[str, list[Site]]:
    """Return path with a star -> the sites of the weight in the first layer that has it."""
    first: dict[str, list[Site]] = defaultdict(list)
    for site in sites(twin.model, registry):
        if site.parameter == "weight" and site.host in ("linear", "conv1d") and _LAYER.search(f".{site.path}."):
            path = _LAYER.sub(".*.", f".{site.path}", count=1).removeprefix(".")
            if not first[path] or first[path][0].path == site.path:
                first[path].append(site)
    return first


def _rows(part: Part | None) -> tuple[int, ...] | None:
    return None if part is None else tuple(sorted(part.indices()))


def _resolved(one: Measured, role: str, described: list[Site], twin: Twin) -> tuple[int, ...] | None:
    """Return the rows that were measured to have a role; None for all of them."""
    place = one.parts[role]
    if isinstance(place, str):
        return None
    weight = twin.model.get_parameter(described[0].name)
    view = [count_of(count, twin.settings, {}) for count in place.view]
    known = 1
    for extent in view:
        known *= extent if extent != -1 else 1
    view = [weight.shape[place.axis] // known if extent == -1 else extent for extent in view]
    start, length = (count_of(count, twin.settings, {}) for count in (place.start, place.length))
    return _rows(Part(place.axis, tuple(view), place.dim, start, length))
