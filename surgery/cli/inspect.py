"""`surgery inspect`: a model's anatomy in the words that rules use."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.cli.call import Call, shell

if TYPE_CHECKING:
    from surgery.architecture import Site

__all__ = ["EXAMPLES", "inspect"]

EXAMPLES = "Example:  surgery inspect bert-base-uncased"


def inspect(
    call: Call,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, config.json, .safetensors file, or name.")],
    task: Annotated[
        str | None, typer.Option("--task", metavar="KIND", help="Show the model with this task's head.")
    ] = None,
) -> None:
    """Show what a model is made of: role, path, shape, host, dtype and ties; layers that look alike stand once.

    No weights are read.
    """
    from surgery.cli.models import known_model
    from surgery.planning import anatomy, inventory, render_sites
    from surgery.planning.sites import sites_of

    registry = call.registry()
    auto_class = registry.task(task).auto_class if task else None
    found = inventory(known_model(model, registry), registry, auto_class=auto_class)
    described = anatomy(found, registry)
    sites = sites_of(found, described.architecture)
    call.answer([_plain(site) for site in sites], render_sites(found, sites, described.provenance), _style)
    has_roles = any(site.role == "attention.query" for site in sites)
    rule = r"role: attention\.(query|value)" if has_roles else "target: and a regular expression on the path"
    call.next_step(f"write a rule with {rule}, then surgery plan SPEC {shell(model)}")


def _plain(site: Site) -> dict[str, Any]:
    return {"name": site.name, **asdict(site)}


def _style(line: str) -> str:
    if not line.startswith("  "):
        return "bold"
    return "bold cyan" if line.endswith(("layer)", "layers)")) else ""
