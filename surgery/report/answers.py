"""What each installed adapter would answer for each site, with the options that a tried rule is written with."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from surgery.architecture import Site
from surgery.errors import PluginError, SurgeryError
from surgery.planning.asking import Asked
from surgery.planning.resolve import join_parts
from surgery.registry import Registry
from surgery.spec import Options

__all__ = ["Answers", "Tried"]

Answer = dict[str, Any] | bool | None
"""`trains` and `companions`, or `trouble` in words; True for a site that is adapted, where options are still to be
given; None for one that is not."""

_WORD = re.compile(r"(?!(?:null|true|false)$)[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Tried:
    """One adapter as the page offers it.

    Attributes:
        kind: the adapter type.
        summary: one line.
        options: its options with the type's own defaults for required ones; None where those do not suffice.
        shown: every option: `name`, `value` as YAML (None where it is still to be given), whether it is `required`,
            whether it is `given` in the rule, `description`.
    """

    kind: Asked
    summary: str
    options: Options | None
    shown: Sequence[dict[str, Any]]


class Answers:
    """All adapters, asked about the sites of one model."""

    def __init__(self, sites: Sequence[Site], registry: Registry) -> None:
        self.adapters = [_tried(name, registry) for name in registry.adapter_names()]
        self._beside: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._parts: dict[str, list[Site]] = defaultdict(list)
        for site in sites:
            self._beside[site.path, site.role].append(site.parameter)
            if site.slice:
                self._parts[site.name].append(site)

    def of_site(self, site: Site) -> list[Answer]:
        """Return one answer for each adapter."""
        return [self._answer(site, tried) if tried.kind.claims(site) else None for tried in self.adapters]

    def of_whole(self, site: Site) -> list[Answer]:
        """Return the answers for a fused parameter as one, at its first part; None where it is not adapted so."""
        parts = self._parts.get(site.name, [])
        if not parts or parts[0] is not site:
            return [None] * len(self.adapters)
        whole = join_parts([(part, "") for part in parts], parts)
        is_one = len(whole) == 1 and whole[0][0].slice is None
        return [
            self._answer(whole[0][0], tried) if is_one and tried.kind.joins_parts else None for tried in self.adapters
        ]

    def _answer(self, site: Site, tried: Tried) -> Answer:
        if tried.options is None:
            return True
        others = [name for name in self._beside.get((site.path, site.role), ()) if name != site.parameter]
        try:
            trains = tried.kind.parameters(site, tried.options)
            companions = tried.kind.companions(site, tried.options, tuple(others))
        except PluginError:
            raise
        except SurgeryError as error:
            return {"trouble": error.what}
        missing = [name for name in companions if name not in others]
        if missing:
            return {"trouble": f"it also needs {missing[0]!r}, which there is none of"}
        return {"trains": trains, "companions": list(companions)}


def _tried(name: str, registry: Registry) -> Tried:
    kind = registry.adapter(name)
    given = dict(kind.defaults())
    try:
        options = kind.options(**given)
    except SurgeryError:
        options = None
    values = options.model_dump(mode="json", by_alias=True) if options else {}
    schema = kind.options.model_json_schema()
    shown = [
        {
            "name": key,
            "value": _yaml(values.get(key, about.get("default"))) if options or "default" in about else None,
            "required": key in schema.get("required", ()),
            "given": key in given,
            "description": " ".join(str(about.get("description", "")).split()),
        }
        for key, about in schema.get("properties", {}).items()
    ]
    return Tried(Asked(name, registry), " ".join(kind.summary.split()), options, shown)


def _yaml(value: Any) -> str:
    if isinstance(value, str) and _WORD.fullmatch(value):
        return value
    return json.dumps(value)
