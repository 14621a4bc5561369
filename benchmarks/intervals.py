"""How often a study's interval holds the truth, and how often identical arms are called different.

    python benchmarks/intervals.py --studies 2000

Every study is made up: the difference of two arms on item i with seed s is ``delta + a[s] + b[i] + e[s, i]``, all
normal, of known variances; then come the study's own bootstrap, interval and verdict. The tables are those of
docs/studies/statistics.md. Leaves with 1 where a row of the first one is outside of what the page promises by more than
two standard errors of so many studies.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from surgery.study.resample import resampled_ratios
from surgery.study.statistics import Paired, paired
from surgery.study.verdict import judge

ITEMS = 150
RESAMPLES = 300
SEEDS = (3, 5, 10)
SHARES = (0.0, 0.5, 0.9)
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

    def is_kept(self, studies: int) -> bool:
        """Whether the page's promise holds here, as far as so many studies can tell."""
        slack = 2 * math.sqrt(0.05 * 0.95 / studies)
        return LOWEST - slack <= self.covered <= HIGHEST + slack and self.false <= MOST_FALSE + slack


def cells(studies: int, interaction: float) -> Iterator[Cell]:
    """Yield one cell for each number of seeds and each share of the seeds' variance; equal calls give equal cells."""
    for seeds in SEEDS:
        for share in SHARES:
            more = [] if interaction == 0.5 else [int(interaction * 10)]
            generator = np.random.default_rng([seeds, int(share * 10), *more])
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


def main() -> int:
    """Print the tables; return the exit status."""
    parser = argparse.ArgumentParser(
        description="coverage of a study's intervals, and how often its verdicts are false"
    )
    parser.add_argument("--studies", type=int, default=2000, help="made-up studies in each cell")
    studies = parser.parse_args().studies
    broken = []
    for interaction in (0.5, 0.1, 0.9):
        print(
            f"\n{studies:,} studies in each row, {ITEMS} items, {interaction:.0%} of an item's noise is each seed's own\n"
        )
        print(
            "| seeds | seeds' share of the variance | 95 % interval covers | plain bootstrap covers | better or worse |"
        )
        print("|---|---|---|---|---|")
        for cell in cells(studies, interaction):
            row = (cell.covered, cell.plain, cell.false)
            print(f"| {cell.seeds} | {cell.share:.0%} | " + " | ".join(f"{100 * value:.1f} %" for value in row) + " |")
            if interaction == 0.5 and not cell.is_kept(studies):
                broken.append(cell)
    for cell in broken:
        print(f"outside of {LOWEST:.0%}-{HIGHEST:.0%}, or more than {MOST_FALSE:.0%} false: {cell}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
