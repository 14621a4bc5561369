"""Where independent jobs run: in this process, in processes of this machine, or on a Ray cluster.

Studies send their cells, and merges of checkpoints their shards, through the one interface, `Scheduler`.
"""

from __future__ import annotations

from surgery.engine.cluster import RayCluster
from surgery.engine.scheduler import InProcess, LocalPool, Scheduler, Titled, cores, local_engine, named, width

__all__ = ["InProcess", "LocalPool", "RayCluster", "Scheduler", "Titled", "cores", "local_engine", "named", "width"]
