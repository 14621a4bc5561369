"""Writing lines: plain text into files and pipes, Rich's colours on a terminal. No line is ever wrapped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, TextIO, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Segment", "Style", "has_colour", "is_interactive", "write_line", "write_text"]

Segment: TypeAlias = tuple[str, str]
"""A piece of a line and its Rich style; an empty style is plain."""

Style: TypeAlias = Callable[[str], str]
"""Whole line -> its Rich style."""


def is_interactive(stream: TextIO) -> bool:
    """Return whether `stream` is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


def has_colour(stream: TextIO) -> bool:
    """Return whether lines on `stream` may be coloured. `NO_COLOR` switches every style off, see no-color.org."""
    return is_interactive(stream) and not os.environ.get("NO_COLOR")


def write_line(stream: TextIO, segments: Iterable[Segment]) -> None:
    """Write one line. Characters that a terminal would obey rather than show are escaped."""
    pieces = [(_visible(text), style) for text, style in segments]
    if has_colour(stream):
        from rich.text import Text

        # soft_wrap: a wrapped file:line:col can neither be copied nor clicked.
        _console(stream).print(Text.assemble(*pieces), soft_wrap=True)
    else:
        stream.write("".join(text for text, _ in pieces) + "\n")


def write_text(stream: TextIO, text: str, style: Style | None = None) -> None:
    """Write all lines of `text`, each in the style that `style` gives it."""
    for line in text.splitlines():
        write_line(stream, [(line, style(line) if style else "")])


@lru_cache(maxsize=2)
def _console(stream: TextIO) -> Console:
    from rich.console import Console

    return Console(file=stream, highlight=False, markup=False, emoji=False)


def _visible(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)
