"""Whether weights do what a description says of them: what is measured on small models, against the roles."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from surgery.architecture import Architecture, Part, Site
from surgery.architecture.counts import count_of
from surgery.errors import Problem, SurgeryError
from surgery.planning import anatomy, inventory
from surgery.planning.inventory import Inventory
from surgery.planning.measured import measured_on_twins
from surgery.planning.names import starred
from surgery.planning.sites import sites_of
from surgery.registry import Registry, Twin, Twins
from surgery.testing.architecture_checks import Finding

if TYPE_CHECKING:
    from surgery.planning.probe import Finding as Measured

__all__ = ["Contradiction", "compare_with_measured", "contradictions"]

_HINT = "read the model's forward: a row of this weight was moved, and this is what moved with it first"


@dataclass(frozen=True, slots=True)
class Contradiction:
    """What was measured of a linear map, and is not what is said of it.

    Attributes:
        what: both, in words.
        is_new: what is said is so, and leaves out some of what was measured, or all.
    """

    what: str
    is_new: bool


def compare_with_measured(kind: str, config: Any, class_name: str, registry: Registry) -> Finding:
    """Compare the roles of linear maps in layers with what moves when a row of their output is moved.

    What has no role is another check's.

    Args:
        kind: the model's type, which the registry knows a description of.
        config: the configuration whose choices count; its sizes do not.
        class_name: the model's class.
        registry: the description, and the sources of models that are asked for small ones.
    """
    twins, found = measured_on_twins(config, class_name, registry)
    if twins is None:
        why = "no small model of this class can be built and called with this configuration"
        return Finding("measure", kind, class_name, skipped=why)
    if not found:
        return Finding("measure", kind, class_name, skipped="nothing can be measured on small models of this class")
    taken = inventory(twins.models[0].model, registry)
    architecture = anatomy(taken, registry).architecture
    try:
        sites_of(taken, architecture)
    except SurgeryError:
        return Finding("measure", kind, class_name, skipped="the description does not fit the model")
    against = contradictions(found, twins, taken, architecture)
    where = f"{kind}, {class_name}, measure"
    problems = tuple(Problem(one.what, f"{where}: {path}", _HINT) for path, one in against.items() if not one.is_new)
    maps = len(_maps(sites_of(taken, architecture)))
    return Finding("measure", kind, class_name, problems, note=f"{len(found)} of {maps} linear maps of a layer")


def contradictions(
    found: Mapping[str, Measured], twins: Twins, taken: Inventory, architecture: Architecture | None
) -> dict[str, Contradiction]:
    """Return path -> what is wrong, for each map that was measured to be something else than is said of it.

    Args:
        found: what was measured.
        twins: on what.
        taken: the inventory of the first of them.
        architecture: what is said.
    """
    twin = twins.models[0]
    described = _maps(sites_of(taken, architecture))
    against: dict[str, Contradiction] = {}
    for path, one in found.items():
        named = [site for site in described.get(path, ()) if not site.role.startswith("other.")]
        said = {site.role: _rows(site.slice) for site in named}
        width = {path: described[path][0]} if path in described else {}
        measured = {role: _resolved(one, role, width[path], twin) for role in one.parts} if width else {}
        if not measured and not any(role.startswith(("attention.", "mlp.")) for role in said):
            continue  # it scales an attention's result; the vocabulary may have a word for what is left
        if said != measured:
            is_new = all(role in measured and rows == measured[role] for role, rows in said.items())
            against[path] = Contradiction(_in_words(said, measured), is_new)
    return against


def _in_words(said: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    if said.keys() == measured.keys():
        wrong = " and ".join(role for role in said if said[role] != measured[role])
        return f"the rows described as {wrong} are not the ones that do this"
    does = " and ".join(measured) or "what scales an attention's result"
    return f"it is described as {' and '.join(said) or 'nothing'}, and does what {does} does"


def _maps(sites: Iterable[Site]) -> dict[str, list[Site]]:
    """Return path with a star -> the sites of the weight in the first layer that has it."""
    first: dict[str, list[Site]] = defaultdict(list)
    for site in sites:
        path = starred(site.path)
        is_map = path and site.parameter == "weight" and site.host in ("linear", "conv1d")
        if is_map and (not first[path] or first[path][0].path == site.path):
            first[path].append(site)
    return first


def _rows(part: Part | None) -> tuple[int, ...] | None:
    """Return the rows of a part; None stands for the whole weight."""
    return None if part is None else tuple(sorted(part.indices()))


def _resolved(one: Measured, role: str, described: Site, twin: Twin) -> tuple[int, ...] | None:
    """Return the rows that were measured to have a role."""
    place = one.parts[role]
    if isinstance(place, str):
        return None
    extent = twin.model.get_parameter(described.name).shape[place.axis]
    view = [count_of(count, twin.settings, {}) for count in place.view]
    known = math.prod(size for size in view if size != -1)
    view = [extent // known if size == -1 else size for size in view]
    start, length = (count_of(count, twin.settings, {}) for count in (place.start, place.length))
    return _rows(Part(place.axis, tuple(view), place.dim, start, length))
