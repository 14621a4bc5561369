"""The option `--engine` of those verbs whose work is independent jobs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from surgery.cli.complete import one_of

if TYPE_CHECKING:
    from surgery.engine import Scheduler

__all__ = ["Engine", "scheduler"]

_KNOWN = ("local", "ray")


def _known(value: str | None) -> str | None:
    if value is not None and value not in _KNOWN:
        from surgery.errors import nearest

        raise typer.BadParameter(f"{value!r} is unknown; {nearest(value, _KNOWN)}")
    return value


Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="<local|ray>",
        callback=_known,
        autocompletion=one_of(_KNOWN),
        help="Spread jobs over processes of this machine, or over a Ray cluster.",
    ),
]


@contextmanager
def scheduler(engine: str | None, workers: int | None) -> Iterator[Scheduler | None]:
    """Give what `--engine` asks for, with so many workers; None where nothing is asked for."""
    if engine is None:
        yield None
        return
    from surgery.engine import InProcess, LocalPool, RayCluster, width

    count = workers or min(4, width(4, 1))
    chosen: Scheduler = RayCluster(workers) if engine == "ray" else LocalPool(count) if count > 1 else InProcess()
    try:
        yield chosen
    finally:
        chosen.close()
