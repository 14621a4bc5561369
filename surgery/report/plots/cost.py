"""What an arm costs: memory by component, and the time of one step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgery.report.numbers import milliseconds, size
from surgery.report.palette import INK, PARTS, SURFACE
from surgery.report.plots.drawing import Drawing, Looks, Picture, legend, sample, wrapped
from surgery.study import Comparison, Row
from surgery.study.record import Memory, memory_total

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["memory", "step_time"]

_MIB = 2**20


def memory(comparison: Comparison, looks: Looks) -> Drawing | None:
    """Return stacked bars of the memory of one training step."""
    rows = [row for row in _ordered(comparison) if row.memory is not None]
    if not rows:
        return None
    dashed = "Dashed: predicted by the cost model. " if any(row.cost for row in rows) else ""
    spoken = "; ".join(f"{row.label}: {size(memory_total(row.memory))}" for row in rows if row.memory)

    def draw(axes: Axes) -> None:
        for place, row in enumerate(rows):
            assert row.memory is not None
            start = 0.0
            for (name, value), colour in zip(_parts(row.memory), PARTS, strict=True):
                label = name if place == 0 else None
                axes.barh(place, value / _MIB, 0.62, start, color=colour, edgecolor=SURFACE, linewidth=0.6, label=label)
                start += value / _MIB
            _outline(axes, place, row)
            axes.annotate(
                size(memory_total(row.memory)),
                (start, place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
            )
        _bars(axes, rows, "MiB while training")
        legend(axes)

    return Drawing(
        "memory",
        "Memory of a training step",
        "Measured from the tensors themselves: weights (the untouched base and the adapters; an arm that replaces "
        "weights holds both), gradients, optimizer state, and activations kept for the backward pass of the first "
        f"batch. {dashed}One run of each arm; {sample(comparison.summary, items=False)}",
        ("arms", "costs"),
        (Picture("", spoken, draw),),
        height=1.5 + 0.46 * len(rows),
    )


def step_time(comparison: Comparison, looks: Looks) -> Drawing | None:
    """Return bars of the time of one step with its quartiles: of the clock that compares arms on this machine."""
    is_cpu = comparison.summary.clock == "cpu"
    rows = [(row, spread) for row in _ordered(comparison) if (spread := _spread(row, is_cpu)) is not None]
    if not rows:
        return None
    kind = "CPU time" if is_cpu else "Wall time"
    spoken = "; ".join(f"{row.label}: {milliseconds(middle)} ms" for row, (middle, _, _) in rows)

    def draw(axes: Axes) -> None:
        for place, (row, (middle, low, high)) in enumerate(rows):
            axes.barh(place, middle * 1000, 0.62, color=looks[row.arm].colour, alpha=0.85, linewidth=0)
            axes.plot([low * 1000, high * 1000], [place, place], color=INK, linewidth=1.2)
            for end in (low, high):
                axes.plot([end * 1000] * 2, [place - 0.13, place + 0.13], color=INK, linewidth=1.2)
            axes.annotate(
                f"{milliseconds(middle)} ms",
                (max(high, middle) * 1000, place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
            )
        _bars(axes, [row for row, _ in rows], f"{'CPU ' if is_cpu else ''}ms per step")

    clocks = all(row.clock for row, _ in rows)
    quartiles = "median and quartiles" if clocks or not is_cpu else "median"
    return Drawing(
        "time",
        f"{kind} of a training step",
        f"Forward, backward and optimizer, after warm-up: {quartiles}{'' if clocks else ', the median over seeds'}. "
        f"{'Other programs on the machine stretch the wall time, which the table tells, too. ' if is_cpu else ''}"
        f"{'Arms took turns. ' if clocks else ''}{sample(comparison.summary, items=False)}",
        ("arms", "costs"),
        (Picture("", spoken, draw),),
        height=1.1 + 0.46 * len(rows),
    )


def _spread(row: Row, is_cpu: bool) -> tuple[float, float, float] | None:
    """Return median and quartiles of a step in seconds; the median thrice where the quartiles are not known."""
    if not is_cpu:
        return None if row.step is None else (row.step, row.step_low or row.step, row.step_high or row.step)
    if row.step_cpu is None:
        return None
    own = row.clock.step_cpu if row.clock else None
    return (row.step_cpu, own.low, own.high) if own else (row.step_cpu,) * 3


def _ordered(comparison: Comparison) -> list[Row]:
    return [row for row in comparison.summary.rows if row.kind != "majority"]


def _parts(memory: Memory) -> tuple[tuple[str, int], ...]:
    return (
        ("weights", memory["weights"]),
        ("gradients", memory["gradients"]),
        ("optimizer", memory["optimizer"]),
        ("activations", memory["activations"]),
    )


def _outline(axes: Axes, place: int, row: Row) -> None:
    """Draw what was predicted over what was measured, where all of it was predicted."""
    told = row.cost["predicted"] if row.cost else None
    if told is None or told["activations"] is None:
        return
    start = 0.0
    for value in (told["weights"], told["gradients"], told["optimizer"], told["activations"]):
        width = value / _MIB
        axes.barh(place, width, 0.78, start, fill=False, edgecolor=INK, linewidth=0.9, linestyle=(0, (3, 2)))
        start += width


def _bars(axes: Axes, rows: list[Row], label: str) -> None:
    axes.set_yticks(range(len(rows)), [wrapped(row.label) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.2)
    axes.set_xlabel(label)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
