"""Training: data, models, tasks, and the transformers Trainer underneath. Importing this package imports none of them.

`fit`, `evaluate` and `logits` live in `surgery.training.fit`: a name that is a module and a function would be either.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from surgery.training.data import LoadedData, load_data
    from surgery.training.evaluation import Evaluation
    from surgery.training.models import LoadedModel, load_model, resolve
    from surgery.training.result import FitResult, Point, Progress, StepTimes
    from surgery.training.run import RunResult, train
    from surgery.training.session import Session, prepare

__all__ = [
    "Evaluation",
    "FitResult",
    "LoadedData",
    "LoadedModel",
    "Point",
    "Progress",
    "RunResult",
    "Session",
    "StepTimes",
    "load_data",
    "load_model",
    "prepare",
    "resolve",
    "train",
]

_HOMES = {
    "Evaluation": "evaluation",
    "FitResult": "result",
    "LoadedData": "data",
    "LoadedModel": "models",
    "Point": "result",
    "Progress": "result",
    "RunResult": "run",
    "Session": "session",
    "StepTimes": "result",
    "load_data": "data",
    "load_model": "models",
    "prepare": "session",
    "resolve": "models",
    "train": "run",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
