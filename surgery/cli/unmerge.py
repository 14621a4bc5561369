"""`surgery unmerge`: a checkpoint as it was before adapters were merged into it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from surgery.cli.call import Call, shell
from surgery.cli.complete import merged_adapters

__all__ = ["EXAMPLES", "unmerge"]

EXAMPLES = "Example:  surgery unmerge models/merged -o models/base-again"


def unmerge(
    call: Call,
    merged: Annotated[Path, typer.Argument(metavar="MERGED", help="A folder of `surgery merge`.", readable=False)],
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="The result; a new folder.")] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Replace the files of MERGED that change, all at once, instead of -o.")
    ] = False,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            metavar="NAME",
            autocompletion=merged_adapters,
            help="Take out this one only; without, all. Repeatable.",
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", metavar="N", min=1, max=256, help="Threads; by default up to 4.")
    ] = None,
) -> None:
    """Take merged adapters out of a checkpoint again, bit for bit.

    Merged weights, adapters and residue are checked before, and the result after. A single changed bit in any of them
    is an error, and nothing is written.
    """
    from surgery.checkpoint.sizes import size_text
    from surgery.cli.progress import progress
    from surgery.cli.weights import announcing, in_bytes, report_text, whole_or_not

    registry = call.registry()
    from surgery.checkpoint.merge import unmerge_checkpoint

    with whole_or_not(out, merged), progress(call) as tell:
        report = unmerge_checkpoint(
            merged,
            out,
            in_place=in_place,
            adapters=tuple(adapter or ()),
            jobs=jobs,
            registry=registry,
            progress=in_bytes(tell, "unmerging"),
            announce=announcing(call, "plan"),
        )
    left = f"what remains: {', '.join(report.adapters)}" if report.adapters else "this is the base, bit for bit"
    text = f"unmerged {size_text(report.bytes)} in {report.seconds:.1f} s; {left}"
    call.answer(
        report.to_dict(),
        report_text(report, f"{out or merged} was unmerged before; {left}" if report.was_done else text),
    )
    call.next_step(shell("surgery", "verify", out or merged))
