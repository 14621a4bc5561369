"""What a run writes down about itself, so that it can be repeated and so that another one is not taken for it."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from surgery.registry import Registry
from surgery.training.session import Session
from surgery.training.world import processes

__all__ = ["differences", "identity", "run_record"]

_PACKAGES = ("model-surgery", "torch", "transformers", "accelerate", "tokenizers", "safetensors", "datasets", "numpy")


def identity(session: Session) -> dict[str, Any]:
    """Return what decides a run's result: a resumed run must agree in all of it."""
    return {"spec": session.spec.canonical_json(), "seed": session.seed, **session.hashes}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the keys in which two identities differ."""
    return sorted(key for key in {*before, *now} if before.get(key) != now.get(key))


def run_record(session: Session, data: Any, model: str | None) -> dict[str, Any]:
    """Return `run.json`."""
    return {
        "identity": identity(session),
        "name": session.spec.name,
        "data": data,
        "model": model,
        "source": session.source,
        "labels": list(session.labels),
        "examples": {split: len(examples) for split, examples in session.examples.items()},
        "new_parameters": list(session.new_parameters),
        "plan": session.plan.hash,
        "notes": list(session.notes),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "plugins": _plugins(session.registry),
        "machine": _machine(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _plugins(registry: Registry) -> list[dict[str, str]]:
    return [
        {"plugin": plugin.plugin, "distribution": plugin.distribution, "version": plugin.version}
        for plugin in sorted(registry.plugins, key=lambda plugin: plugin.plugin)
    ]


def _machine() -> dict[str, Any]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "processes": processes(),
    }
