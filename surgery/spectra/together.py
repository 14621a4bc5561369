"""How far two tunings of one base changed the same directions, matrix by matrix, beside random changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from surgery.errors import StateError
from surgery.operation.attach import site_seed
from surgery.spectra.control import random_change
from surgery.spectra.decomposition import Decomposition, leading
from surgery.spectra.matrix import Matrix
from surgery.spectra.ranks import numerical_rank
from surgery.spectra.subspaces import Side, expected_overlap, overlap

__all__ = ["Directions", "MatrixOverlap", "directions", "measure_overlaps"]

_SIDES: tuple[Side, Side] = ("left", "right")


@dataclass(frozen=True, eq=False)
class Directions:
    """The leading directions of what changed in one matrix: all that is kept of it.

    Attributes:
        name, role, stack, layer, expert: which one.
        found: the triplets; fewer than asked for where the change has a lower rank.
    """

    name: str
    role: str
    stack: str
    layer: int | None
    expert: int | None
    found: Decomposition


@dataclass(frozen=True)
class MatrixOverlap:
    """Two changes of one matrix.

    Attributes:
        name, role, stack, layer, expert: which one.
        i, j: how many directions of either were looked at.
        left, right: phi of the output's and of the input's directions, see `surgery.spectra.overlap`.
        control_left, control_right: phi of the first change with a random one.
        expected_left, expected_right: the mean of phi for random subspaces.
    """

    name: str
    role: str
    stack: str
    layer: int | None
    expert: int | None
    i: int
    j: int
    left: float
    right: float
    control_left: float
    control_right: float
    expected_left: float
    expected_right: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


@torch.no_grad()
def directions(matrices: Iterable[Matrix], count: int = 8, *, seed: int = 0) -> dict[str, Directions]:
    """Return name -> the `count` leading directions of its change, for every matrix that changed.

    One matrix is in memory at a time; seeds and arms of a study are then compared without their weights.

    Raises:
        StateError: a count below 1.
    """
    if count < 1:
        raise StateError(f"{count} directions are asked for", hint="ask for 1 or more")
    kept = {}
    for one in matrices:
        delta = one.change
        if bool(delta.any()):
            found = leading(delta, count, seed=seed)
            found = found.cut(max(1, numerical_rank(found)))
            kept[one.name] = Directions(one.name, one.site.role, one.site.stack, one.site.layer, one.expert, found)
    return kept


def measure_overlaps(
    first: Mapping[str, Directions], second: Mapping[str, Directions], *, seed: int = 0
) -> Iterator[MatrixOverlap]:
    """Yield the overlap of each matrix that both tunings changed, in the order of the first.

    Args:
        first, second: directions of two tunings of one base.
        seed: of the controls.

    Raises:
        StateError: no matrix is in both.
    """
    common = [name for name in first if name in second]
    if not common:
        raise StateError("the two tunings changed no matrix in common", hint="give tunings of one base")
    for name in common:
        one, other = first[name].found, second[name].found
        i, j = len(one.values), len(other.values)
        generator = torch.Generator().manual_seed(site_seed(seed, f"overlap {name}"))
        random = leading(random_change(one.shape, 1.0, generator), j, seed=seed)
        left, right = (overlap(one, other, i, j, side) for side in _SIDES)
        beside = [overlap(one, random, i, j, side) for side in _SIDES]
        expected = [expected_overlap(size, i, j) for size in one.shape]
        about = first[name]
        which = (about.role, about.stack, about.layer, about.expert)
        yield MatrixOverlap(name, *which, i, j, left, right, *beside, *expected)
