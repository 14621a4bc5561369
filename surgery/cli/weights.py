"""What the verbs on checkpoints share: progress in bytes, and the table of a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.checkpoint.sizes import size_text
from surgery.cli.call import Call

if TYPE_CHECKING:
    from surgery.checkpoint.foretold import Foretold
    from surgery.checkpoint.report import CheckpointReport
    from surgery.cli.progress import Tell

__all__ = ["announcing", "foretold_text", "in_bytes", "report_text", "size_text", "table", "whole_or_not"]

_ROWS = 12
_WARM = 0.5
"""Seconds before which bytes in a second mean nothing."""
_HEAD = ("tensor", "|dW|/|W|", "lost", "unmoved")


def in_bytes(tell: Tell | None, what: str) -> Callable[[int, int, str], None] | None:
    """Return a teller of bytes that shows megabytes (kilobytes of few), and how many pass in a second."""
    if tell is None:
        return None
    start = time.monotonic()
    detail: Any = getattr(tell, "detail", None)
    last = (-1, -1)

    def told(done: int, total: int, _file: str) -> None:
        nonlocal last
        seconds = time.monotonic() - start
        unit, name = (1_000_000, "MB") if total >= 10_000_000 else (1000, "kB")
        whole = max(total // unit, 1)
        shown = (whole if done >= total else done // unit, whole)
        if shown == last:
            return
        last = shown
        if detail is not None and seconds >= _WARM:
            detail(f"{size_text(int(done / seconds))}/s")
        tell(*shown, f"{what} ({name})")

    return told


@contextmanager
def whole_or_not(out: Path | None, folder: Path, engine: str | None = None) -> Iterator[None]:
    """Say after Ctrl-C what is on the disk, and how to go on or give up.

    Args:
        out: the new folder; None in place.
        folder: what is replaced, then.
        engine: whether shards are jobs, whose results outlive this.
    """
    try:
        yield
    except KeyboardInterrupt:
        from surgery.errors import StateError

        hint = f"the same command again finishes it; {out or folder} is never half done"
        place = folder / ".surgery-shards" if out is None else out.with_name(f".{out.name}.surgery-shards")
        if engine is not None and place.is_dir():
            hint += f", and finished shards are kept: to give it up, remove {place}"
        raise StateError("stopped by Ctrl-C", str(out or folder), hint) from None


def announcing(call: Call, verb: str) -> Callable[[Foretold], None]:
    """Return what tells the plan."""

    def announce(plan: Foretold) -> None:
        call.note(f"{verb}: {_said(plan)}")

    return announce


def foretold_text(plan: Foretold) -> str:
    """Return for people what a merge would do."""
    rows = [
        ("parameter", "becomes"),
        *((name, " + ".join(("W", *adapters)) if adapters else "W in another dtype") for name, adapters in
          list(plan.parameters.items())[:_ROWS]),
    ]  # fmt: skip
    lines = [f"nothing was written; {_said(plan)}", "", *table(rows)]
    if plan.computed > _ROWS:
        lines.append(f"  and {plan.computed - _ROWS} more: --json shows all")
    return "\n".join(lines)


def _said(plan: Foretold) -> str:
    computed = f"{plan.computed} parameter{'s are' if plan.computed != 1 else ' is'} computed"
    files = f"{plan.files} file{'s' if plan.files != 1 else ''}"
    return (
        f"{computed}, the rest of {plan.tensors} tensors in {files} is copied; reads {size_text(plan.read)}, "
        f"writes {size_text(plan.write)}, holds about {size_text(plan.hold)}"
    )


def report_text(report: CheckpointReport, what: str) -> str:
    """Return a report for people: those tensors first that lost most."""
    lines = [what]
    worst = sorted(report.tensors, key=lambda one: (-one.realised_delta_rel_err, one.name))
    if worst:
        lines += ["", *table([_HEAD, *(_row(one) for one in worst[:_ROWS])])]
        if len(worst) > _ROWS:
            lines.append(f"  and {len(worst) - _ROWS} more: --json shows all")
        lines.append("")
        lines.append("  lost: |stored dW - dW| / |dW|; unmoved: share of elements too small a change for the dtype")
    return "\n".join(lines)


def _row(one: Any) -> tuple[str, str, str, str]:
    return (one.name, f"{one.delta_rel:.2%}", f"{one.realised_delta_rel_err:.2%}", f"{one.unmoved:.1%}")


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of aligned columns, the first one to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) if not index else cell.rjust(width) for index, (cell, width) in
                         enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]  # fmt: skip
