"""`surgery verify`: whether a checkpoint is what it is said to be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from surgery.cli.call import Call

__all__ = ["EXAMPLES", "verify"]

EXAMPLES = "Example:  surgery verify models/merged --base models/base"


def verify(
    call: Call,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The folder of a checkpoint.", readable=False)],
    base: Annotated[
        Path | None, typer.Option("--base", metavar="BASE", help="Compare with this checkpoint, too.", readable=False)
    ] = None,
) -> None:
    """Check every tensor and file of a checkpoint against its receipt, and against a base.

    Exit code 7 says that something was changed. Without a receipt and a base, headers and index are checked.
    """
    from surgery.checkpoint.sizes import size_text

    registry = call.registry()
    from surgery.checkpoint.verify import verify_checkpoint

    found = verify_checkpoint(path, base, registry=registry)
    what = {"merged": f"merged with {', '.join(found.adapters)}", "unmerged": "unmerged", "plain": "no receipt"}
    against = " and ".join(found.against) or "headers and index only"
    text = f"right: {found.tensors} tensors, {size_text(found.bytes)}, {what[found.kind]} (against: {against})"
    call.answer(found.to_dict(), text, lambda line: "bold green" if line.startswith("right") else "")
    if not found.against:
        call.note("there is nothing to compare its bits with: name a base with --base BASE")
