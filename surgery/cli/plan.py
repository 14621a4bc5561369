"""`surgery plan`: what a spec will do to a model, before a byte changes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from surgery.cli.call import Call, shell
from surgery.cli.complete import spec_files

if TYPE_CHECKING:
    from surgery.planning import Inventory, Plan
    from surgery.planning.cost import Batch, Cost
    from surgery.registry import Registry
    from surgery.spec import Spec

__all__ = ["EXAMPLES", "plan"]

_BATCH, _LENGTH = 16, 128


class Device(StrEnum):
    """Where a step runs."""

    CPU = "cpu"
    CUDA = "cuda"


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
    cost: Annotated[
        bool, typer.Option("--cost", help="Also predict the work and the memory of one training step.")
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", metavar="N", min=1, help="With --cost: examples of a step; else the spec's, or 16."
        ),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            "--length", metavar="N", min=1, help="With --cost: tokens of an example; else the task's most, or 128."
        ),
    ] = None,
    device: Annotated[
        Device, typer.Option("--device", help="With --cost: where the step runs; kernels keep different things.")
    ] = Device.CPU,
) -> None:
    """Show what a spec does to a model: who wins which weight, what is trained, and what it costs.

    No weights are read and nothing is changed. With a task in the spec, the model gets that task's head.
    """
    from surgery.cli.files import free_folder, placing, read_spec
    from surgery.cli.models import known_model
    from surgery.planning import render_plan

    if not cost and (batch_size is not None or length is not None or device is not Device.CPU):
        raise typer.BadParameter("--batch-size, --length and --device go with --cost")
    registry = call.registry()
    found = read_spec(spec, registry)
    subject = known_model(_subject(found, spec, model), registry)
    with placing(spec):
        decided = _plan(found, subject, registry, from_headers)
    plain, text = decided.to_dict(), render_plan(decided)
    if cost:
        from surgery.planning.cost import render_cost

        told = _cost(decided, subject, registry, batch_size, length, device)
        plain, text = {**plain, "cost": told.to_dict()}, f"{text}\n\n{render_cost(told)}"
    call.answer(plain, text, _style)
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


def _cost(plan: Plan, subject: str, registry: Registry, size: int | None, length: int | None, device: Device) -> Cost:
    from surgery.planning import anatomy, inventory
    from surgery.planning.cost import predict
    from surgery.planning.sites import sites_of

    spec = plan.spec
    auto_class = registry.task(spec.task.kind).auto_class if spec.task and plan.origin != "headers" else None
    found = inventory(subject, registry, auto_class=auto_class)
    sites = sites_of(found, anatomy(found, registry).architecture)
    precision = spec.training.precision if spec.training else "fp32"
    batch = _batch(spec, found, size, length)
    return predict(plan, found, sites, registry, batch, device=device.value, precision=precision)


def _batch(spec: Spec, found: Inventory, size: int | None, length: int | None) -> Batch:
    """Return what was asked for; where nothing was, what the spec trains on."""
    from surgery.planning.cost import Batch

    most = found.settings.get("max_position_embeddings")
    wanted = dict(spec.task.options).get("max_length") if spec.task else None
    if length is None:
        length = wanted if isinstance(wanted, int) else _LENGTH
        length = min(length, most) if isinstance(most, int) and most > 0 else length
    return Batch(size or (spec.training.batch_size if spec.training else _BATCH), length)


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
    for start, style in (("plan ", "bold"), ("rules[", "bold cyan"), ("trainable", "bold green"), ("cost ", "bold")):
        if line.startswith(start):
            return style
    return ""
