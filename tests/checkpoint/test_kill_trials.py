"""Kill -9 at random times; `python tests/checkpoint/kill_trials.py` prints the same as a table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# A process of its own does it: it forks, which one with the threads of other tests had better not.
RUN = (
    "import sys, json; sys.path.insert(0, sys.argv[1]); import kill_trials; from pathlib import Path; "
    "print(json.dumps(kill_trials.run(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), seed=int(sys.argv[5]))))"
)


def trials(protocol: str, count: int, where: Path, seed: int = 0) -> dict[str, int]:
    command = [sys.executable, "-c", RUN, str(HERE), protocol, str(count), str(where), str(seed)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("protocol", ["commit, replace", "commit, new", "patch in place"])
def test_a_few_random_kills(protocol: str, tmp_path: Path) -> None:
    counts = trials(protocol, 30, tmp_path)
    assert set(counts) == {"in the middle"}
    assert counts["in the middle"] > 15


def test_the_trial_can_tell(quick_path: Path) -> None:
    counts = trials("rename each", 30, quick_path)
    assert counts["mixed"]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["commit, replace", "commit, new", "patch in place"])
def test_a_thousand_random_kills(protocol: str, tmp_path: Path) -> None:
    counts = trials(protocol, 1000, tmp_path, seed=1)
    assert set(counts) == {"in the middle"}
    assert counts["in the middle"] > 500
