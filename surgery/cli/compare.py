"""`surgery compare`: several ways to adapt one model, on equal terms."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.cli.call import Call, shell
from surgery.cli.complete import spec_files
from surgery.cli.engines import Engine, scheduler

if TYPE_CHECKING:
    from surgery.study import Comparison

__all__ = ["EXAMPLES", "compare"]

EXAMPLES = "Example:  surgery compare specs/demo-bert.yaml --out runs/demo/bert"


def compare(
    call: Call,
    study: Annotated[
        Path, typer.Argument(metavar="STUDY", help="The study file.", readable=False, autocompletion=spec_files)
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="The results folder; new, empty, or this study's.")
    ],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="train=FILE,test=FILE, perhaps validation=FILE, in place of the study's data, whose columns and limits"
            " stay.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="A folder or name, in place of the study's model.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", min=1, help="Processes side by side; else by cores and memory."),
    ] = None,
    engine: Engine = None,
) -> None:
    """Run a study, every arm on every seed, and say what may be concluded.

    What is finished is kept: after Ctrl-C or a kill the same command goes on. The report is written at the end.
    """
    from surgery.cli.files import read_study
    from surgery.cli.progress import progress
    from surgery.errors import TrainingError

    given = _given(data, model)
    registry = call.registry()
    found = read_study(study, registry).on(**given)
    from surgery.study import compare as run  # the slow import comes after the study is known to be valid

    try:
        # A study without an engine chooses its own number of processes here.
        spreading = scheduler(engine if engine == "ray" else None, workers)
        with spreading as spread, progress(call, every_step=True) as tell:
            comparison = run(found, out, registry=registry, workers=workers, progress=tell, engine=spread)
    except KeyboardInterrupt:
        hint = "finished cells are kept; the same command goes on"
        raise TrainingError("stopped by Ctrl-C", str(out), hint) from None
    from surgery.report import build_report

    page = build_report(out)
    call.answer(_plain(comparison, page), f"{comparison}\n\nresults {out}\nreport  {page}")
    call.next_step(f"open {shell(page)} in a browser")


def _given(data: str | None, model: str | None) -> dict[str, Any]:
    """Return what takes the place of a study's own model and data."""
    from surgery.cli.train import parse_data
    from surgery.errors import DataError

    splits = None if data is None else parse_data(data)
    if isinstance(splits, str):
        what = f"{splits!r} is one file or folder, and a study has a test split of its own"
        raise DataError(what, "--data", "write train=FILE,test=FILE, perhaps validation=FILE")
    return {"data": splits, "model": model}


def _plain(comparison: Comparison, page: Path) -> dict[str, Any]:
    return {
        "folder": str(comparison.folder),
        "report": str(page),
        "study": comparison.study.name,
        "rows": [asdict(row) for row in comparison.summary.rows],
        "verdicts": list(comparison.sentences),
    }
