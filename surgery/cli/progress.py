"""Progress: Rich bars on a terminal, a plain line now and then elsewhere, nothing when quiet."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

from surgery.cli.call import Call
from surgery.cli.terminal import is_interactive, write_line

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["Tell", "progress"]

_SECONDS = 5.0


class Tell(Protocol):
    """Told what is done, how much there is, and what it is."""

    def __call__(self, done: int, total: int, description: str) -> None: ...


@contextmanager
def progress(call: Call, *, every_step: bool = False) -> Iterator[Tell | None]:
    """Give a function to tell progress to, or None when nobody wants to know.

    Args:
        call: says whether anybody does.
        every_step: one bar whose description changes, and a plain line for each step: for a few long steps.
            Otherwise each description has a bar of its own, and plain lines come every few seconds.
    """
    if call.common.quiet or not call.is_main:
        yield None
    elif is_interactive(call.err):
        with _bars(call.err) as display:
            yield _Bars(display, is_single=every_step)
    else:
        yield _Lines(call.err, 0.0 if every_step else _SECONDS) if call.is_talkative else None


class _Lines:
    """Plain lines for logs."""

    def __init__(self, stream: TextIO, seconds: float) -> None:
        self._stream = stream
        self._seconds = seconds
        self._last = (0.0, "")
        self._detail = ("", False)

    def detail(self, text: str, *, is_news: bool = False) -> None:
        """Say more in the line of the next call; news are not left out."""
        self._detail = (text, is_news)

    def __call__(self, done: int, total: int, description: str) -> None:
        now = time.monotonic()
        told, about = self._last
        (text, is_news), self._detail = self._detail, ("", False)
        if done < total and about == description and now - told < self._seconds and not is_news:
            return
        self._last = (now, description)
        more = f"  {text}" if text else ""
        write_line(self._stream, [(f"[{done:>{len(str(total))}}/{total}] {description}{more}", "")])
        self._stream.flush()


class _Bars:
    """Rich bars, one for each description or one for all."""

    def __init__(self, display: RichProgress, *, is_single: bool) -> None:
        self._display = display
        self._is_single = is_single
        self._tasks: dict[str, TaskID] = {}
        self._detail = ""

    def detail(self, text: str, *, is_news: bool = False) -> None:
        """Say more in the bar of the next call."""
        self._detail = text

    def __call__(self, done: int, total: int, description: str) -> None:
        from rich.markup import escape

        shown = f"{description}  {self._detail}" if self._detail else description
        self._detail = ""
        key = "" if self._is_single else description
        if key not in self._tasks:
            self._tasks[key] = self._display.add_task(escape(shown), total=total)
        self._display.update(self._tasks[key], completed=done, total=total, description=escape(shown))


def _bars(stream: TextIO) -> RichProgress:
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
    )
    return rich.Progress(*columns, console=Console(file=stream), redirect_stdout=False, redirect_stderr=False)
