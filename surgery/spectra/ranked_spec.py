"""A spec that says the rank of every matrix."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgery.architecture import Site
from surgery.planning import Edit
from surgery.spec import Rule, Spec

__all__ = ["Ranked", "ranked_spec"]

_MOST_RULES = 256
_MOST_TEXT = 3000
"""Characters of a pattern that names weights one by one."""


@dataclass(frozen=True)
class Ranked:
    """One edit of a plan, and the rank that it is to have; None where its adapter has no ranks."""

    edit: Edit
    rank: int | None

    @property
    def is_oversized(self) -> bool:
        """Whether factors, and perhaps a bias, may hold more numbers than what they adapt."""
        site = self.edit.site
        numbers = (self.rank or 0) * (site.fan_in + site.fan_out) + site.fan_out
        return self.rank is not None and numbers * (site.experts or 1) > site.size


def ranked_spec(
    chosen: Sequence[Ranked], template: Spec, sites: Sequence[Site], claims: Callable[[str, Site], bool], name: str
) -> tuple[Spec, tuple[Ranked, ...]]:
    """Return a spec that adapts exactly what was chosen, and what was chosen with the ranks that it says.

    A spec holds at most 256 rules. Where that is too few for all ranks, ranks are rounded up, to fewer different ones.

    Args:
        chosen: edits of a plan of `template`, one or more.
        template: whose rules' options are kept, rank and scale apart.
        sites: all sites of the model.
        claims: (name of an adapter, site) -> whether it adapts the site.
        name: of the new spec.
    """
    for steps in (0, 8, 4, 2, 1):
        rounded = tuple(Ranked(one.edit, _rounded(one, steps)) for one in chosen)
        rules = list(_rules(rounded, template, sites, claims))
        if len(rules) <= _MOST_RULES:
            break
    return Spec(name=name, seed=template.seed, rules=rules), rounded


def _rounded(one: Ranked, steps: int) -> int | None:
    """Return the rank, or the next power of 2^(1 / steps) above it; never above the matrix's own."""
    if one.rank is None or not steps:
        return one.rank
    power = math.ceil(math.log2(one.rank) * steps - 1e-9)
    return min(math.ceil(2 ** (power / steps) - 1e-9), one.edit.site.fan_in, one.edit.site.fan_out)


def _rules(
    chosen: Sequence[Ranked], template: Spec, sites: Sequence[Site], claims: Callable[[str, Site], bool]
) -> Iterator[Rule]:
    groups: dict[tuple[Any, ...], list[Ranked]] = {}
    for one in chosen:
        edit = one.edit
        groups.setdefault(
            (edit.rule, edit.site.role, edit.site.stack, edit.tied, one.rank, one.is_oversized), []
        ).append(one)
    for group in groups.values():
        edit = group[0].edit
        keys = _options(template.rules[edit.rule], group[0])
        able = [site for site in sites if claims(edit.adapter, site)]
        for selection in _selections(group, able):
            yield Rule(adapter=edit.adapter, **selection, **keys)


def _options(rule: Rule, one: Ranked) -> Mapping[str, Any]:
    options: dict[str, Any] = dict(rule.options)
    if one.rank is not None:
        options["rank"] = one.rank
        if "alpha" in type(one.edit.options).model_fields and "alpha" not in options:
            options["alpha"] = float(one.rank)
    if one.edit.tied:
        options["tied"] = one.edit.tied
    if one.is_oversized or (one.rank is None and rule.allow_oversized):
        options["allow_oversized"] = True
    return options


def _selections(group: Sequence[Ranked], able: Sequence[Site]) -> Iterator[Mapping[str, Any]]:
    """Yield role and layers where they say which sites are meant, else role and the weights' names."""
    own = [one.edit.site for one in group]
    roles = own[0].role.split("+")
    role = re.escape(own[0].role) if len(roles) == 1 else f"({'|'.join(map(re.escape, roles))})"
    matched = [site for site in able if site.role in roles]
    names, layers = {site.name for site in own}, {site.layer for site in own}
    if {site.name for site in matched} == names:
        yield {"role": role}
        return
    within = {site.name for site in matched if site.layer in layers}
    if within == names and None not in layers and len({site.stack for site in matched}) == 1:
        yield {"role": role, "layers": sorted(layers)}
        return
    part: list[str] = []
    for name in sorted(map(re.escape, names)):
        if part and sum(map(len, part)) + len(part) + len(name) > _MOST_TEXT:
            yield {"role": role, "target": "|".join(part)}
            part = []
        part.append(name)
    yield {"role": role, "target": "|".join(part)}
