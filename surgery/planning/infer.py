"""Roles of a model that no plugin describes: what names suggest, kept where the shapes agree, and what was measured.

A fused weight is never cut by its name, since one name stands for several layouts. What is left open is told, so that
a rule that may mean it fails instead of missing it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from surgery.architecture import Architecture, Slice
from surgery.architecture.architecture import Paths
from surgery.planning.inventory import Inventory, ParameterEntry
from surgery.planning.names import FUSED, IN_LAYERS, OUTSIDE, named, splits
from surgery.planning.shapes import LATENT_ROLES, Weight, checked, is_latent, latent_parts

if TYPE_CHECKING:
    from surgery.planning.probe import Finding

__all__ = ["Inference", "Open", "infer"]

_EXPERTS = ("moe.experts.gate", "moe.experts.up", "moe.experts.down")
_KINDS = (
    ("vision", "vision|visual|image|vit"),
    ("audio", "audio|speech"),
    ("encoder", "encoder"),
    ("decoder", "decoder"),
)


@dataclass(frozen=True, slots=True)
class Open:
    """A weight whose role or layout is not known.

    Attributes:
        path: `*.` for a layer of any stack, and the module path inside it.
        roles: what it may hold.
        why: the reason in words.
    """

    path: str
    roles: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Inference:
    """What could be inferred.

    Attributes:
        architecture: stacks and roles; `base` is empty, its paths are relative to the whole model.
        sources: role -> `names`, `names and sizes`, `flags` or `measurement`: what it was inferred from.
        open: what could not be inferred and may matter.
    """

    architecture: Architecture
    sources: Mapping[str, str]
    open: tuple[Open, ...]


def infer(inventory: Inventory, measured: Mapping[str, Finding] | None = None) -> Inference:
    """Infer the roles of a model from the names, shapes and hosts of its parameters, and from measurements.

    Args:
        inventory: the model.
        measured: path, with a star for a layer's number -> what was measured of the linear map there.
    """
    measured = measured or {}
    stacks = _Stacks(inventory.entries, measured)
    found = _Found()
    for stack in stacks.paths:
        reading = _Reading(stack, inventory.settings, found, measured)
        for layer in stacks.layers(stack):
            reading.layer(layer)
        reading.finish()
    _infer_outside(inventory, stacks, found)
    architecture = Architecture(
        types=(inventory.model_type or "unknown",),
        base="",
        stacks=_names(stacks.paths),
        roles=found.roles(_names(stacks.paths)),
        heads={role: tuple(paths) for role, paths in found.heads.items()},
        plain=found.places_without_role(_names(stacks.paths)),
        open={open_.path: open_.roles for open_ in found.open.values()},
    )
    return Inference(architecture, dict(sorted(found.sources.items())), tuple(found.open.values()))


@dataclass
class _Found:
    inside: dict[tuple[str, str], dict[str, str | Slice]] = field(default_factory=dict)
    heads: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    sources: dict[str, str] = field(default_factory=dict)
    open: dict[str, Open] = field(default_factory=dict)
    plain: dict[tuple[str, str], str | Slice] = field(default_factory=dict)

    def put(self, stack: str, role: str, path: str | Slice, source: str) -> None:
        name = path.path if isinstance(path, Slice) else path
        self.inside.setdefault((stack, name), {})[role] = path
        self.sources.setdefault(role, source)

    def leave(self, path: str, roles: Iterable[str], why: str) -> None:
        self.open.setdefault(path, Open(path, tuple(roles), why))

    def places_without_role(self, names: Mapping[str, str]) -> tuple[str | Slice, ...]:
        """Return what was measured to have no role, in the stack that it was measured in."""
        stacks = {path: name for name, path in names.items()}
        return tuple(_prefixed(place, f"{stacks[stack]}:") for (stack, _), place in self.plain.items())

    def roles(self, names: Mapping[str, str]) -> dict[str, Paths]:
        """Return role -> paths, with the stack's name where one path means different things in two stacks."""
        meanings: dict[str, list[dict[str, str | Slice]]] = defaultdict(list)
        for (_, path), roles in self.inside.items():
            meanings[path].append(roles)
        stacks = {path: name for name, path in names.items()}
        found: dict[str, dict[str | Slice, None]] = defaultdict(dict)
        for (stack, path), roles in self.inside.items():
            prefix = "" if all(other == roles for other in meanings[path]) else f"{stacks[stack]}:"
            for role, place in roles.items():
                found[role][_prefixed(place, prefix)] = None
        return {role: next(iter(paths)) if len(paths) == 1 else tuple(paths) for role, paths in found.items()}


