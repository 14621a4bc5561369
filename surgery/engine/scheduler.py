"""Running independent jobs: one interface, so that a process pool and a cluster are interchangeable."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from surgery.errors import Problem, SurgeryError, TrainingError

__all__ = [
    "InProcess",
    "JobT",
    "LocalPool",
    "ResultT",
    "Scheduler",
    "Titled",
    "cores",
    "local_engine",
    "named",
    "one_thread",
    "width",
]


class Titled(Protocol):
    """A job that can say what it is."""

    @property
    def title(self) -> str:
        """How progress and errors call the job."""
        ...


JobT = TypeVar("JobT", bound=Titled)
ResultT = TypeVar("ResultT")


class Scheduler(Protocol):
    """What studies and merges need of an engine."""

    def map(self, work: Callable[[JobT], ResultT], jobs: Sequence[JobT]) -> Iterator[tuple[JobT, ResultT]]:
        """Yield each job with its result, in whatever order they finish.

        When a job fails, the jobs already running are still waited for and yielded, no other is begun, and then one
        `SurgeryError` is raised that names the job.
        """
        ...

    def close(self) -> None:
        """Let go of what the engine holds. Nothing may be running."""
        ...


class InProcess:
    """Runs jobs one after the other in this process, with one torch thread, as a worker of the pool would."""

    def map(self, work: Callable[[JobT], ResultT], jobs: Sequence[JobT]) -> Iterator[tuple[JobT, ResultT]]:
        """See `Scheduler.map`."""
        for job in jobs:
            with one_thread():
                try:
                    result = work(job)
                except Exception as error:  # whatever a plugin raises, the user needs to know in which cell
                    raise named(job, error) from error
            yield job, result

    def close(self) -> None:
        """See `Scheduler.close`."""


class LocalPool:
    """Runs jobs in `workers` fresh processes of this machine, with one torch thread each."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def map(self, work: Callable[[JobT], ResultT], jobs: Sequence[JobT]) -> Iterator[tuple[JobT, ResultT]]:
        """See `Scheduler.map`."""
        if self._pool is None:
            # spawn: a forked copy of a process that has used torch threads may deadlock. The processes stay for the
            # next call, because importing everything takes longer than many a cell.
            self._pool = ProcessPoolExecutor(self.workers, multiprocessing.get_context("spawn"), _begin_worker)
        try:
            yield from self._drained(self._pool, work, list(jobs))
        except SurgeryError:
            raise
        except BaseException:
            # Ctrl-C, or the caller gave up: what runs now is lost, what is finished has been yielded.
            _stop(self._pool)
            self.close()
            raise

    def close(self) -> None:
        """See `Scheduler.close`."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _drained(
        self, pool: ProcessPoolExecutor, work: Callable[[JobT], ResultT], jobs: list[JobT]
    ) -> Iterator[tuple[JobT, ResultT]]:
        waiting = jobs[::-1]
        running: dict[Future[ResultT], JobT] = {}
        failure: SurgeryError | None = None
        while running or (waiting and failure is None):
            # Only as many as there are workers: after a failure nothing else must begin.
            while waiting and failure is None and len(running) < self.workers:
                job = waiting.pop()
                try:
                    running[pool.submit(work, job)] = job
                except BrokenProcessPool as error:
                    raise _died([job.title, *(other.title for other in running.values())]) from error
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool as error:
                    lost = [job.title, *(other.title for other in running.values())]
                    raise _died(lost) from error
                except Exception as error:
                    failure = failure or named(job, error)
                else:
                    yield job, result
        if failure is not None:
            raise failure


def local_engine(jobs: int, workers: int | None, bytes_per_job: int) -> Scheduler:
    """Return the engine for this machine: a pool, or this very process where one worker is all there is room for.

    Args:
        jobs: how many there are.
        workers: how many processes to use; None chooses by cores and memory.
        bytes_per_job: memory that one job is expected to need.
    """
    chosen = width(jobs, bytes_per_job) if workers is None else workers
    return LocalPool(chosen) if chosen > 1 else InProcess()


def width(jobs: int, bytes_per_job: int) -> int:
    """Return how many processes fit: at most the jobs, the cores this process may use, and 80 % of the free memory."""
    fitting = int(0.8 * _free_bytes() // max(bytes_per_job, 1))
    return max(1, min(jobs, cores(), fitting))


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _free_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 4 << 30
    try:
        # In a container the group's own limit is the one that kills.
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):
        return free
    return min(free, limit - used)


def named(job: Titled, error: Exception) -> SurgeryError:
    """Return `error` as one that says in which job it happened."""
    if isinstance(error, SurgeryError):
        problems = [
            Problem(problem.what, f"{job.title}: {problem.where}" if problem.where else job.title, problem.hint)
            for problem in error.problems
        ]
        return type(error).of(problems)
    hint = "what is finished is kept; run the same command again after the repair"
    return TrainingError(f"{type(error).__name__}: {error}", job.title, hint)


def _died(titles: list[str]) -> TrainingError:
    return TrainingError(
        "a worker process died without a word; most often the system stopped it for want of memory",
        "; ".join(titles),
        "what is finished is kept; run the same command again, with fewer workers",
    )


def _stop(pool: ProcessPoolExecutor) -> None:
    # The pool has no public way to end workers that are busy, and a cell may take an hour.
    for process in list((getattr(pool, "_processes", None) or {}).values()):
        process.terminate()


def _begin_worker() -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Ctrl-C reaches the whole group; only the driver decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)


def _follow_parent() -> None:
    """End with the driver: a worker that outlives a killed driver would write beside its successor."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread inside the block: the order of sums, and so the bits, must not depend on the engine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
