"""What the page says: every number formatted, every word chosen, so that the template only lays out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surgery.report import numbers
from surgery.report.costs import Costs, costs
from surgery.report.palette import Look, looks
from surgery.report.readings import EqualBudgets, equal_budgets
from surgery.report.table import Cell, TableRow
from surgery.report.weights import WeightTable, weight_table
from surgery.study import Comparison, Row, Summary
from surgery.study.audit import Check
from surgery.study.record import memory_total
from surgery.study.statistics import Estimate
from surgery.study.tables import Table, tables
from surgery.study.words import Unit, finding, price, unit_of

__all__ = ["Line", "Numbers", "TableRow", "View", "view"]


@dataclass(frozen=True, slots=True)
class Line:
    """One verdict line: the word for the badge, what was found, what it costs, and whether it is a baseline."""

    arm: str
    label: str
    word: str
    finding: str
    price: str
    colour: str
    baseline: bool
    indicative: bool


@dataclass(frozen=True, slots=True)
class Numbers:
    """One CSV file as a table on the page."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class View:
    """The page."""

    title: str
    facts: tuple[tuple[str, str], ...]
    question: str
    lines: tuple[Line, ...]
    blocked: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    table_caption: str
    weights: WeightTable
    costs: Costs
    budgets: EqualBudgets
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    tables: tuple[Numbers, ...]
    spec: str
    hashes: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    machines: tuple[str, ...]


_PLUS_MINUS = "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"
_LONG_GRID = 4

_TITLES = {
    "arms": "One line per arm",
    "costs": "Costs, predicted and measured",
    "runs": "One line per run",
    "learning_rates": "Learning rates",
    "curves": "Loss curves",
    "weights": "What changed in the weights: medians over matrices",
    "matrices": "What changed in the weights: every matrix",
    "search": "Best of so many learning rates, expected",
    "readings": "At equal steps, tokens, FLOPs and seconds, from the same curves",
    "metrics": "Further metrics: no verdict rests on them",
    "forgetting": "What was forgotten: at the end, at equal learning, at an equal change of the weights",
    "forgetting_points": "Learning and forgetting along W0 + t (W - W0)",
    "loss_curves": "Loss curves: means over seeds",
    "tradeoffs": "The metric against what it takes",
    "forgetting_paths": "Learning and forgetting along W0 + t (W - W0): means over seeds",
    "layers": "What changed in the weights: by layer and module",
    "singular_values": "Singular values of what changed",
    "overlaps": "Overlap of the directions that changed",
    "checks": "Checklist",
}


def view(comparison: Comparison) -> View:
    """Return the page of a finished study."""
    summary, study = comparison.summary, comparison.study
    unit = unit_of(summary.metric["name"])
    colours = looks(comparison)
    data = study.data.name or ", ".join(filter(None, (study.data.train, study.data.validation, study.data.test)))
    final = next(record for record in comparison.records if record["phase"] == "final")
    budget = max((record["budget"]["updates"] for record in comparison.records), default=0)
    labels = summary.row(summary.reference).label
    return View(
        title=summary.name,
        facts=(
            ("model", study.model.ref),
            ("task", study.task.kind),
            ("data", data),
            ("metric", f"{summary.metric['name']}, {_direction(summary)}"),
            ("margin", f"±{unit.margin(summary.margin)}"),
            ("seeds", f"S = {len(summary.seeds)}"),
            ("test items", f"n = {summary.items:,}"),
            ("training", f"{budget:,} steps of {study.training.batch_size} examples"),
        ),
        question=f"How do the arms compare with {labels}?",
        lines=_lines(summary, colours),
        blocked=summary.blocked,
        columns=_columns(summary, unit),
        rows=tuple(_row(summary, row, unit, colours[row.arm]) for row in summary.rows),
        table_caption=_caption(summary),
        weights=weight_table(comparison),
        costs=costs(summary, colours),
        budgets=equal_budgets(getattr(summary, "readings", ()), summary, colours),
        checks=summary.checks,
        notes=summary.notes,
        tables=_tables(tables(summary, comparison.records)),
        spec=study.to_yaml(),
        hashes=(("study", summary.study), *sorted(final["hashes"].items())),
        versions=tuple(final["versions"].items()),
        machines=_machines(comparison),
    )


