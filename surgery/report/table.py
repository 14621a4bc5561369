"""Tables of arms: rows and cells, formatted."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cell", "TableRow"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the table: the number, smaller lines below it, badges, and whether it is red."""

    text: str
    notes: tuple[str, ...] = ()
    badges: tuple[str, ...] = ()
    bad: bool = False


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row of the table: its head, and one cell for each column."""

    label: str
    kind: str
    colour: str
    flag: str
    word: str
    cells: tuple[Cell, ...]
