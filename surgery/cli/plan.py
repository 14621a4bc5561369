"""`surgery plan`: what a spec will do to a model, before a byte changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from surgery.cli.call import Call, shell
from surgery.cli.complete import spec_files

if TYPE_CHECKING:
    from surgery.planning import Plan
    from surgery.registry import Registry
    from surgery.spec import Spec

__all__ = ["EXAMPLES", "plan"]

EXAMPLES = "Example:  surgery plan specs/bert-lora-qv.yaml roberta-base"


def plan(
    call: Call,
    spec: Annotated[
        Path, typer.Argument(metavar="SPEC", help="The spec file.", readable=False, autocompletion=spec_files)
    ],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="A folder, config.json, .safetensors file, or name; else the spec's own model."
        ),
    ] = None,
    from_headers: Annotated[
        bool,
        typer.Option(
            "--from-headers", help="Read the checkpoint's headers only: no task head, and no import of torch."
        ),
    ] = False,
) -> None:
    """Show what a spec does to a model: who wins which weight, what is trained, and what it costs.

    No weights are read and nothing is changed. With a task in the spec, the model gets that task's head.
    """
    from surgery.cli.files import free_folder, placing, read_spec
    from surgery.cli.models import known_model
    from surgery.planning import render_plan

    registry = call.registry()
    found = read_spec(spec, registry)
    subject = known_model(_subject(found, spec, model), registry)
    with placing(spec):
        decided = _plan(found, subject, registry, from_headers)
    call.answer(decided.to_dict(), render_plan(decided), _style)
    if decided.head_parameters and decided.origin == "config":
        call.note("the head is planned with the labels of the model's configuration; training sizes it by the data")
    if decided.origin == "config" and found.task is not None and call.is_talkative:
        from surgery.training.trained import perhaps_untrained

        if note := perhaps_untrained(decided, subject, registry.task(found.task.kind).auto_class, registry):
            call.note(note)
    if found.training is not None:
        has_data = found.data is not None and (found.data.name or found.data.train)
        given = [*(("--model", model) if model else ()), *(() if has_data else ("--data", "FILE"))]
        call.next_step(shell("surgery", "train", spec, "--out", free_folder(f"runs/{found.name}"), *given))


def _subject(spec: Spec, path: Path, model: str | None) -> str:
    from surgery.errors import PlanError

    if model is not None:
        return model
    if spec.model is None:
        raise PlanError(
            "the spec names no model", str(path), f"surgery plan {shell(path)} MODEL, or write model: in it"
        )
    return spec.model.ref


def _plan(spec: Spec, subject: str, registry: Registry, from_headers: bool) -> Plan:
    from surgery.errors import CheckpointError
    from surgery.planning import plan as make_plan
    from surgery.planning.headers import check_index

    if from_headers:
        check_index(Path(subject))  # else a folder whose shards are missing would be told to have no headers
    has_head = spec.task is not None and not from_headers
    auto_class = registry.task(spec.task.kind).auto_class if has_head and spec.task else None
    decided = make_plan(spec, subject, registry, auto_class=auto_class)
    if from_headers and decided.origin != "headers":
        raise CheckpointError(
            "there are no safetensors headers to read", subject, "leave --from-headers out to use the configuration"
        )
    return decided


def _style(line: str) -> str:
    for start, style in (("plan ", "bold"), ("rules[", "bold cyan"), ("trainable", "bold green")):
        if line.startswith(start):
            return style
    return ""
