"""Rows that remember where they stand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

__all__ = ["Row", "Table"]

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table(Sequence[Row]):
    """Rows of one split.

    Attributes:
        rows: the rows.
        origin: the file or data set they came from.
        places: line number (or number in the list) of each row, counted from 1.
        unit: what `places` count: "" for lines, `row ` otherwise.
    """

    rows: Sequence[Row]
    origin: str
    places: Sequence[int]
    unit: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def where(self, index: int) -> str:
        """Return where row `index` stands, such as `train.jsonl:17`."""
        return f"{self.origin}:{self.unit}{self.places[index]}"

    def select(self, indices: Sequence[int]) -> Table:
        """Return the rows with these indices, in this order."""
        rows = [self.rows[index] for index in indices]
        return Table(rows, self.origin, [self.places[index] for index in indices], self.unit)

    def digest(self) -> str:
        """Return the sha256 of the content: equal rows in equal order, from whatever file, give equal digests."""
        digest = hashlib.sha256()
        for row in self.rows:
            line = json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
            digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
        return digest.hexdigest()