def _direction(summary: Summary) -> str:
    return "more is better" if summary.metric["greater_is_better"] else "less is better"


def _lines(summary: Summary, colours: dict[str, Look]) -> tuple[Line, ...]:
    rows = sorted((row for row in summary.rows if row.verdict), key=lambda row: row.kind != "arm")
    found = []
    for row in rows:
        assert row.verdict is not None
        told, costs = (
            text.replace(" %", "\N{NO-BREAK SPACE}%") for text in (finding(summary, row), price(summary, row))
        )
        found.append(
            Line(
                row.arm,
                row.label,
                row.verdict.word,
                told,
                costs,
                colours[row.arm].css,
                row.kind != "arm",
                row.verdict.indicative,
            )
        )
    return tuple(found)


def _columns(summary: Summary, unit: Unit) -> tuple[str, ...]:
    forgets = (f"forgetting [{summary.probe_unit}]",) if _forgets(summary) else ()
    of = f" [{unit.name}]" if unit.name else ""
    level = " [%]" if unit.name == "pt" else of
    return (
        "trainable",
        "learning rate",
        f"test {summary.metric['name']}{level}",
        f"difference{of}",
        "verdict",
        "validation loss [nats]",
        "step [ms]",
        "memory",
        "checkpoint",
        "merge and back",
        *forgets,
    )


def _forgets(summary: Summary) -> bool:
    return any(row.forgetting for row in summary.rows)


def _row(summary: Summary, row: Row, unit: Unit, look: Look) -> TableRow:
    cells = (
        _trainable(row),
        _rate(row),
        _estimate(row.test, unit.scale, unit.digits),
        _difference(row, unit),
        _verdict(row),
        _estimate(row.validation_loss, 1, 3),
        _step(row),
        _memory(row),
        Cell(numbers.size(row.checkpoint_bytes)),
        _merge(row),
        *((_forgetting(summary, row),) if _forgets(summary) else ()),
    )
    word = row.verdict.word if row.verdict else ""
    return TableRow(row.label, row.kind, look.css, _flag(row), word, cells)


def _flag(row: Row) -> str:
    """Return why an arm, or some of its runs, count as not trained."""
    if not row.flag:
        return ""
    partly = getattr(row, "state", "did not train") == "partly"
    return f"{'not every run trained' if partly else 'did not train'}: {row.flag}"


def _trainable(row: Row) -> Cell:
    if row.adapter is None:
        return Cell(numbers.MISSING)
    parts = f"{numbers.count(row.adapter)} + {numbers.count(row.head)} head" if row.head else numbers.count(row.adapter)
    return Cell(parts, (f"{numbers.percent(row.share)} of the base",))


def _rate(row: Row) -> Cell:
    if row.rate is None:
        return Cell(numbers.MISSING)
    if row.kind == "frozen":
        return Cell(numbers.rate(row.rate), ("head's own",))
    grid = (_grid(row.grid),) if row.swept else ()
    badges = (() if row.swept else ("unswept",)) + (("edge of grid",) if row.edge else ())
    return Cell(numbers.rate(row.rate), grid, badges)


def _grid(grid: tuple[float, ...]) -> str:
    if len(grid) > _LONG_GRID:
        return f"of {len(grid)}, {numbers.rate(grid[0])} to {numbers.rate(grid[-1])}"
    return f"of {', '.join(numbers.rate(rate) for rate in grid)}"


def _estimate(estimate: Estimate | None, scale: float, digits: int) -> Cell:
    if estimate is None:
        return Cell(numbers.MISSING)
    text = f"{estimate.mean * scale:.{digits}f}"
    if estimate.interval is None:
        return Cell(text)
    half = (estimate.interval.high - estimate.interval.low) / 2 * scale
    return Cell(f"{text}{_PLUS_MINUS}{half:.{digits}f}", (f"sd {(estimate.deviation or 0) * scale:.{digits}f}",))


