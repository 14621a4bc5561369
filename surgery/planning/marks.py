"""What a plan does to each site, in few words: the rule that wins it, the adapter, and what is trained."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from surgery.architecture import Site
from surgery.planning.plan import Edit, Plan
from surgery.spec import Options

__all__ = ["Mark", "chosen", "marks", "scalar"]


@dataclass(frozen=True, slots=True)
class Mark:
    """How one site is touched.

    Attributes:
        rule: index of the rule that won it.
        adapter: name of its adapter.
        options: the options that the rule must give: `rank 8`.
        parameters: trainable numbers of the edit; 0 where they are counted at another site.
        note: what else there is to say: that the edit is another site's, or that a tie is cut.
    """

    rule: int
    adapter: str
    options: str
    parameters: int
    note: str = ""

    def __str__(self) -> str:
        words = " ".join(filter(None, (f"rules[{self.rule}]", self.adapter, self.options)))
        trained = f" +{self.parameters:,}" if self.parameters else ""
        return f"<- {words}{trained}{f' ({self.note})' if self.note else ''}"


def marks(plan: Plan, sites: Iterable[Site]) -> Mapping[str, Mark]:
    """Return site key -> mark, for every site that `plan` touches, under each name of a shared tensor."""
    by_name: dict[str, list[Site]] = defaultdict(list)
    for site in sites:
        by_name[site.name].append(site)
    options = {edit.rule: edit.options for edit in plan.edits}
    said = {rule: chosen(value, required=True) for rule, value in options.items()}
    found: dict[str, Mark] = {}
    for edit in plan.edits:
        for position, site in enumerate(_touched(edit, by_name)):
            found.setdefault(site.key, _mark(edit, site, said[edit.rule], position))
        shared = edit.site.tied if edit.tied == "share" else ()
        for site in (other for name in shared for other in by_name.get(name, ())):
            if site.slice is None or site.role == edit.site.role or edit.site.slice is None:
                found.setdefault(site.key, _mark(edit, site, said[edit.rule], 0, f"shared with {edit.site.name}"))
    return found


def chosen(options: Options, *, required: bool = False) -> str:
    """Return the options that are not at their default, as `rank 8 alpha 32.0`; or only those that have none."""
    values = options.model_dump(mode="json")
    return " ".join(
        f"{name} {scalar(values[name])}"
        for name, field in type(options).model_fields.items()
        if field.is_required()
        or not (required or getattr(options, name) == field.get_default(call_default_factory=True))
    )


def scalar(value: object) -> str:
    """Return a value of an option as YAML writes it."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _touched(edit: Edit, by_name: Mapping[str, list[Site]]) -> list[Site]:
    """Return the sites of an edit; of parts that are adapted as one, every part."""
    parts = by_name.get(edit.site.name, []) if edit.site.slice is None else [edit.site]
    return [*parts, *edit.companions]


def _mark(edit: Edit, site: Site, options: str, position: int, shared: str = "") -> Mark:
    note = shared or ("untied" if edit.tied == "untie" else "")
    if position and not shared:
        first = edit.site.role.partition("+")[0]
        note = f"as one with {first}" if site.name == edit.site.name else f"with {edit.site.parameter}"
    return Mark(edit.rule, edit.adapter, options, 0 if shared or position else edit.parameters, note)
