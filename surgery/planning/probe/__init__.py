"""Roles measured: one row of a weight's output is moved in a small model built alike, and what moves then tells."""

from surgery.planning.probe.conclude import Finding
from surgery.planning.probe.measure import measure

__all__ = ["Finding", "measure"]
