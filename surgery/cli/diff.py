"""`surgery diff`: how two checkpoints differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from surgery.cli.call import Call

__all__ = ["EXAMPLES", "diff"]

EXAMPLES = "Example:  surgery diff models/base models/merged"

_ROWS = 40


def diff(
    call: Call,
    a: Annotated[Path, typer.Argument(metavar="A", help="The folder of a checkpoint.", readable=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one.", readable=False)],
) -> None:
    """Show which tensors of two checkpoints differ, by how much, and at which effective rank.

    Bits are compared, not numbers. Exit code 0 says that they were compared, whether they differ or not.
    """
    from surgery.cli.weights import table

    registry = call.registry()
    from surgery.checkpoint.diff import diff_checkpoints

    found = diff_checkpoints(a, b, registry=registry)
    if found.is_empty:
        call.answer(found.to_dict(), f"the same: all {found.same} tensors, bit for bit")
        return
    lines = [f"{len(found.tensors)} tensors differ, {found.same} are the same"]
    if found.tensors:
        rows = [("tensor", "|B-A|/|A|", "changed", "rank")]
        rows += [
            (
                one.name,
                f"{one.relative:.2%}",
                f"{one.changed:.1%}",
                f"{one.effective_rank:.1f}" if one.effective_rank else "",
            )
            for one in found.tensors[:_ROWS]
        ]
        lines += ["", *table(rows)]
        if len(found.tensors) > _ROWS:
            lines.append(f"  and {len(found.tensors) - _ROWS} more: --json shows all")
    for what, names in (
        ("only in A", found.only_a),
        ("only in B", found.only_b),
        ("other dtype or shape", found.reshaped),
    ):
        if names:
            lines += ["", f"{what}: {len(names)}", *(f"  {name}" for name in names[:_ROWS])]
    call.answer(found.to_dict(), "\n".join(lines), lambda line: "bold" if line.startswith("  tensor") else "")
