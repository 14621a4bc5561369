"""The hooks a plugin may implement. Each is called once; each returns values and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pluggy

from surgery.adapter import AdapterType
from surgery.architecture import Architecture
from surgery.registry.contracts import DataSource, ModelSource, TaskType

__all__ = ["PROJECT", "hookimpl", "hookspec"]

PROJECT = "surgery"
"""The pluggy project name and the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a plugin's hook implementation: `@surgery.hookimpl`."""


@hookspec
def surgery_adapters() -> Sequence[AdapterType[Any]]:
    """Return the adapter types that the plugin supplies."""
    raise NotImplementedError


@hookspec
def surgery_architectures() -> Sequence[Architecture]:
    """Return the architectures that the plugin supplies."""
    raise NotImplementedError


@hookspec
def surgery_models() -> Sequence[ModelSource]:
    """Return the named sources of models that the plugin supplies."""
    raise NotImplementedError


@hookspec
def surgery_datasets() -> Sequence[DataSource]:
    """Return the named data sets that the plugin supplies."""
    raise NotImplementedError


@hookspec
def surgery_tasks() -> Sequence[TaskType[Any]]:
    """Return the kinds of task that the plugin supplies."""
    raise NotImplementedError
