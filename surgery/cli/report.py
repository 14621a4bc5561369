"""`surgery report`: finished studies as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from surgery.cli.call import Call, shell

__all__ = ["EXAMPLES", "report"]

EXAMPLES = "Example:  surgery report runs/demo/bert"


def report(
    call: Call,
    folders: Annotated[list[Path], typer.Argument(metavar="DIR", help="Results folders of finished studies.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="The page; one study's is its folder's report.html."),
    ] = None,
) -> None:
    """Write the report of a finished study again: one HTML file with plots, tables and verdicts, from its results.

    Numbers and verdicts are those of summary.json, as surgery compare wrote them; compare makes them anew.

    Of several studies: one page with a table of studies and arms, one forest plot, and their numbers as CSV beside it.
    """
    from surgery.errors import StateError
    from surgery.report import build_across, build_report

    if len(folders) == 1:
        page = build_report(folders[0], out)
        call.answer({"report": str(page)}, str(page))
    elif out is None:
        raise StateError("several studies share one page, and nothing says where it goes", hint="add --out NAME.html")
    else:
        page, found = build_across(folders, out)
        numbers = page.with_suffix(".csv")
        told = {"report": str(page), "numbers": str(numbers), "metric": found.metric, "arms": found.lines}
        call.answer(told, f"{page}\n{numbers}")
    call.next_step(f"open {shell(page)} in a browser")
