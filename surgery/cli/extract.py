"""`surgery extract`: an adapter out of a full fine-tune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from surgery.cli.call import Call, shell
from surgery.cli.complete import spec_files

if TYPE_CHECKING:
    from surgery.spectra.extracted import Extraction, MatrixExtract

__all__ = ["EXAMPLES", "extract"]

EXAMPLES = "Example:  surgery extract models/base models/tuned -o adapters/tuned --energy 0.9"

_ROWS = 24
_HEAD = ("site", "|dW|/|W|", "rank", "of", "kept", "error")
_KINDS = {
    "bias": "biases",
    "norm": "norms",
    "embedding": "embeddings",
    "head": "heads",
    "router": "routers",
    "matrix": "matrices",
    "other": "others",
}


def extract(
    call: Call,
    base: Annotated[Path, typer.Argument(metavar="BASE", help="The folder of the base checkpoint.", readable=False)],
    tuned: Annotated[Path, typer.Argument(metavar="TUNED", help="That of the fine-tuned one.", readable=False)],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The adapter; a new folder.")],
    energy: Annotated[
        float | None,
        typer.Option(
            "--energy",
            metavar="SHARE",
            help="Each matrix gets the rank that keeps this share of |dW|^2; 0.9 where nothing says ranks.",
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", metavar="N", min=1, help="This rank for all instead.")] = None,
    roles: Annotated[
        str | None,
        typer.Option(
            "--roles", metavar="REGEX", help="Roles to take; without, every matrix but embeddings, heads and routers."
        ),
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option(
            "--spec",
            metavar="FILE",
            help="Take what the rules of a spec match, with its adapters; biases and heads, too.",
            readable=False,
            autocompletion=spec_files,
        ),
    ] = None,
) -> None:
    """Make a LoRA adapter of what a full fine-tune changed, and a spec with the rank of every matrix.

    Both checkpoints are read tensor by tensor. What else changed, and is not in the adapter, is told.
    """
    from surgery.cli.files import read_spec
    from surgery.cli.progress import progress

    if energy is not None and rank is not None:
        raise typer.BadParameter("--energy and --rank both say the ranks; give one of them")
    if roles is not None and spec is not None:
        raise typer.BadParameter("--roles and --spec both say what is taken; give one of them")
    registry = call.registry()
    template = None if spec is None else read_spec(spec, registry)
    from surgery.spectra.extraction import SPEC_FILE
    from surgery.spectra.extraction import extract as make

    with progress(call) as tell:

        def told(done: int, total: int, _: str) -> None:
            if tell is not None:
                tell(done, total, "extracting (parameters)")

        found = make(
            base, tuned, out, energy=energy, rank=rank, roles=roles, spec=template, registry=registry, progress=told
        )
    call.answer({**found.to_dict(), "out": str(out)}, "\n".join(_lines(found)), _style)
    if over := sum(one.is_oversized for one in found.covered if one.rank is not None):
        call.note(f"{over} of {len(found.covered)} need at least as many numbers as the matrices have: no saving there")
    if found.are_ranks_rounded:
        call.note("ranks are rounded up: a spec holds 256 rules, and every rank needs one")
    call.next_step(shell("surgery", "merge", base, out, "-o", "DIR"))
    call.next_step(shell("surgery", "plan", out / SPEC_FILE, base))


def _lines(found: Extraction) -> list[str]:
    from surgery.cli.weights import table

    share = found.parameters / max(found.model_parameters, 1)
    lines = [
        f"extracted {found.folder}: {len(found.covered)} sites, {found.parameters:,} numbers "
        f"({share:.2%} of the base); keeps {found.kept:.1%} of their |dW|^2",
        "",
        *table([_HEAD, *map(_row, found.covered[:_ROWS])]),
    ]
    if len(found.covered) > _ROWS:
        lines.append(f"  and {len(found.covered) - _ROWS} more: --json and extraction.json have all")
    lines += ["", "  kept: share of |dW|^2; error: |dW - BA| / |dW|; of: the largest rank that there could be"]
    if found.unchanged:
        lines += ["", f"not changed, and left out: {_few(found.unchanged)}"]
    groups = [
        (_KINDS[kind], [one.name for one in found.uncovered if one.kind == kind])
        for kind in _KINDS
        if any(one.kind == kind for one in found.uncovered)
    ]
    groups += [
        (what, list(names))
        for what, names in (
            ("only in BASE", found.only_base),
            ("only in TUNED", found.only_tuned),
            ("of another shape", found.reshaped),
        )
        if names
    ]
    if groups:
        lines += ["", f"NOT in the adapter, which holds {found.kept_of_all:.1%} of all that changed:"]
        lines += [f"  {what}: {_few(names)}" for what, names in groups]
    return lines


def _row(one: MatrixExtract) -> tuple[str, ...]:
    size = f"{one.relative_norm:.2%}" if one.relative_norm < float("inf") else "new"
    if one.rank is None:
        return (one.name, size, "whole", "", f"{one.kept:.1%}", f"{one.error:.1%}")
    return (one.name, size, str(one.rank), str(one.full_rank), f"{one.kept:.1%}", f"{one.error:.1%}")


def _few(names: list[str] | tuple[str, ...]) -> str:
    return f"{len(names)} ({names[0]}{', ...' if len(names) > 1 else ''})"


def _style(line: str) -> str:
    if line.startswith("extracted"):
        return "bold green"
    return "yellow" if line.startswith("NOT") else "bold" if line.startswith("  site") else ""
