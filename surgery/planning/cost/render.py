"""Costs as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from surgery.planning.cost.cost import Cost
from surgery.planning.render import human_bytes

__all__ = ["human_flops", "render_cost"]

_INDENT = "  "


def human_flops(work: float) -> str:
    """Return floating-point operations in decimal units with three digits, e.g. `22.0 GFLOP`."""
    for unit in ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"):
        if abs(work) < 999.5:
            return f"{work:.0f} {unit}" if unit == "FLOP" or abs(work) >= 99.95 else f"{_digits(work)} {unit}"
        work /= 1000
    return f"{_digits(work)} PFLOP"


def _digits(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"


def render_cost(cost: Cost) -> str:
    """Return the cost as text, the same bytes for equal costs."""
    batch = cost.batch
    padding = ", some padded" if batch.padded else ""
    lines = [f"cost of a step  {batch.size} x {batch.length} tokens{padding}, predicted from shapes"]
    if cost.forward is not None and cost.backward is not None:
        lines += _table(("work", "forward", "backward"), _work(cost.forward, cost.backward))
    total = cost.weights + cost.gradients + cost.optimizer
    memory = [
        ("weights", human_bytes(cost.weights)),
        ("gradients", human_bytes(cost.gradients)),
        ("AdamW", human_bytes(cost.optimizer)),
    ]
    if cost.activations is not None and cost.kept is not None:
        memory.append(("activations", human_bytes(cost.kept)))
        memory += [(f"  {part}", human_bytes(size)) for part, size in cost.activations.items() if size]
        memory.append(("total", human_bytes(total + cost.kept)))
    lines += ["", *_table(("memory", "bytes"), memory)]
    if cost.why:
        lines += ["", f"{_INDENT}not predicted: {cost.why}"]
    return "\n".join(lines)


def _work(forward: Mapping[str, int], backward: Mapping[str, int]) -> list[tuple[str, ...]]:
    parts = [part for part in dict.fromkeys((*forward, *backward)) if forward.get(part) or backward.get(part)]
    rows = [(part, human_flops(forward.get(part, 0)), human_flops(backward.get(part, 0))) for part in parts]
    return [*rows, ("total", human_flops(sum(forward.values())), human_flops(sum(backward.values())))]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [titles, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    return [
        _INDENT
        + "  ".join((line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))))
        for line in lines
    ]
