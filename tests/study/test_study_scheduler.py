"""Both engines keep the same promise: what is finished is handed over, what fails is named."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from surgery.engine.scheduler import InProcess, LocalPool, Scheduler, local_engine, width
from surgery.errors import Problem, SurgeryError, TrainingError


@dataclass(frozen=True)
class Job:
    number: int

    @property
    def title(self) -> str:
        return f"job {self.number}"


def square(job: Job) -> int:
    return job.number**2


def trip(job: Job) -> int:
    if job.number == 2:
        raise ValueError("tripped")
    time.sleep(0.1)
    return job.number


def trip_in_our_words(job: Job) -> int:
    raise TrainingError.of([Problem("one", "here", "do this"), Problem("two")])


def die(job: Job) -> int:
    os._exit(3)


def interrupt_driver(job: Job) -> int:
    if job.number == 1:
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(30)
    return job.number


@pytest.fixture(params=["in-process", "pool"])
def engine(request: pytest.FixtureRequest) -> Iterator[Scheduler]:
    chosen: Scheduler = InProcess() if request.param == "in-process" else LocalPool(2)
    yield chosen
    chosen.close()


def test_every_job_comes_back_with_its_result(engine: Scheduler) -> None:
    jobs = [Job(number) for number in range(7)]
    assert sorted((job.number, result) for job, result in engine.map(square, jobs)) == [(n, n * n) for n in range(7)]
    assert list(engine.map(square, [])) == []
    assert len(list(engine.map(square, jobs[:1]))) == 1


def test_a_failure_names_its_job_and_begins_nothing_else(engine: Scheduler) -> None:
    finished = []

    def run() -> None:
        for job, _ in engine.map(trip, [Job(number) for number in range(9)]):
            finished.append(job.number)

    with pytest.raises(TrainingError, match="ValueError: tripped") as caught:
        run()
    assert caught.value.where == "job 2"
    assert {0, 1} <= set(finished) <= {0, 1, 3}


def test_an_error_of_our_own_keeps_its_kind_and_its_words(engine: Scheduler) -> None:
    with pytest.raises(SurgeryError) as caught:
        list(engine.map(trip_in_our_words, [Job(5)]))
    assert type(caught.value) is TrainingError
    assert [str(problem) for problem in caught.value.problems] == ["job 5: here: one\n  hint: do this", "job 5: two"]


def test_a_worker_that_dies_is_told() -> None:
    engine = LocalPool(2)
    try:
        with pytest.raises(TrainingError, match="died without a word") as caught:
            list(engine.map(die, [Job(1), Job(2), Job(3)]))
    finally:
        engine.close()
    assert "job 1" in caught.value.where


def test_ctrl_c_stops_at_once() -> None:
    engine = LocalPool(2)
    start = time.monotonic()
    # A shell's background jobs ignore SIGINT, and what they start inherits that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(engine.map(interrupt_driver, [Job(0), Job(1), Job(2)]))
    finally:
        signal.signal(signal.SIGINT, before)
    engine.close()
    assert time.monotonic() - start < 20


def test_width_is_bounded_by_jobs_cores_and_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("surgery.engine.scheduler._free_bytes", lambda: 10 << 30)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert width(3, 1 << 30) == 3
    assert width(100, 1 << 20) == 8
    assert width(100, 2 << 30) == 4
    assert width(100, 1 << 40) == 1
    assert isinstance(local_engine(100, None, 1 << 40), InProcess)
    assert isinstance(local_engine(100, 3, 1 << 40), LocalPool)
