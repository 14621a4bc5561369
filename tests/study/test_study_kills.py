"""Studies that are killed, whole or in part, end with the results of one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from stub import Stub, text_registry
from synthetic import make_study

from surgery.engine.scheduler import InProcess, LocalPool
from surgery.errors import TrainingError
from surgery.study import Comparison, compare
from surgery.study.cells import Cell
from surgery.study.results import RESULTS, read_records, without_timings

KILLS = 10


@dataclass
class Dying(Stub):
    """A stub whose process is killed in one cell: the first `deaths` times that it is begun."""

    deaths: int = 1

    def __call__(self, cell: Cell) -> Any:
        if self.die_on in cell.title:
            marks = self.log.with_suffix(".deaths")
            before = marks.read_text().count("x") if marks.exists() else 0
            if before < self.deaths:
                with marks.open("a") as file:
                    file.write("x")
                time.sleep(0.2)  # so that the other worker has a cell in hand
                os.kill(os.getpid(), signal.SIGKILL)
        stub = Stub(self.log, self.seconds)
        return stub(cell)


def whole(folder: Path) -> Path:
    """Run the study undisturbed and return its folder."""
    stub = Stub(folder / "whole.log")
    with stub.installed():
        compare(make_study(3), folder / "whole", registry=text_registry(), engine=InProcess())
    return folder / "whole"


def plain(folder: Path) -> list[str]:
    """Return the bytes of every line, timings aside."""
    lines = (folder / RESULTS).read_text("utf-8").splitlines()
    return [json.dumps(without_timings(json.loads(line)), sort_keys=True) for line in lines]


def run_dying(folder: Path, stub: Dying, retries: int) -> Comparison:
    engine = LocalPool(2, retries)
    try:
        with stub.installed():
            return compare(make_study(3), folder, registry=text_registry(), engine=engine)
    finally:
        engine.close()


def test_a_killed_worker_costs_nothing_but_its_cells_again(tmp_path: Path) -> None:
    stub = Dying(tmp_path / "log", seconds=0.4, die_on="lora, seed 2")
    comparison = run_dying(tmp_path / "study", stub, retries=1)
    assert plain(comparison.folder) == plain(whole(tmp_path))
    assert comparison.note.startswith("a worker process died; run again: ")
    assert "lora, seed 2" in comparison.note
    again = {key for key in stub.begun() if stub.begun().count(key) > 1}
    assert len(again) <= 1  # the other worker's; the dying cell itself left no line before it died


def test_a_cell_that_kills_its_worker_every_time_is_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    stub = Dying(tmp_path / "log", seconds=0.05, die_on="lora, seed 2", deaths=2)
    with pytest.raises(TrainingError, match="a worker process died without a word") as caught:
        run_dying(tmp_path / "study", stub, retries=1)
    assert "lora, seed 2" in str(caught.value)
    kept, note = read_records(tmp_path / "study" / RESULTS)
    assert note == ""
    assert len(kept) >= 9  # the grids
    comparison = run_dying(tmp_path / "study", stub, retries=1)
    assert plain(comparison.folder) == plain(whole(tmp_path))
    assert kept.keys() <= read_records(comparison.folder / RESULTS)[0].keys()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ten_kills_at_random_moments(tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Kill the driver (and with it, because they follow it, the workers) ten times, at any moment of its life."""
    expected = plain(whole(tmp_path))
    folder, stub = tmp_path / "killed", Stub(tmp_path / "killed.log")
    drive = str(Path(__file__).parent / "drive.py")
    command = [sys.executable, drive, str(folder), str(stub.log), "0.15", str(workers)]
    moments = random.Random(workers)
    for kill in range(1, KILLS + 1):
        process = subprocess.Popen(command)
        begun = len(stub.begun())
        # Every third one while it starts or opens its files; the others while it works, in the middle of a cell or not.
        target = begun + moments.randint(1, 3) if kill % 3 else begun
        until = time.monotonic() + (60 if kill % 3 else moments.uniform(0.2, 3))
        while process.poll() is None and time.monotonic() < until and (target == begun or len(stub.begun()) < target):
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.2))
        is_over = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
        gone = seconds_until_gone(stub.processes())
        lines = (folder / RESULTS).read_bytes() if (folder / RESULTS).exists() else b""
        torn = bool(lines) and not lines.endswith(b"\n")
        with capsys.disabled():
            print(
                f"\nkill {kill:2}, {workers} worker(s): {lines.count(bytes([10])):2} results"
                f"{' and a torn line' if torn else ''}, {len(stub.begun()) - begun} cells begun,"
                f" workers gone after {gone:.2f} s{', it had ended' if is_over else ''}",
                end="",
            )
    subprocess.run(command, check=True, timeout=240)
    assert plain(folder) == expected
    with capsys.disabled():
        extra = len(stub.begun()) - len(expected)
        print(f"\n{len(expected)} results, equal byte for byte; {extra} cells were begun more than once", end="")
    assert extra <= KILLS * workers
    for name in ("curves.csv", "learning_rates.csv", "checks.csv"):
        assert (folder / "tables" / name).read_bytes() == (tmp_path / "whole" / "tables" / name).read_bytes()


def seconds_until_gone(processes: set[int], most: float = 10.0) -> float:
    """Return how long it takes until no worker is left: one that outlives its driver would write beside its successor."""
    start = time.monotonic()
    while time.monotonic() < start + most:
        if not any(is_alive(process) for process in processes):
            return time.monotonic() - start
        time.sleep(0.01)
    raise AssertionError("a worker outlives its driver")


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
