"""`surgery architecture draft`: the beginning of a plugin that describes a model."""

from __future__ import annotations

from typing import Annotated

import typer

from surgery.cli.call import Call, shell

__all__ = ["EXAMPLES", "draft"]

EXAMPLES = "Example:  surgery architecture draft ./my-model > surgery_mine/__init__.py"


def draft(
    call: Call,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, config.json, .safetensors file, or name.")],
    task: Annotated[
        str | None, typer.Option("--task", metavar="KIND", help="Draft from the model with this task's head.")
    ] = None,
) -> None:
    """Print a plugin that gives the model's weights their roles, as far as names, shapes and measurements tell them.

    What stays open is named in comments. Read the result against the model's code before trusting it: a name is a
    guess, and norms are left out.
    """
    from surgery.cli.models import known_model
    from surgery.planning import draft_architecture

    registry = call.registry()
    auto_class = registry.task(task).auto_class if task else None
    drafted = draft_architecture(known_model(model, registry), registry, auto_class=auto_class)
    call.answer({"type": drafted.model_type, "source": drafted.source, "open": dict(drafted.notes)}, drafted.source)
    if drafted.declared_by:
        call.note(f"{drafted.declared_by} describes this type already")
    call.next_step(f"complete it, install it, then surgery inspect {shell(model)}")
