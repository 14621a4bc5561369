"""Reports: one HTML file that a reader decides from in a minute, built from the files of a study alone."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from surgery.report.build import REPORT, build_across, build_report, compare_and_report

__all__ = ["REPORT", "build_across", "build_report", "compare_and_report"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.build"), name)