def _difference(row: Row, unit: Unit) -> Cell:
    if row.kind == "reference":
        return Cell("reference")
    if row.pair is None or row.interval is None:
        return Cell(numbers.MISSING)
    detectable = () if not row.detectable else (f"detects {unit.value(row.detectable)}",)
    return Cell(unit.signed(row.pair.difference), (unit.interval(row.interval), *detectable))


def _verdict(row: Row) -> Cell:
    if row.verdict is None:
        return Cell(numbers.MISSING)
    return Cell(row.verdict.word, (), ("indicative",) if row.verdict.indicative else ())


def _step(row: Row) -> Cell:
    if row.step is None:
        return Cell(numbers.MISSING)
    quartiles = f"{numbers.milliseconds(row.step_low)}{numbers.MISSING}{numbers.milliseconds(row.step_high)}"
    cpu = () if row.step_cpu is None else (f"CPU {numbers.milliseconds(row.step_cpu)}",)
    return Cell(numbers.milliseconds(row.step), (quartiles, *cpu))


def _memory(row: Row) -> Cell:
    if row.memory is None:
        return Cell(numbers.MISSING)
    parts = (
        f"weights {numbers.size(row.memory['weights'])}",
        f"gradients {numbers.size(row.memory['gradients'])}",
        f"optimizer {numbers.size(row.memory['optimizer'])}",
        f"activations {numbers.size(row.memory['activations'])}",
    )
    return Cell(numbers.size(memory_total(row.memory)), parts)


def _merge(row: Row) -> Cell:
    if row.elements is None or row.differ is None:
        return Cell(numbers.MISSING)
    notes = (f"of {row.elements:,} numbers", f"logits move by {numbers.tiny(row.logit_change)}")
    return Cell(f"{row.differ:,} differ", notes, (), bad=row.differ > 0)


def _forgetting(summary: Summary, row: Row) -> Cell:
    if row.forgetting is None:
        return Cell(numbers.MISSING)
    of = Unit(1, 3, summary.probe_unit)
    text = of.signed(row.forgetting.mean)
    if row.forgetting.interval is not None:
        text += f"{_PLUS_MINUS}{(row.forgetting.interval.high - row.forgetting.interval.low) / 2:.3f}"
    notes = (f"{numbers.loss(row.known_before)} → {numbers.loss(row.known_after)}",)
    own = summary.forgotten.arm(row.arm) if summary.forgotten else None
    if own is None or own.matched is None:
        return Cell(text, notes)
    lost = own.matched.forgotten
    matched = f"at equal learning {of.signed(lost.difference)} {of.interval(lost.interval)}"
    return Cell(text, (*notes, matched), ("moved up",) if own.moved_up else ())


def _caption(summary: Summary) -> str:
    many = len(summary.seeds) > 1
    spread = "±: half of the 95 % interval over seeds, the test items taken as given. " if many else ""
    return (
        f"S = {len(summary.seeds)} seed{'s' if many else ''}, n = {summary.items:,} test items. {spread}"
        "Differences are paired by seed and item; their 95 % intervals cover both. “Detects”: the smallest true "
        "difference that this study finds with a power of 80 %. Merge and back: numbers of the base whose bits differ "
        "after merging, unmerging and taking the adapters off, over all seeds, and the largest change of a logit by "
        "merging."
    )


def _tables(found: dict[str, Table]) -> tuple[Numbers, ...]:
    return tuple(
        Numbers(name, _TITLES.get(name, name.replace("_", " ")), columns, rows)
        for name, (columns, rows) in found.items()
        if rows
    )


def _machines(comparison: Comparison) -> tuple[str, ...]:
    told = [", ".join(f"{key} {value}" for key, value in sorted(r["machine"].items())) for r in comparison.records]
    return _unique(told)


def _unique(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))
