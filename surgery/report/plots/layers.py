"""Where in the model weights changed: layer by module."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from surgery.report.palette import INK, MUTED
from surgery.report.plots.drawing import MOST_VIEWS, Drawing, Looks, Picture, plain
from surgery.study import Comparison
from surgery.study.layers import LayerChange, layer_changes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["entropy_ranks", "relative_norms"]

_FEW_COLUMNS = 8
_MOST_ROWS = 14
_ON_SHADES = "#10161d"  # shades are as light on a dark page, so the numbers on them stay dark


def relative_norms(comparison: Comparison, looks: Looks) -> Drawing | None:
    """Return the heat map of |dW| / |W|, one view for each arm, in the same shades."""
    return _map(
        comparison,
        "norms",
        "How far each weight moved",
        "relative_norm",
        lambda value: f"{100 * value:.2g}",
        "|dW| / |W| in per cent",
    )


def entropy_ranks(comparison: Comparison, looks: Looks) -> Drawing | None:
    """Return the heat map of the entropy rank of dW, one view for each arm, in the same shades."""
    return _map(
        comparison,
        "ranks",
        "In how many directions each weight moved",
        "entropy_rank",
        lambda value: f"{value:.3g}",
        "Entropy rank of dW, of a random change of equal norm and rank in brackets",
    )


def _map(
    comparison: Comparison, name: str, title: str, figure: str, told: Callable[[float], str], what: str
) -> Drawing | None:
    found = [one for one in layer_changes(comparison.records) if one.layer is not None and getattr(one, figure)]
    arms = list(dict.fromkeys(one.arm for one in found))
    rows = list(dict.fromkeys(_module(one, found) for one in found))
    if not found or len(rows) > _MOST_ROWS:
        return None
    values = [float(getattr(one, figure)) for one in found]
    limits = math.log(min(values)), math.log(max(values))
    views = []
    for arm in arms[:MOST_VIEWS]:
        own = [one for one in found if one.arm == arm]
        low, high = min(float(getattr(one, figure)) for one in own), max(float(getattr(one, figure)) for one in own)
        label = comparison.summary.row(arm).label
        draw = _drawn(found, own, rows, figure, told, limits)
        views.append(Picture(label, f"{label}: from {told(low)} to {told(high)}", draw))
    seeds = {record["seed"] for record in comparison.records if record.get("weights")}
    return Drawing(
        name,
        title,
        f"{what}; medians over the matrices of a module in a layer. Shades are logarithmic and the same for all arms; "
        f"an empty cell did not change. S = {len(seeds)} seed{'s' if len(seeds) > 1 else ''}.",
        ("layers",),
        tuple(views),
        height=1.0 + 0.38 * len(rows),
    )


def _module(one: LayerChange, found: Sequence[LayerChange]) -> str:
    """Return what a row is called: the role, and the stack where there are several."""
    return one.role if len({other.stack for other in found}) < 2 else f"{one.stack}: {one.role}"


def _drawn(
    found: Sequence[LayerChange],
    own: Sequence[LayerChange],
    rows: Sequence[str],
    figure: str,
    told: Callable[[float], str],
    limits: tuple[float, float],
) -> Callable[[Axes], None]:
    layers = sorted({one.layer for one in found if one.layer is not None})

    def draw(axes: Axes) -> None:
        import matplotlib as mpl
        from matplotlib.patches import Rectangle

        shades = mpl.colormaps["Blues"]
        for one in own:
            assert one.layer is not None
            x, y, value = layers.index(one.layer), rows.index(_module(one, found)), float(getattr(one, figure))
            share = (math.log(value) - limits[0]) / (limits[1] - limits[0]) if limits[1] > limits[0] else 0.5
            axes.add_patch(Rectangle((x + 0.03, y + 0.04), 0.94, 0.92, color=shades(0.08 + 0.5 * share), linewidth=0))
            if len(layers) <= _FEW_COLUMNS:
                beside = one.random_entropy_rank if figure == "entropy_rank" else None
                text = told(value) if beside is None else f"{told(value)}\n({told(beside)})"
                axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=7.2, linespacing=1.0,
                          color=_ON_SHADES)  # fmt: skip
        axes.set_xlim(0, len(layers))
        axes.set_ylim(len(rows), 0)
        every = max(1, math.ceil(len(layers) / 12))
        axes.set_xticks([x + 0.5 for x in range(0, len(layers), every)], [str(one) for one in layers[::every]])
        axes.set_yticks([y + 0.5 for y in range(len(rows))], [plain(row) for row in rows])
        axes.set_xlabel("layer")
        axes.grid(visible=False)
        axes.tick_params(labelcolor=INK, color=MUTED)
        for spine in axes.spines.values():
            spine.set_visible(False)

    return draw
