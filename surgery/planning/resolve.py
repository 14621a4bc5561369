"""Which rule wins which site: read top to bottom, the first match wins, and nothing is silent."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from surgery.architecture import Site
from surgery.errors import PlanError, PluginError, Problem, SurgeryError, nearest
from surgery.planning.asking import Asked
from surgery.planning.inventory import Inventory
from surgery.planning.match import Matching
from surgery.planning.plan import Edit, RuleOutcome
from surgery.registry import Registry
from surgery.spec import Options, Rule

__all__ = ["join_parts", "resolve"]

_MANY = 2000
"""Names that a misspelt one is compared with."""

_Claim = tuple[str, str]  # (canonical parameter name, role of the part or "")


@dataclass
class _State:
    """What earlier rules have taken, and what went wrong so far."""

    winners: dict[_Claim, int] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)
    outcomes: list[RuleOutcome] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def resolve(
    rules: Sequence[Rule], sites: Sequence[Site], inventory: Inventory, registry: Registry, *, is_inferred: bool = False
) -> tuple[tuple[Edit, ...], tuple[RuleOutcome, ...]]:
    """Decide every rule over all sites.

    Args:
        rules, sites, inventory, registry: what is asked of what.
        is_inferred: no plugin describes the model, and its roles are inferred.

    Raises:
        PlanError: everything that is wrong at once: rules that match or win nothing, layers out of range, failed
            `expect`s, tied weights cut by one name, adapters larger than what they adapt.
        SpecError, PluginError: an unknown adapter or an option that it does not take.
    """
    state = _State()
    matching = Matching(sites, len(rules))
    resolver = _Resolver(sites, inventory, matching, is_inferred)
    for index, rule in enumerate(rules):
        kind = Asked(rule.adapter, registry)
        options = registry.bind(rule, f"rules[{index}]")
        try:
            resolver.apply(index, rule, kind, options, state)
        except PluginError:
            raise  # no fault of the spec
        except SurgeryError as error:
            state.problems.extend(
                replace(problem, where=problem.where or _where(index, rule)) for problem in error.problems
            )
        if matching.is_over:
            break
    if state.problems:
        raise PlanError.of(state.problems)
    order = {site.key: position for position, site in reversed(list(enumerate(sites)))}
    first = {site.name: position for position, site in reversed(list(enumerate(sites)))}
    edits = sorted(state.edits, key=lambda edit: order.get(edit.site.key, first[edit.site.name]))
    return tuple(edits), tuple(state.outcomes)


class _Resolver:
    def __init__(self, sites: Sequence[Site], inventory: Inventory, matching: Matching, is_inferred: bool) -> None:
        self._sites = sites
        self._is_inferred = is_inferred
        self._inventory = inventory
        self._matching = matching
        self._beside: dict[tuple[str, str], dict[str, Site]] = {}
        for site in sites:
            self._beside.setdefault((site.path, site.role), {})[site.parameter] = site

    def apply(self, index: int, rule: Rule, kind: Asked, options: Options, state: _State) -> None:
        matched = self._matching.sites(rule)
        if not matched:
            raise PlanError("the rule matches no site", _where(index, rule), self._suggest(rule))
        if rule.exclude is not None and self._matching.excludes_nothing(rule):
            raise PlanError(
                "it leaves out nothing of what the rule matches",
                f"{_where(index, rule)}.exclude",
                "; ".join(["correct or remove it", *self._near(rule.exclude.role, rule.exclude.target)]),
            )
        spared = [] if kind.takes_routers else [site for site in matched if not _is_asked_for(site, rule)]
        claimed = [site for site in matched if kind.claims(site) and site not in spared]
        if not claimed and len(spared) == len(matched):
            raise PlanError(
                f"the rule matches nothing but routers ({matched[0].name}), which {rule.adapter!r} adapts by name only",
                _where(index, rule),
                r"say `role: moe\.router`",
            )
        if not claimed:
            raise PlanError(
                f"the rule matches {len(matched)} parameters, and {rule.adapter!r} can adapt none of them",
                _where(index, rule),
                f"first match: {matched[0].name} in a host of kind {matched[0].host!r}, shape {list(matched[0].shape)}",
            )
        free, lost = self._free(self._untangle(rule, claimed), state)
        if not free:
            winners = ", ".join(f"rules[{winner}] took {count}" for winner, count in sorted(lost.items()))
            raise PlanError(
                f"earlier rules have won every site that the rule matches ({winners})",
                _where(index, rule),
                "move the rule up, narrow the earlier one, or remove this one",
            )
        self._refuse_mixed_ties(free, state)
        edits = self._edits(index, rule, kind, options, free)
        self._refuse_taken_companions(edits, state)
        if rule.expect is not None and rule.expect != len(free):
            raise PlanError(
                f"the rule expects {rule.expect} site{'s' if rule.expect > 1 else ''} and wins {len(free)}",
                f"{_where(index, rule)}.expect",
                f"write expect: {len(free)}, or correct the rule"
                + (f"; it matches {len(claimed)} and loses {lost.total()} to earlier rules" if lost else ""),
            )
        for edit in edits:
            for site in edit.sites:
                state.winners[self._claim(site, edit.tied)] = index
        state.edits.extend(edits)
        state.outcomes.append(
            RuleOutcome(
                index=index,
                rule=rule,
                won=len(free),
                lost=dict(sorted(lost.items())),
                unclaimed=len(matched) - len(claimed),
                parameters=sum(edit.parameters for edit in edits),
            )
        )

    def _untangle(self, rule: Rule, sites: list[Site]) -> list[tuple[Site, str]]:
        """Decide tied names: all of them matched means shared; only some of them needs `tied:`."""
        names = {site.name for site in sites}
        kept: list[tuple[Site, str]] = []
        problems: list[Problem] = []
        for site in sites:
            if not site.tied:
                kept.append((site, ""))
                continue
            is_whole = names.issuperset(site.tied)
            if rule.tied == "untie":
                kept.append((site, "untie"))
            elif is_whole or rule.tied == "share":
                first = min(names.intersection((site.name, *site.tied)), key=self._inventory.rank)
                if site.name == first:
                    kept.append((site, "share"))
            else:
                problems.append(
                    Problem(
                        f"{site.name} is tied to {', '.join(site.tied)}, and the rule matches only the one name",
                        "",
                        "say `tied: share` to adapt the shared tensor, `tied: untie` to cut this name off, "
                        "or exclude it",
                    )
                )
        if problems:
            raise PlanError.of(problems)
        return kept

    def _claim(self, site: Site, tied: str) -> _Claim:
        name = site.name if tied == "untie" else self._inventory.canonical(site.name)
        return name, site.role if site.slice else ""

    def _winner(self, site: Site, tied: str, state: _State) -> int | None:
        winner = state.winners.get(self._claim(site, tied))
        if winner is None and site.slice:
            winner = state.winners.get((self._inventory.canonical(site.name), ""))
        return winner

    def _free(self, sites: list[tuple[Site, str]], state: _State) -> tuple[list[tuple[Site, str]], Counter[int]]:
        lost: Counter[int] = Counter()
        free = []
        for site, tied in sites:
            winner = self._winner(site, tied, state)
            if winner is None:
                free.append((site, tied))
            else:
                lost[winner] += 1
        return free, lost

    def _refuse_mixed_ties(self, free: list[tuple[Site, str]], state: _State) -> None:
        """One tensor cannot be shared by one rule and cut in two by another."""
        modes = {self._inventory.canonical(edit.site.name): edit for edit in state.edits if edit.tied}
        for site, tied in free:
            other = modes.get(self._inventory.canonical(site.name)) if tied else None
            if other is not None and other.tied != tied:
                raise PlanError(
                    f"rules[{other.rule}] says `tied: {other.tied}` for {other.site.name}, this rule says "
                    f"`tied: {tied}` for {site.name}, and both are one tensor",
                    "",
                    "say the same in both rules",
                )

    def _refuse_taken_companions(self, edits: list[Edit], state: _State) -> None:
        """What an adapter needs beside its site must be free as well: one parameter has one winner."""
        for edit in edits:
            for other in edit.companions:
                winner = self._winner(other, edit.tied, state)
                if winner is not None:
                    raise PlanError(
                        f"{edit.adapter} on {edit.site.key} also changes {other.key}, which rules[{winner}] has won",
                        "",
                        "turn that option off there, or exclude the parameter in the earlier rule",
                    )
                if other.tied and not edit.tied:
                    raise PlanError(
                        f"{edit.adapter} on {edit.site.key} also changes {other.key}, which is tied to "
                        f"{', '.join(other.tied)}",
                        "",
                        "turn that option off there",
                    )

    def _edits(self, index: int, rule: Rule, kind: Asked, options: Options, free: list[tuple[Site, str]]) -> list[Edit]:
        edits: list[Edit] = []
        problems: list[Problem] = []
        for site, tied in join_parts(free, self._sites) if kind.joins_parts else free:
            count = kind.parameters(site, options)
            if count > site.size and not rule.allow_oversized:
                problems.append(
                    Problem(
                        f"{rule.adapter} would train {count:,} numbers for {site.key}, which has only {site.size:,}",
                        _where(index, rule),
                        "lower the rank, use a full-tuning adapter there, or say `allow_oversized: true`",
                    )
                )
            companions = self._companions(site, kind, options)
            edits.append(Edit(site, companions, index, kind.name, options, count, kind.trainable_dtype(site), tied))
        if problems:
            first, rest = problems[0], len(problems) - 1
            raise PlanError.of([replace(first, what=f"{first.what}{f' (and {rest} more like it)' if rest else ''}")])
        return edits

    def _companions(self, site: Site, kind: Asked, options: Options) -> tuple[Site, ...]:
        others = dict(self._beside.get((site.path, site.role), {}))
        others.pop(site.parameter, None)
        names = kind.companions(site, options, tuple(others))
        missing = [name for name in names if name not in others]
        if missing:
            raise PlanError(
                f"the adapter also needs {missing[0]!r} of {site.path!r}, which has none",
                "",
                "turn that option off there",
            )
        return tuple(others[name] for name in names)

    def _narrowed(self, rule: Rule) -> str:
        """Return what is to be said where each pattern matches, and together they leave nothing."""
        if rule.exclude is not None:
            kept = len(self._matching.sites(rule.model_copy(update={"exclude": None})))
            if kept:
                return f"its `exclude` leaves out all {kept} that it matches"
        if rule.role is not None and rule.target is not None:
            by_role = len(self._matching.sites(rule.model_copy(update={"target": None})))
            by_target = len(self._matching.sites(rule.model_copy(update={"role": None})))
            if by_role and by_target:
                return f"`role` alone matches {by_role} parameters and `target` alone {by_target}, but none both"
        return ""

    def _suggest(self, rule: Rule) -> str:
        narrowed = self._narrowed(rule)
        if narrowed:
            return narrowed
        parts = self._near(rule.role, rule.target)
        if rule.layers != "all":
            parts.append(f"layers: {rule.layers}")
        return "; ".join(part for part in parts if part)

    def _near(self, role: str | None, target: str | None) -> list[str]:
        """Return hints with the roles and paths nearest to two patterns."""
        parts = []
        if role is not None:
            roles = {site.role for site in self._sites if not site.role.startswith("other.")}
            if self._is_inferred and roles and "norm" in role:
                norm = next((site.path.rpartition(".")[2] for site in self._sites if site.host == "norm"), "norm")
                parts.append(f"norms are not inferred: say `target: .*\\.{norm}`, or describe them in a plugin")
            elif roles:
                parts.append(nearest(role.replace("\\", ""), roles))
            else:
                parts.append("this model has no architecture plugin, so no roles: use `target:`")
        if target is not None:
            paths = {site.path for site in self._sites}
            if len(paths) > _MANY:  # comparing texts is slow; one layer stands for all
                paths = set(sorted({site.path for site in self._sites if not site.layer})[:_MANY])
            parts.append(nearest(target.replace("\\", ""), paths))
        return parts


def join_parts(free: list[tuple[Site, str]], sites: Sequence[Site]) -> list[tuple[Site, str]]:
    """Put the parts of one parameter together again where every part of it is free."""
    parts: dict[str, list[Site]] = {}
    for site in sites:
        if site.slice:
            parts.setdefault(site.name, []).append(site)
    free_keys = {site.key for site, _ in free}
    joined: list[tuple[Site, str]] = []
    done: set[str] = set()
    for site, tied in free:
        group = parts.get(site.name, [])
        if not site.slice or not _tile(group) or any(part.key not in free_keys for part in group):
            joined.append((site, tied))
        elif site.name not in done:
            done.add(site.name)
            axis = site.slice.axis
            extent = sum(part.slice.size for part in group if part.slice)
            shape = (*site.shape[:axis], extent, *site.shape[axis + 1 :])
            role = "+".join(part.role for part in group)
            joined.append((replace(site, role=role, shape=shape, slice=None), tied))
    return joined


def _tile(group: Sequence[Site]) -> bool:
    """Whether parts make up the whole of their parameter."""
    slices = [part.slice for part in group if part.slice]
    return sum(part.size for part in slices) == math.prod(slices[0].view)


def _is_asked_for(site: Site, rule: Rule) -> bool:
    """Whether the rule means `site`; of a router only if one of its patterns names it, whatever else they match."""
    if site.role != "moe.router":
        return True
    module = site.path.rpartition(".")[2] or site.path
    return "router" in (rule.role or "") or module in (rule.target or "")


def _where(index: int, rule: Rule) -> str:
    patterns = [f"role: {rule.role}" if rule.role is not None else "", f"target: {rule.target}" if rule.target else ""]
    return f"rules[{index}] ({', '.join(pattern for pattern in patterns if pattern)})"
