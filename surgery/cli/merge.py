"""`surgery merge`: adapters into a checkpoint on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from surgery.cli.call import Call, shell
from surgery.cli.complete import one_of
from surgery.cli.engines import Engine, scheduler

__all__ = ["EXAMPLES", "merge"]

EXAMPLES = "Example:  surgery merge models/base runs/notes/adapter -o models/merged"

_UNDO = ("residue", "file", "copy", "none")
_DTYPES = ("bfloat16", "float16", "float32")
_SHORT = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}


def _one_of(value: str, known: Sequence[str]) -> str:
    if value not in known:
        from surgery.errors import nearest

        raise typer.BadParameter(f"{value!r} is unknown; {nearest(value, known)}")
    return value


def _undo(value: str) -> str:
    return _one_of(value, _UNDO)


def _dtype(value: str | None) -> str | None:
    return value if value is None else _one_of(_SHORT.get(value, value), _DTYPES)


def merge(
    call: Call,
    base: Annotated[Path, typer.Argument(metavar="BASE", help="The folder of the checkpoint.", readable=False)],
    adapters: Annotated[
        list[str],
        typer.Argument(metavar="ADAPTER...", help="Folders of adapters, surgery's or PEFT's; or NAME=FOLDER."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="The merged checkpoint; a new folder.")
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Replace the files of BASE that change, all at once, instead of -o.")
    ] = False,
    undo: Annotated[
        str,
        typer.Option(
            "--undo",
            metavar="<residue|file|copy|none>",
            callback=_undo,
            autocompletion=one_of(_UNDO),
            help="What is kept for unmerge: what merged weights and adapters do not tell, nothing but the base itself,"
            " the changed weights, or nothing.",
        ),
    ] = "residue",
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="<bfloat16|float16|float32>",
            callback=_dtype,
            autocompletion=one_of(_DTYPES),
            help="Write all floating tensors of 16 bits and more in this one, each rounded once.",
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", metavar="NAME=FACTOR", help="Make an adapter stronger or weaker. Repeatable."),
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Sums that are seldom the other neighbour, instead of correctly rounded.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", metavar="N", min=1, max=256, help="Threads, or workers of an engine; up to 4."),
    ] = None,
    engine: Engine = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be read, written and changed, and write nothing.")
    ] = False,
) -> None:
    """Merge adapters into a checkpoint, without building the model, so that unmerge gives the base back bit for bit.

    The new folder appears complete or not at all. The same merge again does nothing; BASE is only read, unless it is to
    be replaced.
    """
    from surgery.checkpoint.sizes import size_text
    from surgery.cli.progress import progress
    from surgery.cli.weights import announcing, foretold_text, in_bytes, report_text, whole_or_not

    registry = call.registry()
    factors = dict(map(_factor, weights or ()))
    from surgery.checkpoint.merge import merge_checkpoint, plan_merge

    if dry_run:
        plan = plan_merge(
            base, _named(adapters), in_place=in_place, undo=undo, dtype=dtype, jobs=jobs, weights=factors,
            registry=registry,
        )  # fmt: skip
        call.answer(plan.to_dict(), foretold_text(plan))
        return

    with whole_or_not(out, base, engine), scheduler(engine, jobs) as spread, progress(call) as tell:
        report = merge_checkpoint(
            base,
            _named(adapters),
            out,
            in_place=in_place,
            undo=undo,
            dtype=dtype,
            jobs=jobs,
            engine=spread,
            fast=fast,
            weights=factors,
            registry=registry,
            progress=in_bytes(tell, "merging"),
            announce=announcing(call, "plan"),
        )
    names = ", ".join(report.adapters)
    if report.was_done:
        text = f"{out or base} already holds {names}"
    else:
        kept = {
            "residue": f"residue {size_text(report.residue_bytes)}, adapters {size_text(report.adapter_bytes)}",
            "copy": f"copies {size_text(report.residue_bytes)}",
            "file": "the base must stay where it is",
            "none": "cannot be unmerged",
        }[report.undo]
        text = f"merged {names} into {size_text(report.bytes)} in {report.seconds:.1f} s; for the way back: {kept}"
    call.answer(report.to_dict(), report_text(report, text), _style)
    if report.left_out:
        call.note(f"not carried along, as they hold other weights: {', '.join(report.left_out[:5])}")
    call.next_step(shell("surgery", "verify", out or base))


def _named(adapters: list[str]) -> list[str] | dict[str, str]:
    """Return folders, or name -> folder where any is named."""
    pairs = [text.partition("=") for text in adapters]
    if not any(equals and not Path(text).exists() for text, (_, equals, _) in zip(adapters, pairs, strict=True)):
        return adapters
    from surgery.errors import StateError

    given: dict[str, str] = {}
    for name, equals, folder in pairs:
        if not equals:
            raise StateError(f"{name!r} has no name", hint="name all adapters or none: NAME=FOLDER")
        if name in given:
            raise StateError(f"two adapters are called {name!r}", hint="give each a name of its own")
        given[name] = folder
    return given


def _factor(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        if not equals or not name:
            raise ValueError
        return name, float(value)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not NAME=FACTOR; write for example notes=0.5") from None


def _style(line: str) -> str:
    return "bold green" if line.startswith("merged") else "bold" if line.startswith("  tensor") else ""
