"""`surgery inspect`: a model's anatomy in the words that rules use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from surgery.cli.call import Call, shell
from surgery.cli.complete import spec_files

if TYPE_CHECKING:
    from surgery.planning import Outline
    from surgery.registry import Registry

__all__ = ["EXAMPLES", "inspect"]

EXAMPLES = "Example:  surgery inspect bert-base-uncased --spec specs/bert-lora-qv.yaml --html bert.html"


def inspect(
    call: Call,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, config.json, .safetensors file, or name.")],
    task: Annotated[
        str | None, typer.Option("--task", metavar="KIND", help="Show the model with this task's head.")
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option("--spec", metavar="SPEC", help="Mark what this spec touches.", autocompletion=spec_files),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page to explore the model and to try rules on it."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Let --html replace a page.")] = False,
) -> None:
    """Show what a model is made of: bytes, role, shape, host, path and ties; layers that look alike stand once.

    No weights are read. With a task in the spec, the model gets that task's head.
    """
    if overwrite and html is None:
        raise typer.BadParameter("--overwrite goes with --html FILE")
    registry = call.registry()
    if html is None:
        shown = _outline(model, task, spec, registry)
        from surgery.planning import render_outline

        call.answer(shown.to_dict(), render_outline(shown), _style)
        call.next_step(_next(shown, spec, model))
        return
    from surgery.report.explorer import check_page, write_page

    check_page(html, overwrite=overwrite)
    write_page(html, _outline(model, task, spec, registry), registry, overwrite=overwrite)
    call.answer({"page": str(html)}, str(html))
    call.next_step(f"open {shell(html)} in a browser")


def _outline(model: str, task: str | None, path: Path | None, registry: Registry) -> Outline:
    from surgery.cli.files import placing, read_spec
    from surgery.cli.models import known_model
    from surgery.planning import anatomy, decide, inventory, outline
    from surgery.planning.sites import sites_of

    spec = read_spec(path, registry) if path else None
    kind = task or (spec.task.kind if spec and spec.task else None)
    auto_class = registry.task(kind).auto_class if kind else None
    found = inventory(known_model(model, registry), registry, auto_class=auto_class)
    described = anatomy(found, registry)
    plan = None
    if spec and path:
        with placing(path):
            plan = decide(spec, found, described, registry)
    return outline(found, sites_of(found, described.architecture), described, plan)


def _next(shown: Outline, spec: Path | None, model: str) -> str:
    if spec:
        return shell("surgery", "plan", spec, model)
    has_roles = any(site.role == "attention.query" for site in shown.sites)
    rule = r"role: attention\.(query|value)" if has_roles else "target: and a regular expression on the path"
    return f"write a rule with {rule}, then surgery plan SPEC {shell(model)}"


def _style(line: str) -> str:
    if not line.startswith("  "):
        return "bold"
    return "bold cyan" if " layer), " in line or " layers), " in line else "green" if "  <- rules[" in line else ""
