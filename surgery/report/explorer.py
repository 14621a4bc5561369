"""`surgery inspect --html`: a model's anatomy as a page on which rules can be tried, in one file."""

from __future__ import annotations

import base64
import hashlib
import json
import string
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.architecture import Site
from surgery.errors import StateError
from surgery.planning import Outline, Plan
from surgery.planning.fold import Group, fold
from surgery.planning.outline import Row
from surgery.planning.render import count, human_bytes, shape_of
from surgery.planning.render_outline import base_of, cut_of, group_title, name_in, one_dtype
from surgery.registry import Registry
from surgery.report.answers import Answer, Answers
from surgery.spec import Rule, compile_pattern
from surgery.study.results import write_atomically

__all__ = ["build_page", "check_page", "write_page"]

_GENERATOR = "surgery inspect"
_SCRIPTS = ("pattern.js", "layers.js", "model.js", "rule.js", "view.js")
_START = 4096
"""How many bytes of a file tell whether it is such a page."""


def check_page(path: Path, *, overwrite: bool = False) -> None:
    """Refuse a place where no page may be written.

    Raises:
        StateError: there is something already, and it is no page, or may not be replaced.
    """
    if path.is_dir():
        raise StateError("this is a folder, not a file", str(path), "name a file, such as model.html")
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise StateError("the file exists already", str(path), "name another file, or add --overwrite")
    with path.open("rb") as file:
        is_page = f'content="{_GENERATOR}"'.encode() in file.read(_START)
    if not is_page:
        raise StateError("the file is no page of surgery inspect", str(path), "name another file, or delete this one")


def write_page(path: Path, outline: Outline, registry: Registry, *, overwrite: bool = False) -> None:
    """Write the page of `outline`, whole or not at all.

    Raises:
        StateError: as `check_page`.
        PluginError: an adapter type fails when it is asked about a site.
    """
    html = build_page(outline, registry)
    check_page(path, overwrite=overwrite)
    write_atomically(path, html)


