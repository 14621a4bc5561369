"""Choosing learning rates: validation loss, the tuning seed, and never the test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from surgery.errors import TrainingError
from surgery.study.record import CellRecord
from surgery.study.spec import StudySpec

__all__ = ["Choice", "choose_rates"]


@dataclass(frozen=True, slots=True)
class Choice:
    """The learning rate of one arm.

    Attributes:
        arm: which.
        rate: the chosen one.
        grid: what it was chosen from, sorted.
        losses: validation loss in nats of each grid point on the tuning seed; None where the run diverged or never was.
        edge: whether the chosen one is the smallest or the largest of its grid.
    """

    arm: str
    rate: float
    grid: tuple[float, ...]
    losses: tuple[float | None, ...]
    edge: bool

    @property
    def swept(self) -> bool:
        """Whether there was anything to choose from."""
        return len(self.grid) > 1


def choose_rates(study: StudySpec, records: Sequence[CellRecord]) -> tuple[Choice, ...]:
    """Return the learning rate of every arm: the one with the smallest validation loss on the tuning seed.

    Raises:
        TrainingError: every learning rate of an arm diverged.
    """
    return tuple(_choice(study, arm, records) for arm in study.arms)


def _choice(study: StudySpec, arm: str, records: Sequence[CellRecord]) -> Choice:
    grid = tuple(sorted(study.arms[arm].learning_rate))
    if len(grid) == 1:
        return Choice(arm, grid[0], grid, (None,), edge=False)
    losses = tuple(_loss(arm, rate, records) for rate in grid)
    sizes = [math.inf if loss is None else loss for loss in losses]
    best = min(range(len(grid)), key=lambda index: (sizes[index], grid[index]))
    if math.isinf(sizes[best]):
        raise TrainingError(
            f"every learning rate of the arm {arm!r} diverged: {', '.join(f'{rate:g}' for rate in grid)}",
            f"arms.{arm}.learning_rate",
            "add smaller ones",
        )
    return Choice(arm, grid[best], grid, losses, edge=best in (0, len(grid) - 1))


def _loss(arm: str, rate: float, records: Sequence[CellRecord]) -> float | None:
    for record in records:
        if record["phase"] == "tune" and record["arm"] == arm and record["learning_rate"] == rate:
            return None if record["diverged"] else record["validation"].get("loss")
    return None
