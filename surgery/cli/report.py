"""`surgery report`: the finished study as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from surgery.cli.call import Call, shell

__all__ = ["EXAMPLES", "report"]

EXAMPLES = "Example:  surgery report runs/demo/bert"


def report(
    call: Call,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The results folder of a finished study.")],
) -> None:
    """Write the report of a finished study again: one HTML file with plots, tables and verdicts, from its results."""
    from surgery.report import build_report

    page = build_report(folder)
    call.answer({"report": str(page)}, str(page))
    call.next_step(f"open {shell(page)} in a browser")