def build_page(outline: Outline, registry: Registry) -> str:
    """Return the page as HTML. Equal models, specs and plugins give equal pages."""
    import jinja2

    loader = jinja2.PackageLoader("surgery.report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )

    def source(*names: str) -> str:
        return "\n".join(loader.get_source(environment, name)[0] for name in names)

    style = source("style.css", "explorer/page.css")
    inner = source(*(f"explorer/{name}" for name in _SCRIPTS))
    script = f'"use strict";\n(() => {{\n{inner}\n}})();\n'
    found = outline.inventory
    return environment.get_template("explorer/page.html").render(
        generator=_GENERATOR,
        title=found.class_name or found.model_type or "model",
        facts=list(_facts(outline)),
        spec=outline.plan.spec.name if outline.plan else "",
        rules=list(_rules(outline.plan)) if outline.plan else [],
        sources=_sources(outline),
        unknown=[
            (
                row.name,
                f"{count(row.sites, 'site')}, may hold {' or '.join(row.roles)}{f': {row.why}' if row.why else ''}",
            )
            for row in outline.open
        ],
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        data=_embedded(_data(outline, registry)),
    )


def _hash(text: str) -> str:
    """Return what a content security policy calls this text, so that nothing else on the page runs."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _embedded(value: Any) -> str:
    """Return JSON that no name in it can break out of: ASCII, and without the characters of markup."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _facts(outline: Outline) -> Iterator[tuple[str, str]]:
    found = outline.inventory
    yield "roles", outline.provenance or "unknown: write target, not role"
    yield "parameters", f"{found.parameters:,}"
    yield "size", human_bytes(found.bytes)
    yield "dtype", one_dtype(outline) or "several"
    yield "read from", found.origin
    if outline.plan:
        plan = outline.plan
        share = 100 * plan.parameters / max(plan.model_parameters, 1)
        yield f"trained by {plan.spec.name}", f"{plan.parameters:,} ({share:.3g} %)"


def _rules(plan: Plan) -> Iterator[dict[str, str]]:
    for outcome in plan.outcomes:
        yield {
            "pattern": _pattern(outcome.rule),
            "outcome": f"{outcome.rule.adapter}: wins {count(outcome.won, 'site')}, "
            f"trains {count(outcome.parameters, 'parameter')}",
        }


def _pattern(rule: Rule) -> str:
    words = [f"role {rule.role}" if rule.role else "", f"target {rule.target}" if rule.target else ""]
    layers = "" if rule.layers == "all" else f", layers {rule.layers}"
    return f"{' and '.join(filter(None, words))}{layers}"


def _sources(outline: Outline) -> list[tuple[str, str]]:
    roles: dict[str, list[str]] = defaultdict(list)
    for role, source in outline.sources.items():
        roles[source].append(role)
    return [(source, ", ".join(sorted(names))) for source, names in sorted(roles.items())]


@dataclass(frozen=True)
class _Line:
    """A row, and what the adapters answer for it: equal in layers that look alike."""

    row: Row
    answers: list[Answer]
    wholes: list[Answer]


def _data(outline: Outline, registry: Registry) -> dict[str, Any]:
    answers = Answers(outline.sites, registry)
    lines = [
        (where, _Line(row, answers.of_site(site), answers.of_whole(site)))
        for site, (where, row) in zip(outline.sites, outline.rows, strict=True)
    ]
    found = outline.inventory
    return {
        "groups": [_group(group) for group in fold(lines)],
        "ranks": {name: place for place, name in enumerate(sorted(found.ties, key=found.rank))},
        "adapters": [
            {"name": tried.kind.name, "summary": tried.summary, "options": tried.shown} for tried in answers.adapters
        ],
        "classes": _classes(outline.sites),
        "dtype": one_dtype(outline),
        "sources": dict(outline.sources),
        "spec": _spec(outline),
    }


def _group(group: Group[_Line]) -> dict[str, Any]:
    rows = Group(group.stack, group.layers, [line.row for line in group.rows])
    title, _, size = group_title(rows).partition("), ")
    return {
        "stack": group.stack,
        "layers": group.layers,
        "title": f"{title})",
        "base": base_of(rows),
        "size": size,
        "rows": [{**_line(line), "name": name_in(rows, line.row)} for line in group.rows],
    }


def _line(line: _Line) -> dict[str, Any]:
    row = line.row
    return {
        "role": row.role,
        "base": row.base,
        "inside": row.inside,
        "in_layers": row.in_layers,
        "parameter": row.parameter,
        "shape": shape_of(row.shape),
        "size": row.size,
        "dtype": row.dtype,
        "host": row.host,
        "slice": row.slice is not None,
        "cut": cut_of(row.slice),
        "tied": list(row.tied),
        "open": list(row.open),
        "bytes_text": human_bytes(row.bytes),
        "size_text": "tied" if row.is_alias else human_bytes(row.bytes),
        "mark": str(row.mark).removeprefix("<- ") if row.mark else "",
        "answers": line.answers,
        "wholes": line.wholes,
    }


def _spec(outline: Outline) -> dict[str, Any] | None:
    """Return what the spec has won already: claims of parameters and parts, and how ties were decided."""
    if outline.plan is None:
        return None
    winners: dict[str, int] = {}
    modes: dict[str, str] = {}
    for edit in outline.plan.edits:
        for site in edit.sites:
            name = site.name if edit.tied == "untie" else outline.inventory.canonical(site.name)
            winners[f"{site.role if site.slice else ''}\n{name}"] = edit.rule
        if edit.tied:
            modes[outline.inventory.canonical(edit.site.name)] = edit.tied
    return {"winners": winners, "modes": modes}


def _classes(sites: Iterable[Site]) -> Mapping[str, Any]:
    """Return what the spec's patterns say of the characters of this model's names, beyond ASCII."""
    characters = sorted({char for site in sites for char in site.name + site.role if ord(char) > 127})
    letters = [compile_pattern(f"(?i){letter}") for letter in string.ascii_letters]
    named = {"word": compile_pattern(r"\w"), "digit": compile_pattern(r"\d"), "space": compile_pattern(r"\s")}
    return {
        **{name: "".join(filter(pattern.fullmatch, characters)) for name, pattern in named.items()},
        "fold": {
            char: folded
            for char in characters
            if (folded := [letter.text[-1] for letter in letters if letter.fullmatch(char)])
        },
    }
