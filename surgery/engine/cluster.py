"""Jobs on a Ray cluster. Ray is an optional extra, imported when it is asked for."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from surgery.engine.scheduler import JobT, ResultT, named
from surgery.errors import StateError, SurgeryError

__all__ = ["RayCluster"]

_RETRIES = 3
"""A job whose worker or machine is lost is run again, so often."""


class RayCluster:
    """Runs jobs on Ray: on the cluster that RAY_ADDRESS names, or on this machine with `workers` processes.

    Jobs travel by pickle, and name files by path: what they read and write must lie on a disk that all machines share.

    Raises:
        StateError: Ray is not installed, or its cluster cannot be reached.
    """

    def __init__(self, workers: int | None = None) -> None:
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError:
            raise StateError(
                "Ray is not installed", "--engine ray", "pip install 'model-surgery[ray]', or leave --engine out"
            ) from None
        self._is_mine = not self._ray.is_initialized()
        if self._is_mine:
            address = os.environ.get("RAY_ADDRESS")
            own = {"address": address} if address else {"num_cpus": workers, "include_dashboard": False}
            # Ray's own hook would build a copy of the project for each worker where a project manager runs this.
            try:
                self._ray.init(**own, log_to_driver=False, configure_logging=False)
            except (ConnectionError, RuntimeError, OSError, TimeoutError, ValueError) as error:
                hint = "start it, or unset RAY_ADDRESS to use this machine alone"
                raise StateError(f"Ray does not start: {error}", address or "this machine", hint) from error
        self.workers = workers or max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def map(self, work: Callable[[JobT], ResultT], jobs: Sequence[JobT]) -> Iterator[tuple[JobT, ResultT]]:
        """See `Scheduler.map`."""
        remote = self._ray.remote(num_cpus=1, max_retries=_RETRIES)(_by_one_thread)
        waiting, running = list(jobs)[::-1], dict[Any, JobT]()
        failure: SurgeryError | None = None
        try:
            while running or (waiting and failure is None):
                while waiting and failure is None and len(running) < self.workers:
                    job = waiting.pop()
                    running[remote.remote(work, job)] = job
                ready, _ = self._ray.wait(list(running), num_returns=1)
                for one in ready:
                    job = running.pop(one)
                    try:
                        result = self._ray.get(one)
                    except Exception as error:
                        cause = getattr(error, "cause", None)
                        failure = failure or named(job, cause if isinstance(cause, Exception) else error)
                    else:
                        yield job, result
        except BaseException:
            for one in running:
                self._ray.cancel(one, force=True)
            raise
        if failure is not None:
            raise failure

    def close(self) -> None:
        """See `Scheduler.close`."""
        if self._is_mine:
            self._ray.shutdown()


def _by_one_thread(work: Callable[[JobT], ResultT], job: JobT) -> ResultT:
    import torch

    torch.set_num_threads(1)
    return work(job)
