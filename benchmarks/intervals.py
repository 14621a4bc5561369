"""How often a study's interval holds the truth, and how often identical arms are called different.

    python benchmarks/intervals.py --studies 2000 --draws 20000

Every study is made up (tests/study/simulated.py says how); interval and verdict are the real ones. The tables are those
of docs/studies/statistics.md. Leaves with 1 where a row of the first one is outside of what the page promises by more
than two standard errors of so many studies.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "study"))

from simulated import HIGHEST, ITEMS, LOWEST, MOST_FALSE, SEEDS, arithmetic, cells


def main() -> int:
    """Print the tables; return the exit status."""
    parser = argparse.ArgumentParser(
        description="coverage of a study's intervals, and how often its verdicts are false"
    )
    parser.add_argument("--studies", type=int, default=2000, help="made-up studies in each cell")
    parser.add_argument(
        "--draws", type=int, default=0, help="also: draws in each cell of the fine grid, bootstrap left out"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the tables' draws; 0 is that of the page")
    given = parser.parse_args()
    studies = given.studies
    broken = []
    for interaction in (0.5, 0.1, 0.9):
        print(
            f"\n{studies:,} studies in each row, {ITEMS} items, {interaction:.0%} of an item's noise is each seed's own\n"
        )
        print(
            "| seeds | seeds' share of the variance | 95 % interval covers | plain bootstrap covers | better or worse |"
        )
        print("|---|---|---|---|---|")
        for cell in cells(studies, interaction, given.seed):
            row = (cell.covered, cell.plain, cell.false)
            print(f"| {cell.seeds} | {cell.share:.0%} | " + " | ".join(f"{100 * value:.1f} %" for value in row) + " |")
            if interaction == 0.5 and not cell.is_kept(studies):
                broken.append(cell)
    for seeds in SEEDS if given.draws else ():
        found = arithmetic(seeds, given.draws)
        lowest, highest = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
        print(
            f"\n{seeds} seeds, {len(found)} cells of {given.draws:,} draws: {found[lowest]:.1%} (interaction, seeds' share"
            f" {lowest}) to {found[highest]:.1%} {highest}; {sum(value > HIGHEST for value in found.values())} above {HIGHEST:.0%}"
            f"; (0.9, 0.9): {found[0.9, 0.9]:.1%}"
        )
    for cell in broken:
        print(f"outside of {LOWEST:.0%}-{HIGHEST:.0%}, or more than {MOST_FALSE:.0%} false: {cell}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
