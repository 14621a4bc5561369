"""Several finished studies on one page: a table of studies and arms, and one forest plot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from surgery.errors import Problem, StateError
from surgery.report.numbers import MISSING
from surgery.report.view import Numbers
from surgery.study import Comparison, Row, read_comparison
from surgery.study.words import Unit, unit_of

__all__ = ["Across", "AcrossView", "Line", "across", "across_view"]

Line: TypeAlias = dict[str, str | int | float | bool | None]
"""One arm of one study as JSON values, and a row of the CSV file."""


@dataclass(frozen=True)
class Across:
    """Studies that can share a page.

    Attributes:
        studies: (what the page calls it, the study), in the order given.
    """

    studies: tuple[tuple[str, Comparison], ...]

    @property
    def unit(self) -> Unit:
        """How the metric of all of them is printed."""
        return unit_of(self.metric)

    @property
    def metric(self) -> str:
        """The primary metric of all of them."""
        return self.studies[0][1].summary.metric["name"]

    @property
    def greater_is_better(self) -> bool:
        """The direction of that metric."""
        return self.studies[0][1].summary.metric["greater_is_better"]

    @property
    def lines(self) -> list[Line]:
        """Every arm of every study."""
        return [_line(name, study, row) for name, study in self.studies for row in study.summary.rows]


@dataclass(frozen=True, slots=True)
class AcrossCell:
    """One arm of one study; no text where the study has no such arm."""

    text: str = ""
    notes: tuple[str, ...] = ()
    word: str = ""


@dataclass(frozen=True, slots=True)
class AcrossRow:
    """One study."""

    label: str
    notes: tuple[str, ...]
    cells: tuple[AcrossCell, ...]


@dataclass(frozen=True, slots=True)
class AcrossView:
    """The page."""

    title: str
    facts: tuple[tuple[str, str], ...]
    blocked: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[AcrossRow, ...]
    caption: str
    numbers: Numbers


def across(folders: Sequence[Path | str]) -> Across:
    """Return the finished studies in `folders` together.

    Raises:
        StateError: a folder holds none, one is named twice, or their metrics cannot share a column.
    """
    found = [read_comparison(folder) for folder in folders]
    _refuse_twice(found)
    _refuse_metrics(found)
    names = Counter(one.summary.name for one in found)
    studies = tuple(
        (one.summary.name if names[one.summary.name] == 1 else f"{one.summary.name} ({one.folder})", one)
        for one in found
    )
    return Across(studies)


def across_view(found: Across, name: str) -> AcrossView:
    """Return the page; `name` is that of the CSV file beside it, without `.csv`."""
    unit, studies = found.unit, found.studies
    columns = _columns(found)
    lines = found.lines
    rows = []
    for called, one in studies:
        by_arm = {row.arm: row for row in one.summary.rows}
        cells = tuple(
            _cell(by_arm[arm], unit, column) if arm in by_arm else AcrossCell() for arm, column in columns.items()
        )
        rows.append(AcrossRow(called, _notes(one, unit), cells))
    return AcrossView(
        title=f"{len(studies)} studies, {found.metric}",
        facts=(
            ("metric", f"{found.metric}, {'more' if found.greater_is_better else 'less'} is better"),
            ("studies", str(len(studies))),
            ("models", ", ".join(dict.fromkeys(one.study.model.ref for _, one in studies))),
        ),
        blocked=tuple(
            f"{called}: no verdict can be given, because its arms were not treated alike. {one.summary.blocked}."
            for called, one in studies
            if one.summary.blocked
        ),
        columns=tuple(columns.values()),
        rows=tuple(rows),
        caption="Each study has its own reference, margin, seeds and test items. Differences are paired by seed and "
        "item inside of a study; no difference between studies is taken, and Holm's correction runs over the arms "
        "of each study alone.",
        numbers=Numbers(name, "Every arm of every study", tuple(lines[0]), [_texts(line) for line in lines]),
    )


def _columns(found: Across) -> dict[str, str]:
    """Return arm -> what its column is called: its label, its name where studies label it differently.

    Labels are each study's own: only the name says that two studies speak of one arm.
    """
    labels: dict[str, dict[str, None]] = {}
    for _, one in found.studies:
        for row in one.summary.rows:
            if row.kind != "majority":
                labels.setdefault(row.arm, {})[row.label] = None
    columns = {arm: next(iter(told)) if len(told) == 1 else arm for arm, told in labels.items()}
    shared = Counter(columns.values())
    return {arm: called if shared[called] == 1 else f"{called} ({arm})" for arm, called in columns.items()}


def _refuse_twice(found: Sequence[Comparison]) -> None:
    seen: dict[str, Path] = {}
    for one in found:
        if one.summary.study in seen:
            what = f"this folder and {seen[one.summary.study]} hold the same study"
            raise StateError(what, str(one.folder), "name each study once")
        seen[one.summary.study] = one.folder


def _refuse_metrics(found: Sequence[Comparison]) -> None:
    kinds = {(one.summary.metric["name"], one.summary.metric["greater_is_better"]) for one in found}
    if len(kinds) == 1:
        return
    hint = "name studies of one metric together, and write another page for the others"
    problems = [
        Problem(f"its metric is {one.summary.metric['name']}", str(one.folder), hint if one is found[-1] else "")
        for one in found
    ]
    raise StateError.of([Problem("studies of several metrics cannot share a column or an axis"), *problems])


def _notes(one: Comparison, unit: Unit) -> tuple[str, ...]:
    summary = one.summary
    seeds = f"S = {len(summary.seeds)} seed{'s' if len(summary.seeds) > 1 else ''}"
    return (
        one.study.model.ref,
        f"{seeds}, n = {summary.items:,} test items",
        f"margin ±{unit.margin(summary.margin)}",
    )


def _cell(row: Row, unit: Unit, column: str) -> AcrossCell:
    named = () if column in (row.label, f"{row.label} ({row.arm})") else (row.label,)
    level = "" if row.test is None else f"{unit.value(row.test.mean)}{' %' if unit.name == 'pt' else ''}"
    if row.kind == "reference":
        return AcrossCell(level or MISSING, (*named, "reference"))
    if row.pair is None or row.interval is None or row.verdict is None:
        notes = (*named, row.flag) if row.flag else named
        return AcrossCell(level or MISSING, notes, row.verdict.word if row.verdict else "")
    marked = ("indicative",) if row.verdict.indicative else ()
    text = f"{unit.signed(row.pair.difference)} {unit.interval(row.interval)} {unit.name}".rstrip()
    return AcrossCell(text, (*named, *marked, level), row.verdict.word)


def _line(name: str, one: Comparison, row: Row) -> Line:
    summary, narrow, wide = one.summary, row.narrow, row.interval
    return {
        "study": name,
        "folder": str(one.folder),
        "model": one.study.model.ref,
        "metric": summary.metric["name"],
        "margin": summary.margin,
        "reference": summary.reference,
        "seeds": len(summary.seeds),
        "items": summary.items,
        "arm": row.arm,
        "label": row.label,
        "kind": row.kind,
        "test": row.test.mean if row.test else None,
        "difference": row.pair.difference if row.pair else None,
        "difference_95_low": wide.low if wide else None,
        "difference_95_high": wide.high if wide else None,
        "difference_90_low": narrow.low if narrow else None,
        "difference_90_high": narrow.high if narrow else None,
        "verdict": row.verdict.word if row.verdict else None,
        "indicative": row.verdict.indicative if row.verdict else None,
    }


def _texts(line: Line) -> tuple[str, ...]:
    return tuple(_text(value) for value in line.values())


def _text(value: object) -> str:
    if value is None or isinstance(value, bool):
        return "" if value is None else ("yes" if value else "no")
    return f"{value:.7g}" if isinstance(value, float) else str(value)
