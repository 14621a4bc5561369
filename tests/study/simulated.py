"""Made-up paired differences of known truth: what the intervals and verdicts are worth.

The difference of two arms on item i with seed s is ``delta + a[s] + b[i] + e[s, i]``, all normal, of known variances;
then come the study's own bootstrap, interval and verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from surgery.study.resample import resampled_ratios
from surgery.study.statistics import Paired, half_width, paired
from surgery.study.verdict import judge

ITEMS = 150
RESAMPLES = 300
SEEDS = (3, 5, 10)
SHARES = (0.0, 0.5, 0.9)
INTERACTIONS = (0.0, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
FINE_SHARES = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
LOWEST, HIGHEST, MOST_FALSE = 0.93, 0.97, 0.05


def simulated(
    generator: np.random.Generator,
    seeds: int,
    truth: float,
    share: float,
    spread: float = 1.0,
    interaction: float = 0.5,
) -> Paired:
    """Return the paired difference of one made-up study.

    Args:
        generator: of everything that is drawn.
        seeds: how many S.
        truth: the true difference delta.
        share: of the variance of the mean, how much is var(a)/S, the seeds' own.
        spread: variance of one item, var(b) + var(e).
        interaction: share of `spread` that is var(e), drawn anew for every seed.
    """
    common, own = spread * (1 - interaction), spread * interaction
    item_variance = common / ITEMS + own / (seeds * ITEMS)
    seed_variance = seeds * item_variance * share / (1 - share)
    values = (
        truth
        + generator.normal(0, np.sqrt(seed_variance), (seeds, 1))
        + generator.normal(0, np.sqrt(common), (1, ITEMS))
        + generator.normal(0, np.sqrt(own), (seeds, ITEMS))
    )
    draws = resampled_ratios(values, np.ones(ITEMS), RESAMPLES, 0)
    return paired(list(values.mean(axis=1)), draws, ITEMS, 0)


@dataclass(frozen=True)
class Cell:
    """What `studies` made-up studies of identical arms gave."""

    seeds: int
    share: float
    interaction: float
    covered: float
    plain: float
    false: float

    def is_kept(self, studies: int, errors: float = 2) -> bool:
        """Whether the page's promise holds here, within so many standard errors of so many studies."""
        slack = errors * math.sqrt(0.05 * 0.95 / studies)
        return LOWEST - slack <= self.covered <= HIGHEST + slack and self.false <= MOST_FALSE + slack


def cells(studies: int, interaction: float, seed: int = 0) -> Iterator[Cell]:
    """Yield one cell for each number of seeds and each share of the seeds' variance; equal calls give equal cells."""
    for seeds in SEEDS:
        for share in SHARES:
            more = [] if interaction == 0.5 else [int(interaction * 10)]
            generator = np.random.default_rng([seeds, int(share * 10), *more, *([seed] if seed else [])])
            found = [simulated(generator, seeds, 0.0, share, interaction=interaction) for _ in range(studies)]
            # A margin of nothing: no study can call identical arms equivalent, so every other word is a false one.
            words = [judge(one, 1e-6, greater_is_better=True).word for one in found]
            yield Cell(
                seeds,
                share,
                interaction,
                covered=float(np.mean([0.0 in one.interval(0.95) for one in found])),
                plain=float(np.mean([0.0 in one.percentile for one in found])),
                false=float(np.mean([word in ("better", "worse") for word in words])),
            )


def arithmetic(seeds: int, draws: int) -> dict[tuple[float, float], float]:
    """Return (interaction, share) -> coverage of the 95 % interval where the items' variances are known exactly.

    No bootstrap, so that many more draws can be had than `cells` has studies.
    """
    found = {}
    for interaction in INTERACTIONS:
        for share in FINE_SHARES:
            generator = np.random.default_rng([seeds, int(100 * interaction), int(100 * share)])
            common, shared = (1 - interaction) / ITEMS, interaction / (seeds * ITEMS)
            seed_variance = (common + shared) * share / (1 - share) + shared
            differences = generator.normal(0, math.sqrt(seed_variance + common), draws)
            parts = seed_variance * generator.chisquare(seeds - 1, draws) / (seeds - 1)
            item_part = common + shared
            halves = [half_width(part, item_part, shared, seeds, ITEMS, 0.95) for part in parts.tolist()]
            found[interaction, share] = float(np.mean(np.abs(differences) <= np.array(halves)))
    return found
