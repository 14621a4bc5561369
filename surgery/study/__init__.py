"""Studies: several ways to adapt one model, compared on equal terms, with a careful word for each pair."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from surgery.study.spec import ArmSpec, Forgetting, StudySpec, load_study
    from surgery.study.study import Comparison, compare, read_comparison
    from surgery.study.summary import Row, Summary
    from surgery.study.verdict import Verdict

__all__ = [
    "ArmSpec",
    "Comparison",
    "Forgetting",
    "Row",
    "StudySpec",
    "Summary",
    "Verdict",
    "compare",
    "load_study",
    "read_comparison",
]

_HOMES = {
    "ArmSpec": "spec",
    "Comparison": "study",
    "Forgetting": "spec",
    "Row": "summary",
    "StudySpec": "spec",
    "Summary": "summary",
    "Verdict": "verdict",
    "compare": "study",
    "load_study": "spec",
    "read_comparison": "study",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
