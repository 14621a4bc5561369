"""Who trains in which module: sites and edits by the path of their host, ready to be put on a tape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from surgery.adapter import Work
from surgery.architecture import Site
from surgery.planning.cost.tape import Tape, Value
from surgery.planning.cost.unknown import Unknown
from surgery.planning.plan import Edit, Plan

__all__ = ["ADAPTERS", "Host", "hosts_of"]

ADAPTERS = "adapters"
"""The part of what adapters compute beside their hosts."""


@dataclass
class Host:
    """One module with all its sites.

    Attributes:
        path: where it is.
        sites: its sites; several for the parts of a fused weight.
        trained: names of parameters that adapters replace.
        parts: names of parameters of which a part is replaced: the whole is then put together anew at every step.
        products: (rank, dropout, spread) of low-rank products, one for each rule and adapter; parts of one fused weight
            share it, and `spread` is whether they do.
    """

    path: str
    sites: list[Site] = field(default_factory=list)
    trained: set[str] = field(default_factory=set)
    parts: set[str] = field(default_factory=set)
    products: dict[tuple[int, str], tuple[int, float, bool]] = field(default_factory=dict)

    @property
    def weight(self) -> tuple[Site, ...]:
        """The weight's site, or those of its parts."""
        return tuple(site for site in self.sites if site.parameter == "weight")

    @property
    def fan_in(self) -> int:
        return self.weight[0].fan_in

    @property
    def fan_out(self) -> int:
        return sum(site.fan_out for site in self.weight)

    @property
    def has_bias(self) -> bool:
        return any(site.parameter == "bias" for site in self.sites)

    def linear(self, tape: Tape, x: Value) -> Value:
        """Put the linear map and its adapters on the tape."""
        weight, bias = "weight" in self.trained, "bias" in self.trained
        if "weight" in self.parts and x.grad:
            tape.saved[tape.part] += self.fan_in * self.fan_out * x.size
        output = tape.linear(x, self.fan_out, weight=weight, bias=bias)
        part, tape.part = tape.part, ADAPTERS
        for rank, dropout, spread in self.products.values():
            output = tape.low_rank(x, output, rank, dropout)
            if spread:  # the parts' matrices, at their rows of the whole output
                tape.saved[ADAPTERS] += rank * self.fan_out * output.size
        tape.part = part
        return output

    def table(self, tape: Tape, ids: Value, size: int) -> Value:
        """Put a look-up and its adapters on the tape."""
        site = self.weight[0]
        trained = "weight" in self.trained
        if trained:
            tape.keep(ids)
        output = Value(ids.rows, site.fan_out, size, trained)
        part, tape.part = tape.part, ADAPTERS
        for rank, _, _ in self.products.values():
            tape.keep(ids)
            low = Value(ids.rows, rank, output.size, grad=True)
            tape.keep(low)
            tape.product(ids.rows, rank, output.width, left=True, right=True)
            output = Value(output.rows, output.width, output.size, grad=True)
        tape.part = part
        return output

    def norm(self, tape: Tape, x: Value, *, plain: bool) -> Value:
        """Put a norm on the tape; one without a bias is an RMS norm, unless all are `plain` layer norms."""
        trained = bool(self.trained)
        return tape.layer_norm(x, trained=trained) if self.has_bias or plain else tape.rms_norm(x, trained=trained)


def hosts_of(plan: Plan, sites: Iterable[Site], work: Callable[[Edit], Work | None]) -> Mapping[str, Host]:
    """Return path -> host.

    Args:
        plan: what is trained.
        sites: all of the model's.
        work: what the adapter type says of an edit.

    Raises:
        Unknown: an adapter type does not say what it computes, or does it in a way that has no rule here.
    """
    hosts: dict[str, Host] = {}
    for site in sites:
        hosts.setdefault(site.path, Host(site.path)).sites.append(site)
    grouped: dict[tuple[str, int, str], list[tuple[Edit, Work]]] = defaultdict(list)
    for edit in plan.edits:
        told = work(edit)
        if told is None:
            raise Unknown(f"the adapter {edit.adapter!r} does not say what it computes")
        if told.replaces:
            _replace(hosts, edit)
        else:
            grouped[edit.site.path, edit.rule, edit.adapter].append((edit, told))
    for (path, rule, adapter), edits in grouped.items():
        hosts[path].products[rule, adapter] = _product([edit for edit, _ in edits], [told for _, told in edits])
    return hosts


def _replace(hosts: Mapping[str, Host], edit: Edit) -> None:
    names = [site.name for site in edit.sites]
    if edit.tied == "share":
        names += edit.site.tied
    for name in names:
        path, _, parameter = name.rpartition(".")
        if path not in hosts:
            raise Unknown(f"the tied name {name!r} belongs to no site")
        hosts[path].trained.add(parameter)
        if edit.site.slice is not None:
            hosts[path].parts.add(parameter)


def _product(edits: Sequence[Edit], told: Sequence[Work]) -> tuple[int, float, bool]:
    first = edits[0]
    if first.site.experts or first.site.parameter != "weight" or first.tied == "share":
        raise Unknown(f"what {first.adapter!r} folds into {first.site.name} has no rule here")
    return sum(work.rank for work in told), told[0].dropout, first.site.slice is not None