def _prefixed(place: str | Slice, prefix: str) -> str | Slice:
    if isinstance(place, Slice):
        return Slice(prefix + place.path, place.view, place.dim, place.start, place.length, place.axis)
    return prefix + place


def _placed(place: str | Slice, path: str) -> str | Slice:
    return path if isinstance(place, str) else replace(place, path=path)


class _Stacks:
    """Lists of layers: the outermost numbers in names after which something is called as in a layer."""

    def __init__(self, entries: Sequence[ParameterEntry], measured: Collection[str]) -> None:
        self._layers: dict[str, dict[tuple[int, ...], list[tuple[str, ParameterEntry]]]] = {}
        candidates: dict[str, list[tuple[tuple[int, ...], str, ParameterEntry]]] = defaultdict(list)
        for entry in entries:
            for path, index, inside in splits(entry.path):
                candidates[path].append((index, inside, entry))
        for path in sorted(candidates, key=lambda path: (path.count(".*."), path)):
            is_inner = any(re.match(re.escape(outer) + r"\.\*\.", path) for outer in self._layers)
            insides = {inside for _, inside, _ in candidates[path]}
            is_known = any(_suggests(inside) or f"{path}.*.{inside}" in measured for inside in insides)
            if not is_inner and is_known:
                layers = self._layers.setdefault(path, defaultdict(list))
                for index, inside, entry in candidates[path]:
                    layers[index].append((inside, entry))

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(self._layers)

    def layers(self, path: str) -> list[list[tuple[str, ParameterEntry]]]:
        return [self._layers[path][index] for index in sorted(self._layers[path])]

    def holds(self, entry: ParameterEntry) -> bool:
        return any(path in self._layers for path, _, _ in splits(entry.path))


def _suggests(inside: str) -> bool:
    role = named(inside, IN_LAYERS)
    return (role is not None and role.startswith(("attention.", "ssm.", "cross_attention."))) or any(
        pattern.fullmatch(inside) and fused.roles[0].startswith(("attention.", "ssm.")) for pattern, fused in FUSED
    )


def _names(paths: Sequence[str]) -> dict[str, str]:
    """Return stack name -> path: a word for what it is where that tells them apart, else the path itself."""
    words = {
        path: next((word for word, pattern in _KINDS if re.search(pattern, path)), path.rpartition(".")[2])
        for path in paths
    }
    counts = [*words.values()]
    return {
        word if counts.count(word) == 1 else path.replace(".", "_").replace("*", "n"): path
        for path, word in words.items()
    }


