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
    """Return bars of the time of one step with its quartiles."""
    rows = [row for row in _ordered(comparison) if row.step is not None]
    if not rows:
        return None
    spoken = "; ".join(f"{row.label}: {milliseconds(row.step)} ms" for row in rows)

    def draw(axes: Axes) -> None:
        for place, row in enumerate(rows):
            assert row.step is not None
            axes.barh(place, row.step * 1000, 0.62, color=looks[row.arm].colour, alpha=0.85, linewidth=0)
            low, high = row.step_low or row.step, row.step_high or row.step
            axes.plot([low * 1000, high * 1000], [place, place], color=INK, linewidth=1.2)
            for end in (low, high):
                axes.plot([end * 1000] * 2, [place - 0.13, place + 0.13], color=INK, linewidth=1.2)
            if row.step_cpu is not None:
                axes.plot([row.step_cpu * 1000], [place], "D", color=SURFACE, markeredgecolor=INK, markersize=5)
            axes.annotate(
                f"{milliseconds(row.step)} ms",
                (max(high, row.step) * 1000, place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
            )
        _bars(axes, rows, "ms per step")

    return Drawing(
        "time",
        "Time of a training step",
        "Forward, backward and optimizer: median and quartiles of the wall time after warm-up"
        f"{', the median over seeds' if any(row.clock is None for row in rows) else ''}. "
        "Diamond: median CPU time, which other programs on the machine do not stretch. "
        f"{'Arms took turns. ' if all(row.clock for row in rows) else ''}"
        f"{sample(comparison.summary, items=False)}",
        ("arms",),
        (Picture("", spoken, draw),),
        height=1.1 + 0.46 * len(rows),
    )


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
