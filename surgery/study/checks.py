"""One line of the checklist, and what lines have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from surgery.study.record import CellRecord

__all__ = ["Check", "Status", "blocking", "none", "red_lines", "same", "short"]

Status: TypeAlias = Literal["pass", "warn", "fail", "none"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the checklist.

    Attributes:
        name: what was checked.
        status: `pass`, `warn` (read the results with care), `fail`, or `none` (does not apply here).
        detail: what was found.
        blocks: whether a failure makes verdicts meaningless.
    """

    name: str
    status: Status
    detail: str
    blocks: bool = True


def blocking(checks: Iterable[Check]) -> str:
    """Return why no verdict may be given, or an empty text."""
    return "; ".join(f"{check.name}: {check.detail}" for check in checks if check.status == "fail" and check.blocks)


def red_lines(checks: Iterable[Check]) -> str:
    """Return which lines `blocking` tells at length: said once, not beside every arm; an empty text if none do."""
    names = list(dict.fromkeys(check.name for check in checks if check.status == "fail" and check.blocks))
    if not names:
        return ""
    return f"see the red line{'s' if len(names) > 1 else ''} {' and '.join(map(repr, names))} of the checklist"


def none(name: str, detail: str) -> Check:
    """Return a line that does not apply."""
    return Check(name, "none", detail)


def same(name: str, records: Sequence[CellRecord], value: Callable[[CellRecord], str | None]) -> Check:
    """Return a line that passes if `value` is the same in every record that has one."""
    found: dict[str, str] = {}
    for record in records:
        if (text := value(record)) is not None:
            found.setdefault(text, f"{record['arm']}, seed {record['seed']}")
    if not found:
        return none(name, "not recorded")
    if len(found) == 1:
        return Check(name, "pass", f"the same in all {len(records)} runs ({short(next(iter(found)))})")
    told = "; ".join(f"{short(text)} in {where}" for text, where in found.items())
    return Check(name, "fail", f"{len(found)} different ones: {told}")


def short(text: str) -> str:
    """Return the first digits of a hash, and any other text as it is."""
    return text[:12] if len(text) >= 32 and " " not in text else text