class _Reading:
    """One stack, read layer by layer. A name means a role in a stack when it does in every layer that has it."""

    def __init__(self, stack: str, settings: Mapping[str, Any], found: _Found, measured: Mapping[str, Finding]) -> None:
        self._stack = stack
        self._measured = measured
        self._findings: dict[str, Finding] = {}
        self._settings = settings
        self._found = found
        self._hits: dict[str, dict[str, None]] = defaultdict(dict)
        self._sliced: dict[str, dict[str, Slice]] = {}
        self._refuted: dict[str, tuple[tuple[str, ...], str]] = {}

    def layer(self, entries: Sequence[tuple[str, ParameterEntry]]) -> None:
        """Take up what the names in one layer suggest and its shapes bear out."""
        experts = [item for item in entries if item[1].host in ("experts", "transposed-experts")]
        weights = [weight for inside, entry in entries for weight in self._weights(inside, entry)]
        siblings = frozenset(inside for inside, _ in entries) | {
            f"{inside}.{entry.parameter}" for inside, entry in entries
        }
        for weight, why in checked(weights, siblings, next((entry.shape[0] for _, entry in experts), 0)):
            if weight.inside in self._findings:
                continue
            if why:
                self._refuted[weight.inside] = ((weight.role,), why)
            else:
                self._hits[weight.inside][weight.role] = None
        for inside, entry in experts:
            self._read_experts(inside, entry)

    def finish(self) -> None:
        """Hand over what holds in every layer."""
        for inside, roles in self._hits.items():
            if len(roles) > 1:
                self._refuted.setdefault(inside, (tuple(roles), "it means different things in different layers"))
            elif inside not in self._refuted:
                self._found.put(self._stack, next(iter(roles)), f"*.{inside}", "names")
        self._hand_over_measurements()
        for inside, parts in self._sliced.items():
            for role, part in parts.items() if inside not in self._refuted else ():
                self._found.put(self._stack, role, part, "names and sizes")
        for inside, (roles_, why) in self._refuted.items():
            self._found.leave(f"*.{inside}", roles_, why)

    def _hand_over_measurements(self) -> None:
        for inside, finding in self._findings.items():
            path = f"*.{inside}"
            if finding.plain is not None:
                self._found.plain[self._stack, inside] = _placed(finding.plain, path)
            for role, part in finding.parts.items():
                source = "names" if role == named(inside, IN_LAYERS) and isinstance(part, str) else "measurement"
                self._found.put(self._stack, role, _placed(part, path), source)

    def _weights(self, inside: str, entry: ParameterEntry) -> Iterator[Weight]:
        if is_latent(inside):
            parts = latent_parts(inside, entry, self._settings)
            if parts:
                self._sliced.setdefault(inside, parts)
            else:
                self._refuted[inside] = (LATENT_ROLES, "its sizes are not the usual ones")
            return
        name = inside if entry.parameter == "weight" else f"{inside}.{entry.parameter}"
        role = named(name, IN_LAYERS)
        finding = self._measured.get(f"{self._stack}.*.{inside}") if entry.parameter == "weight" else None
        if finding is not None:
            yield from self._compared(inside, entry, role, finding)
        else:
            yield from self._named(inside, name, entry, role)

    def _compared(self, inside: str, entry: ParameterEntry, role: str | None, finding: Finding) -> Iterator[Weight]:
        """Take up what was measured, unless a name says something else."""
        if finding.parts and role is not None and role not in finding.parts:
            self._refuted[inside] = ((role, *finding.parts), "its name says one thing and what it does another")
            return
        self._findings[inside] = finding
        if role is not None and finding.parts == {role: finding.path}:
            yield Weight(entry, inside, role)  # a whole weight: its shape tells of the others

    def _named(self, inside: str, name: str, entry: ParameterEntry, role: str | None) -> Iterator[Weight]:
        """Yield what a name suggests, and leave open what it does not tell."""
        if len(entry.shape) == 3 and role == "ssm.conv":
            self._hits[inside][role] = None
        if len(entry.shape) == 3 and not entry.host and "experts" in inside:
            self._found.leave(f"*.{inside}", _EXPERTS, "a file does not say how experts are stored")
        if len(entry.shape) != 2 or entry.host not in ("linear", "conv1d", "other", ""):
            return
        for pattern, fused in FUSED:
            if pattern.fullmatch(name):
                self._found.leave(f"*.{name}", fused.roles, "its layout cannot be told from its name")
                return
        if role is not None:
            yield Weight(entry, inside, role)

    def _read_experts(self, inside: str, entry: ParameterEntry) -> None:
        """What transformers' own flags say of a 3-D weight of experts."""
        path, axis = f"*.{inside}.{entry.parameter}", 2 if entry.host == "transposed-experts" else 1
        if entry.parameter == "gate_up_proj":
            view, dim = ((-1, 2), 1) if entry.interleaved else ((2, -1), 0)
            for start, role in enumerate(("moe.experts.gate", "moe.experts.up")):
                self._found.put(self._stack, role, Slice(path, view, dim, start, 1, axis), "flags")
        elif entry.parameter in ("up_proj", "down_proj"):
            self._found.put(self._stack, f"moe.experts.{entry.parameter.split('_')[0]}", path, "flags")
        else:
            self._found.leave(path, _EXPERTS, "nothing says what it is")


def _infer_outside(inventory: Inventory, stacks: _Stacks, found: _Found) -> None:
    vocabulary = inventory.settings.get("vocab_size")
    for entry in inventory.entries:
        role = named(entry.path, OUTSIDE)
        if role is None or stacks.holds(entry) or len(entry.shape) != 2:
            continue
        if role.startswith("head.") and re.search(r"\.\d+\.", entry.path):
            continue  # inside a list: a router may be called classifier
        if entry.host and (entry.host == "embedding") != role.startswith("embedding."):
            continue
        is_vocabulary = role in ("embedding.token", "head.lm")
        if is_vocabulary and isinstance(vocabulary, int) and entry.shape[0] < vocabulary:
            continue
        if entry.path not in found.heads[role]:
            found.heads[role].append(entry.path)
        found.sources.setdefault(role, "names")
