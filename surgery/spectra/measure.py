"""What changed in the weights, matrix by matrix, each figure beside that of a random change of equal norm."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from surgery.operation.attach import site_seed
from surgery.spectra.control import random_change
from surgery.spectra.decomposition import EXACT_UP_TO, Decomposition, decompose, leading
from surgery.spectra.extracted import finite
from surgery.spectra.intruders import EPSILON, LOOKED_AT, intruders
from surgery.spectra.matrix import Matrix
from surgery.spectra.ranks import entropy_rank, numerical_rank, rank_for_energy, stable_rank

__all__ = ["LEADING", "Figures", "MatrixChange", "Settings", "measure", "measure_all", "medians"]

LEADING = 32
"""How many singular values are kept of every change, and of its control."""


@dataclass(frozen=True)
class Settings:
    """What is asked.

    Attributes:
        energy: the share of |dW|^2 that the rank is told for.
        looked_at, epsilon: see `intruders`.
        seed: of controls and sketches.
        exact_up_to: see `decompose`; None for its own bound.
    """

    energy: float = 0.9
    looked_at: int = LOOKED_AT
    epsilon: float = EPSILON
    seed: int = 0
    exact_up_to: int | None = None


@dataclass(frozen=True)
class Figures:
    """What is said of one change dW of a weight W.

    Attributes:
        stable_rank, entropy_rank, rank_for_energy: see `surgery.spectra.ranks`.
        top_ratio: s1(dW) / s1(W); inf where W is zero.
        intruders, intruders_undecided, intruder_energy: see `Intruders`, of W + dW.
    """

    stable_rank: float
    entropy_rank: float
    rank_for_energy: int
    top_ratio: float
    intruders: int
    intruders_undecided: int
    intruder_energy: float


@dataclass(frozen=True)
class MatrixChange:
    """One matrix that changed.

    Attributes:
        name, role, stack, layer, expert, shape: which one; (fan_out, fan_in).
        relative_norm: |dW| / |W| (Frobenius); inf where W is zero.
        rank: the numerical rank of dW.
        found: what changed.
        control: the same of a random change of equal norm and, where dW has not full rank, of equal rank.
        missed: share of |dW|^2 that the singular values leave out: 0 where they are exact.
        values, control_values: the `LEADING` largest singular values of dW and of the control, six digits of each.
    """

    name: str
    role: str
    stack: str
    layer: int | None
    expert: int | None
    shape: tuple[int, int]
    relative_norm: float
    rank: int
    found: Figures
    control: Figures
    missed: float
    values: tuple[float, ...] = ()
    control_values: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        told = {**asdict(self), "shape": list(self.shape), "relative_norm": finite(self.relative_norm)}
        told |= {"values": list(self.values), "control_values": list(self.control_values)}
        for which in ("found", "control"):
            told[which]["top_ratio"] = finite(told[which]["top_ratio"])
        return told


@torch.no_grad()
def measure(matrix: Matrix, settings: Settings | None = None) -> MatrixChange | None:
    """Return what changed in `matrix`, or None where nothing did.

    The control is drawn from a generator of the matrix's own: what else is measured has no part in it.
    """
    settings = settings or Settings()
    delta = matrix.change
    if not bool(delta.any()):
        return None
    bound = settings.exact_up_to or EXACT_UP_TO
    base = decompose(matrix.base, seed=settings.seed, exact_up_to=bound)
    change = _values(delta, settings)
    rank = numerical_rank(change)
    generator = torch.Generator().manual_seed(site_seed(settings.seed, f"control {matrix.name}"))
    is_low = change.is_exact and rank < min(matrix.shape)
    random = random_change(matrix.shape, change.norm, generator, rank if is_low else None)
    beside = _values(random, settings)
    return MatrixChange(
        name=matrix.name,
        role=matrix.site.role,
        stack=matrix.site.stack,
        layer=matrix.site.layer,
        expert=matrix.expert,
        shape=matrix.shape,
        relative_norm=change.norm / base.norm if base.energy else float("inf"),
        rank=rank,
        found=_figures(base, change, matrix.tuned, settings),
        control=_figures(base, beside, matrix.base + random, settings),
        missed=change.missed,
        values=_leading(change, rank),
        control_values=_leading(beside, rank),
    )


def measure_all(matrices: Iterable[Matrix], settings: Settings | None = None) -> Iterator[MatrixChange]:
    """Yield what changed in each matrix that did; one of them is in memory at a time."""
    for matrix in matrices:
        found = measure(matrix, settings)
        if found is not None:
            yield found


def medians(changes: Sequence[MatrixChange]) -> Mapping[str, float]:
    """Return figure -> its median over matrices; `control_...` for those of the controls. Empty where none changed."""
    if not changes:
        return {}
    values: dict[str, list[float]] = {
        "relative_norm": [one.relative_norm for one in changes],
        "rank": [float(one.rank) for one in changes],
    }
    for one in changes:
        for prefix, figures in (("", one.found), ("control_", one.control)):
            for name, value in asdict(figures).items():
                values.setdefault(f"{prefix}{name}", []).append(float(value))
    return {name: statistics.median(several) for name, several in values.items()}


def _figures(base: Decomposition, change: Decomposition, tuned: torch.Tensor, settings: Settings) -> Figures:
    bound = settings.exact_up_to or EXACT_UP_TO
    after = leading(tuned, settings.looked_at, seed=settings.seed, exact_up_to=bound)
    new = intruders(base, after, settings.looked_at, settings.epsilon)
    return Figures(
        stable_rank=stable_rank(change),
        entropy_rank=entropy_rank(change),
        rank_for_energy=rank_for_energy(change, settings.energy),
        top_ratio=float(change.values[0] / base.values[0]) if base.energy else float("inf"),
        intruders=new.count,
        intruders_undecided=new.undecided,
        intruder_energy=new.energy,
    )


def _leading(change: Decomposition, rank: int) -> tuple[float, ...]:
    # Beyond the rank there are roundings alone.
    return tuple(float(f"{value:.6g}") for value in change.values[: min(LEADING, rank)].tolist())


def _values(delta: torch.Tensor, settings: Settings) -> Decomposition:
    bound = settings.exact_up_to or EXACT_UP_TO
    return decompose(delta, energy=settings.energy, seed=settings.seed, exact_up_to=bound, vectors=False)
