"""Which sites a rule's patterns match, within a budget of time for the whole spec."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from time import thread_time
from typing import NoReturn

from surgery.architecture import ROLES, Site
from surgery.errors import PlanError
from surgery.spec import Rule, compile_pattern, layer_indices

__all__ = ["Matching"]

_SECONDS = 0.5
_SECONDS_FOR_A_SITE = 5e-6
"""Many times what an honest pattern takes for one name."""


class Matching:
    """The patterns of all rules over all sites.

    One match is bounded in time by the pattern itself. A thousand names, each just within that bound, would still take
    a minute, and a spec may hold hundreds of rules: so the sum is bounded as well, in processor time, which a busy
    machine does not lengthen.
    """

    def __init__(self, sites: Sequence[Site], rules: int) -> None:
        self._sites = sites
        self._budget = _SECONDS + _SECONDS_FOR_A_SITE * len(sites) * rules
        self._left = self._budget
        self._counts: dict[str, int] = {}
        for site in sites:
            if site.layer is not None:
                self._counts[site.stack] = max(self._counts.get(site.stack, 0), site.layer + 1)

    @property
    def is_over(self) -> bool:
        """Whether the time is used up, so that no further rule can be judged."""
        return self._left <= 0

    def sites(self, rule: Rule) -> list[Site]:
        """Return the sites that `rule` speaks of, in module order.

        Raises:
            PlanError: a layer that does not exist, or the time is used up.
            SpecError: one match alone took too long.
        """
        excluded = rule.exclude
        with self._spending() as deadline:
            wanted = _Names(rule.role, rule.target, deadline)
            unwanted = _Names(excluded.role, excluded.target, deadline) if excluded else None
            kept = [site for site in self._sites if not (unwanted and unwanted(site))]
            matched = [site for site in kept if wanted(site)]
            missed = [site for site in kept if site.open and wanted.may_mean(site) and not wanted(site)]
        if missed:
            _refuse_missing(missed)
        if rule.layers == "all" or not matched:
            return matched
        # Layers are counted in the stacks that the patterns reach: an encoder may be shorter than its decoder.
        stacks = {site.stack for site in matched if site.layer is not None} or {""}
        chosen = {stack: set(layer_indices(rule.layers, self._counts.get(stack, 0))) for stack in sorted(stacks)}
        return [site for site in matched if site.layer is not None and site.layer in chosen[site.stack]]

    def excludes_nothing(self, rule: Rule) -> bool:
        """Whether `exclude` leaves out nothing that the rule would match, as a misspelt one does.

        A role of the vocabulary that this model does not have is no mistake: one spec serves models with and without
        a head.

        Raises:
            PlanError, SpecError: as `sites`.
        """
        excluded = rule.exclude
        if excluded is None:
            return False
        with self._spending() as deadline:
            wanted = _Names(rule.role, rule.target, deadline)
            unwanted = _Names(excluded.role, excluded.target, deadline)
            found = [site for site in self._sites if unwanted(site)]
            if any(wanted(site) or wanted.may_mean(site) for site in found):
                return False
            if found or excluded.role is None or excluded.target is not None:
                return True
            known = compile_pattern(excluded.role)
            return not any(known.fullmatch(role) for role in ROLES)

    @contextlib.contextmanager
    def _spending(self) -> Iterator[float]:
        """Take what happens inside off the budget; the value is when it is used up."""
        start = thread_time()
        try:
            yield start + self._left
        except TimeoutError:
            self._left = 0.0
            raise PlanError(
                f"the patterns took more than {self._budget:.1f} s of processor time on {len(self._sites):,} names",
                hint="simplify them: avoid several .* or repeats in one another; later rules were not looked at",
            ) from None
        finally:
            self._left -= thread_time() - start


def _refuse_missing(missed: Sequence[Site]) -> NoReturn:
    site = missed[0]
    more = f" (and {len(missed) - 1} more)" if len(missed) > 1 else ""
    raise PlanError(
        f"{site.name}{more} may hold {' or '.join(site.open)}, and nothing says how it is laid out",
        "",
        "describe it in an architecture plugin (surgery architecture draft MODEL begins one), name it by `target:`, "
        "or leave it out by `exclude:`",
    )


class _Names:
    """One pair of patterns; every distinct role and path is matched once."""

    def __init__(self, role: str | None, target: str | None, deadline: float) -> None:
        self._role = compile_pattern(role) if role is not None else None
        self._target = compile_pattern(target) if target is not None else None
        self._deadline = deadline
        self._roles: dict[str, bool] = {}
        self._paths: dict[str, bool] = {}

    def __call__(self, site: Site) -> bool:
        if self._role is not None:
            if site.role not in self._roles:
                self._roles[site.role] = self._role.fullmatch(site.role)
                self._tick()
            if not self._roles[site.role]:
                return False
        if self._target is None:
            return True
        if site.path not in self._paths:
            self._paths[site.path] = self._target.fullmatch(site.path)
            self._tick()
        if self._paths[site.path]:
            return True
        found = self._target.fullmatch(site.name)
        self._tick()
        return found

    def may_mean(self, site: Site) -> bool:
        """Whether the patterns would match one of the roles that a site of unknown layout may hold."""
        return any(self(replace(site, role=role)) for role in site.open)

    def _tick(self) -> None:
        if thread_time() > self._deadline:
            raise TimeoutError
