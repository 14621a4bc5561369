"""Choosing learning rates: validation loss, the tuning seed, and never the test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from surgery.errors import TrainingError
from surgery.study.record import CellRecord
from surgery.study.spec import StudySpec

__all__ = ["Choice", "choose_rates", "expected_best", "next_rates"]

_HALF_A_DECADE = 10**0.5
_LARGEST = 100.0  # of a learning rate, as in the study file


@dataclass(frozen=True, slots=True)
class Choice:
    """The learning rate of one arm.

    Attributes:
        arm: which.
        rate: the chosen one.
        grid: what it was chosen from, sorted: the study's grid, and what was tried beyond it.
        losses: validation loss in nats of each grid point on the tuning seed; None where the run diverged or never was.
        edge: whether the chosen one is the smallest or the largest of its grid.
        extra: the points of `grid` that lie beyond the study's own.
        expected: the validation loss to expect of the best of 1, 2, ... of these tries (Dodge et al. 2019).
    """

    arm: str
    rate: float
    grid: tuple[float, ...]
    losses: tuple[float | None, ...]
    edge: bool
    extra: tuple[float, ...] = ()
    expected: tuple[float, ...] = ()

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


def next_rates(study: StudySpec, records: Sequence[CellRecord]) -> dict[str, float]:
    """Return arm -> the next learning rate to try beyond its grid, for arms whose best one lies at an edge.

    A grid goes on by its own last ratio, by half a decade at least, `study.extend_grids` times at most; where every
    rate diverged, it goes on below.
    """
    found = {}
    for arm, spec in study.arms.items():
        tried = _tried(study, arm, records)
        if not spec.swept or len(tried) - len(spec.learning_rate) >= study.extend_grids:
            continue
        rate = _beyond(list(tried), _best(tried))
        if rate is not None:
            found[arm] = rate
    return found


def expected_best(losses: Sequence[float | None]) -> tuple[float, ...]:
    """Return the loss to expect of the best of k of these tries, for k = 1, 2, ..., drawn with replacement.

    Dodge et al. 2019 (arXiv 1909.03004), for a loss: sum over sorted losses v(i) of ((n-i+1)/n)^k - ((n-i)/n)^k. A try
    that diverged counts as the worst of the others.
    """
    finite = [loss for loss in losses if loss is not None]
    if not finite:
        return ()
    values = sorted([*finite, *[max(finite)] * (len(losses) - len(finite))])
    count = len(values)
    return tuple(
        sum(
            value * (((count - index) / count) ** k - ((count - index - 1) / count) ** k)
            for index, value in enumerate(values)
        )
        for k in range(1, count + 1)
    )


def _beyond(grid: list[float], best: int) -> float | None:
    """Return the next point beyond the edge at which `best` lies; None inside of the grid, and where none may be."""
    if best == 0:
        ratio = max(grid[1] / grid[0], _HALF_A_DECADE)
        return _rounded(grid[0] / ratio)
    if best == len(grid) - 1:
        ratio = max(grid[-1] / grid[-2], _HALF_A_DECADE)
        rate = _rounded(grid[-1] * ratio)
        return rate if rate <= _LARGEST else None
    return None


def _rounded(rate: float) -> float:
    # Three digits: what a person would have written, and the same float on every machine.
    return float(f"{rate:.3g}")


def _choice(study: StudySpec, arm: str, records: Sequence[CellRecord]) -> Choice:
    own = study.arms[arm].learning_rate
    if len(own) == 1:
        return Choice(arm, own[0], own, (None,), edge=False)
    tried = _tried(study, arm, records)
    grid, losses, best = tuple(tried), tuple(tried.values()), _best(tried)
    if losses[best] is None:
        raise TrainingError(
            f"every learning rate of the arm {arm!r} diverged: {', '.join(f'{rate:g}' for rate in grid)}",
            f"arms.{arm}.learning_rate",
            "add smaller ones",
        )
    extra = tuple(rate for rate in grid if rate not in own)
    return Choice(arm, grid[best], grid, losses, best in (0, len(grid) - 1), extra, expected_best(losses))


def _tried(study: StudySpec, arm: str, records: Sequence[CellRecord]) -> dict[float, float | None]:
    """Return learning rate -> validation loss, sorted by rate: the arm's grid, and what was tried beyond it."""
    found: dict[float, float | None] = dict.fromkeys(study.arms[arm].learning_rate)
    for record in records:
        if record["phase"] == "tune" and record["arm"] == arm:
            loss = None if record["diverged"] else record["validation"].get("loss")
            found[record["learning_rate"]] = loss
    return dict(sorted(found.items()))


def _best(tried: dict[float, float | None]) -> int:
    """Return the place of the smallest loss; of the smallest rate where all are equal, or none is a number."""
    sizes = [math.inf if loss is None else loss for loss in tried.values()]
    return min(range(len(sizes)), key=lambda index: (sizes[index], index))
