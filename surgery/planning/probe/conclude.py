"""From what the rows of a layer's linear maps do to what the maps are: attention, MLP, or a gate on either."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from torch import nn

from surgery.architecture import Slice
from surgery.planning.probe.layouts import Seen, layout
from surgery.planning.probe.rows import Bench, Row
from surgery.planning.probe.watch import NotMeasurableError, fan_out

__all__ = ["PLAIN", "Finding", "agreed", "roles_of_layer"]

PLAIN = "plain"
"""What stands for a role where a row is known to have none: it scales what an attention has mixed."""

_ASIDE = re.compile(r"adapter|lora|router|rms|norm|altup|laurel|per_layer|index|compress|conv|predict|pool|scale")
"""Small maps beside a layer's MLP that are computed like one; no role is concluded for what is called so."""

_KINDS = ("query", "key", "value")
_SCALES = ("feed", "spread")
"""What gates do: one for each column of an attention's result, or one for each head."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a linear map was measured to be.

    Attributes:
        path: of the map, a star for its layer's number.
        parts: role -> `path`, or the slice of it that has the role.
        plain: `path`, or the slice of it that is known to have no role; None where all of it has one.
    """

    path: str
    parts: Mapping[str, str | Slice] = field(default_factory=dict)
    plain: str | Slice | None = None


def roles_of_layer(bench: Bench, layer: Mapping[str, nn.Module], has_experts: bool) -> dict[str, list[str]]:
    """Return path -> the role of each row of a linear map, `PLAIN`, or "" where nothing can be told.

    Args:
        bench: the model.
        layer: path -> linear map, of one layer.
        has_experts: whether the layer has routed experts.
    """
    rows: dict[str, list[Row]] = {}
    for path, module in layer.items():
        with suppress(NotMeasurableError):
            rows[path] = bench.rows(module)
    roles = {path: [""] * len(found) for path, found in rows.items()}
    takers: set[str] = set()
    for attention in sorted({row.attention for found in rows.values() for row in found} - {-1}):
        takers |= _attention(bench, rows, roles, attention)
    for taker in sorted({row.to for found in rows.values() for row in found if row.kind == "feed"} - takers):
        if taker in layer:
            _mlp(bench, rows, roles, taker, has_experts)
    return roles


def _attention(
    bench: Bench, rows: Mapping[str, Sequence[Row]], roles: dict[str, list[str]], attention: int
) -> set[str]:
    """Give roles to one attention of a layer; return what takes its result, a map with a role or not."""
    own = {path for path, found in rows.items() if any(row.attention == attention for row in found)}
    members = [row for path in own for row in rows[path] if row.attention == attention]
    takers = {row.to for row in members if row.kind == "value"} - {""}
    taker = next(iter(takers), "")
    gates = {path for path, found in rows.items() if any(row.kind in _SCALES and row.to == taker for row in found)}
    is_whole = len(takers) == 1 and {row.kind for row in members} == set(_KINDS)
    if not is_whole or not _takes_nothing_else(bench, taker, members, own | gates):
        return takers
    is_across = any(row.across for row in members)
    if not is_across and not bench.take_the_same([bench.paths[path] for path in own]):
        return takers  # as long a sequence, and perhaps another one
    family = "cross_attention" if is_across else "attention"
    for path in own | gates:
        for index, row in enumerate(rows[path]):
            if row.attention == attention and row.kind in _KINDS:
                roles[path][index] = f"{family}.{row.kind}"
            elif row.kind in _SCALES and row.to == taker:
                roles[path][index] = PLAIN
    if taker in roles:
        roles[taker] = [f"{family}.output"] * len(roles[taker])
    return takers


def _takes_nothing_else(bench: Bench, taker: str, members: Iterable[Row], sources: Collection[str]) -> bool:
    """Return whether what `taker` takes is the result of one attention, and made of these maps alone."""
    reached = {column for row in members for column in row.columns}
    is_full = len(reached) == _fan_in(bench.paths[taker])
    return is_full and not bench.depends([bench.paths[path] for path in sources], taker)


def _mlp(
    bench: Bench, rows: Mapping[str, Sequence[Row]], roles: dict[str, list[str]], taker: str, has_experts: bool
) -> None:
    """Give roles to what feeds `taker` column by column, if it is all that `taker` takes."""
    sources = {path for path, found in rows.items() if any(row.kind == "feed" and row.to == taker for row in found)}
    if any(row.kind != "feed" or row.to != taker for path in sources for row in rows[path]):
        return
    if any(_ASIDE.search(path) for path in (*sources, taker)):
        return
    operands: dict[int, list[bool]] = defaultdict(list)
    for path in sources:
        for row in rows[path]:
            operands[row.columns[0]].append(row.straight)
    # An operand that no activation passes alone makes no MLP: two maps in a row are one map in two factors.
    shapes = {tuple(sorted(straight)) for straight in operands.values()}
    if len(operands) != _fan_in(bench.paths[taker]) or shapes not in ({(False, True)}, {(False,)}):
        return
    if bench.depends([bench.paths[path] for path in sources], taker):
        return
    family = _family(taker, has_experts)
    is_gated = shapes == {(False, True)}
    for path in sources:
        roles[path] = [f"{family}.{'up' if row.straight or not is_gated else 'gate'}" for row in rows[path]]
    roles[taker] = [f"{family}.down"] * fan_out(bench.paths[taker])


def _family(path: str, has_experts: bool) -> str:
    if has_experts and "shared" in path:
        return "moe.shared"
    return "moe.experts" if "expert" in path else "mlp"


def _fan_in(module: nn.Module) -> int:
    weight = module._parameters["weight"]
    assert weight is not None
    return weight.numel() // fan_out(module)


def agreed(
    path: str, axis: int, rows: Sequence[Sequence[str]], settings: Sequence[Mapping[str, int]], names: Mapping[str, str]
) -> Finding | None:
    """Return what several models of different sizes agree on, or None.

    Args:
        path: of the linear map, as the finding is to name it.
        axis: the axis of its weight that its outputs are on.
        rows: for each model, the role of each row.
        settings: for each model, its sizes by the names of its configuration.
        names: see `surgery.planning.probe.layouts.layout`.
    """
    kinds = {frozenset(of_one) for of_one in rows}
    if len(kinds) != 1 or "" in next(iter(kinds)):
        return None
    found = list(dict.fromkeys(rows[0]))  # in the order of the weight's rows
    parts: dict[str, str | Slice] = {found[0]: path} if len(found) == 1 else {}
    for role in found if len(found) > 1 else ():
        seen = [Seen(_where(of_one, role), len(of_one), sizes) for of_one, sizes in zip(rows, settings, strict=True)]
        part = layout(path, seen, names, axis)
        if part is None:
            return None
        parts[role] = part
    return Finding(path, {role: part for role, part in parts.items() if role != PLAIN}, parts.get(PLAIN))


def _where(rows: Iterable[str], role: str) -> frozenset[int]:
    return frozenset(index for index, one in enumerate(rows) if one == role)
