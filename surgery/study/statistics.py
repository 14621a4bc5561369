"""Intervals for what a study measured: means over seeds, and paired differences over seeds and items.

The model behind the paired interval: the difference of two arms on item i with seed s is
``d[s, i] = delta + a[s] + b[i] + e[s, i]``. Seeds and items are both samples, and every seed sees the same items, so

    Var(mean d) = var(a)/S + var(b)/n + var(e)/(S n).

A percentile bootstrap over three seeds undercovers badly (it cannot see farther than the three values it was given), so
the bootstrap supplies the item variance, for any metric, and the few seeds get Student's t. What that is worth on
studies of known truth stands in docs/studies/statistics.md, and in tests/study/test_coverage.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from surgery.study.quantiles import binomial_p, root, student
from surgery.study.resample import Floats

__all__ = ["Estimate", "Interval", "Paired", "across_seeds", "holm", "mcnemar", "paired"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided interval, in the unit of what it is about."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def within(self, margin: float) -> bool:
        """Return whether the whole interval lies strictly inside (-margin, +margin)."""
        return -margin < self.low and self.high < margin


@dataclass(frozen=True, slots=True)
class Estimate:
    """One arm's metric over its seeds.

    Attributes:
        mean: over seeds.
        deviation: sample standard deviation over seeds (ddof 1); None with one seed.
        interval: 95 % Student interval of the mean over seeds, the test items taken as given; None with one seed.
        seeds: how many.
    """

    mean: float
    deviation: float | None
    interval: Interval | None
    seeds: int


@dataclass(frozen=True, slots=True)
class Paired:
    """The paired difference of two arms and where its uncertainty comes from.

    Attributes:
        difference: arm minus reference, in the unit of the metric.
        seeds, items: sample sizes S and n.
        per_seed: the difference of each seed.
        seed_part: var over seeds / S, which holds var(a)/S + var(e)/(S n); 0 with one seed.
        item_part: bootstrap variance over items of the mean over seeds, var(b)/n + var(e)/(S n).
        shared_part: var(e)/(S n), which both of the above hold.
        percentile: the plain two-level bootstrap's 95 % percentile interval, for readers who expect it. No verdict
            rests on it.
        mcnemar: two-sided exact p over discordant items, where there is one seed and items are right or wrong.
    """

    difference: float
    seeds: int
    items: int
    per_seed: tuple[float, ...]
    seed_part: float
    item_part: float
    shared_part: float
    percentile: Interval
    mcnemar: float | None = None

    def half_width(self, level: float) -> float:
        """Return half the width of the two-sided interval at `level`, for example 0.95."""
        return half_width(self.seed_part, self.item_part, self.shared_part, self.seeds, self.items, level)

    def interval(self, level: float = 0.95) -> Interval:
        """Return the two-sided interval of the difference.

        With one seed it speaks of these very weights on other items, and says nothing about training noise.
        """
        half = self.half_width(level)
        return Interval(self.difference - half, self.difference + half)

    @property
    def p(self) -> float:
        """The smallest alpha at which the (1 - alpha) interval excludes 0."""
        size = abs(self.difference)
        if size == 0 or self.half_width(1e-6) >= size:
            return 1.0
        floor = 1e-12
        if self.half_width(1 - floor) <= size:
            return floor
        return root(lambda alpha: self.half_width(1 - alpha) - size, floor, 1 - 1e-6)

    def forecast(self, seeds: int, items: int, level: float) -> float:
        """Return the half-width to expect with other sample sizes, the variances staying as they were estimated."""
        by_pair = self.seeds * self.items / (seeds * items)
        shared = self.shared_part * by_pair
        # A seed part that happens to lie below what it must hold is taken as it is: more seeds forecast no surprise.
        seed_part = max(self.seed_part - self.shared_part, 0.0) * self.seeds / seeds
        seed_part += min(self.seed_part, self.shared_part) * by_pair
        item_part = max(self.item_part - self.shared_part, 0.0) * self.items / items + shared
        return half_width(seed_part, item_part, shared, seeds, items, level)

    @property
    def detectable(self) -> float:
        """The smallest true difference that this many seeds and items would find with a power of 80 %."""
        half = self.half_width(0.95)
        freedom = self._freedom()
        return half * (1 + student(0.8, freedom) / student(0.975, freedom))

    def _freedom(self) -> float:
        variance = self.seed_part + max(self.item_part - self.shared_part, 0.0)
        if self.seeds < 2 or variance == 0:
            return max(self.items - 1, 1)
        terms = self.seed_part**2 / (self.seeds - 1) + self.item_part**2 / max(self.items - 1, 1)
        return max(variance**2 / terms, self.seeds - 1.0)


def half_width(seed_part: float, item_part: float, shared: float, seeds: int, items: int, level: float) -> float:
    """Return half the width of the paired interval; the parts are `Paired`'s.

    Each part gets the t quantile of its own degrees of freedom and the two are added in quadrature (Howe's rule),
    because a pooled (Satterthwaite) t is too short when the seeds that were drawn happen to agree. Of the seed part,
    `shared` is known from the items and needs no t of few degrees of freedom: with three seeds, Howe's rule alone may
    cover 98.8 % in place of 95. Taking all of it to the items' side undercovers (90.9 %) where seeds and items interact
    and little else is left. The square of the share that items have in common over all seeds says how much of it can
    be taken without ever undercovering (docs/studies/statistics.md). The result is never narrower than the interval of
    these very weights on other items.
    """
    tail = 0.5 + level / 2
    of_items = student(tail, max(items - 1, 1)) ** 2
    only_items = of_items * item_part
    if seeds < 2:
        return math.sqrt(only_items)
    of_seeds = student(tail, seeds - 1) ** 2
    common = max(item_part - shared, 0.0)
    known = shared * (common / item_part) ** 2 if seeds > 2 and item_part > 0 else 0.0
    both = of_seeds * max(seed_part - known, 0.0) + of_items * (common + known)
    return math.sqrt(max(both, only_items))


def across_seeds(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Return mean, standard deviation and Student interval of one value per seed."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if array.size < 2:
        return Estimate(mean, None, None, int(array.size))
    deviation = float(array.std(ddof=1))
    half = student(0.5 + level / 2, int(array.size) - 1) * deviation / math.sqrt(array.size)
    return Estimate(mean, deviation, Interval(mean - half, mean + half), int(array.size))


def paired(differences: Sequence[float], resampled: Floats, items: int, seed: int) -> Paired:
    """Return the paired difference of two arms.

    Args:
        differences: metric of the arm minus metric of the reference, one for each seed.
        resampled: the same on resampled items, (resamples, seeds): one item draw per row, shared by its seeds.
        items: how many items were resampled.
        seed: of the draw of seeds, the outer level of the percentile bootstrap.
    """
    values = np.asarray(differences, dtype=np.float64)
    seeds = values.size
    # A bootstrap of n items sees (n-1)/n of their variance.
    unbiased = items / max(items - 1, 1)
    item_part = float(resampled.mean(axis=1).var()) * unbiased
    per_seed = float(resampled.var(axis=0).mean()) * unbiased
    # Of one seed's item variance (var(b) + var(e))/n, averaging S seeds leaves var(b)/n + var(e)/(S n).
    shared = max(per_seed - item_part, 0.0) / (seeds - 1) if seeds > 1 else 0.0
    seed_part = float(values.var(ddof=1)) / seeds if seeds > 1 else 0.0
    generator = np.random.default_rng((seed, 1))
    drawn = generator.integers(0, seeds, resampled.shape)
    replicates = np.take_along_axis(resampled, drawn, axis=1).mean(axis=1)
    low, high = (float(value) for value in np.quantile(replicates, [0.025, 0.975]))
    return Paired(
        difference=float(values.mean()),
        seeds=seeds,
        items=items,
        per_seed=tuple(float(value) for value in values),
        seed_part=seed_part,
        item_part=item_part,
        shared_part=min(shared, item_part),
        percentile=Interval(low, high),
    )


def mcnemar(arm_right: Sequence[bool], reference_right: Sequence[bool]) -> float:
    """Return the exact two-sided p of McNemar's test on two aligned lists of right answers."""
    arm, reference = np.asarray(arm_right, dtype=bool), np.asarray(reference_right, dtype=bool)
    gained, lost = int((arm & ~reference).sum()), int((~arm & reference).sum())
    return 1.0 if gained + lost == 0 else binomial_p(gained, gained + lost)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return Holm's adjusted p values, in the order given: they bound the chance of any false finding in the family."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return tuple(adjusted)
