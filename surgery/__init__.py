"""Adapt pretrained transformers by a declarative spec, and take every change back bit for bit.

The names below are the public door. They are imported when first used, so `import surgery` costs almost nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from surgery.adapter import Adapter as Adapter
    from surgery.adapter import AdapterType as AdapterType
    from surgery.adapter.factors import Factors as Factors
    from surgery.adapter.parts import add_update as add_update
    from surgery.adapter.parts import spread_parts as spread_parts
    from surgery.adapter.replacement import ReplacementAdapter as ReplacementAdapter
    from surgery.adapter.work import Work as Work
    from surgery.architecture import Architecture as Architecture
    from surgery.architecture import Part as Part
    from surgery.architecture import Site as Site
    from surgery.architecture import Slice as Slice
    from surgery.architecture import When as When
    from surgery.checkpoint.diff import diff_checkpoints as diff_checkpoints
    from surgery.checkpoint.merge import merge_checkpoint as merge_checkpoint
    from surgery.checkpoint.merge import plan_merge as plan_merge
    from surgery.checkpoint.merge import unmerge_checkpoint as unmerge_checkpoint
    from surgery.checkpoint.verify import verify_checkpoint as verify_checkpoint
    from surgery.errors import SpecError as SpecError
    from surgery.errors import SurgeryError as SurgeryError
    from surgery.operation import MergeRecord as MergeRecord
    from surgery.operation import Operation as Operation
    from surgery.operation import load_adapter as load_adapter
    from surgery.operation import operate as operate
    from surgery.planning import Edit as Edit
    from surgery.planning import Plan as Plan
    from surgery.planning import plan as plan
    from surgery.planning import sites as sites
    from surgery.planning.headers import read_config as read_config
    from surgery.registry import DataSource as DataSource
    from surgery.registry import Generation as Generation
    from surgery.registry import ModelSource as ModelSource
    from surgery.registry import Registry as Registry
    from surgery.registry import Rows as Rows
    from surgery.registry import TaskType as TaskType
    from surgery.registry import Twin as Twin
    from surgery.registry import Twins as Twins
    from surgery.registry import hookimpl as hookimpl
    from surgery.registry import load_registry as load_registry
    from surgery.registry import load_spec as load_spec
    from surgery.report import compare_and_report as compare  # noqa: F401 - the door calls it compare
    from surgery.spec import Options as Options
    from surgery.spec import Rule as Rule
    from surgery.spec import Spec as Spec
    from surgery.spectra.extraction import extract as extract
    from surgery.training import train as train

_DOOR = {
    "Adapter": "surgery.adapter",
    "AdapterType": "surgery.adapter",
    "Architecture": "surgery.architecture",
    "DataSource": "surgery.registry",
    "Edit": "surgery.planning",
    "Factors": "surgery.adapter.factors",
    "Generation": "surgery.registry",
    "MergeRecord": "surgery.operation",
    "ModelSource": "surgery.registry",
    "Operation": "surgery.operation",
    "Options": "surgery.spec",
    "Part": "surgery.architecture",
    "Plan": "surgery.planning",
    "Registry": "surgery.registry",
    "ReplacementAdapter": "surgery.adapter.replacement",
    "Rows": "surgery.registry",
    "Rule": "surgery.spec",
    "Site": "surgery.architecture",
    "Slice": "surgery.architecture",
    "Spec": "surgery.spec",
    "SpecError": "surgery.errors",
    "SurgeryError": "surgery.errors",
    "TaskType": "surgery.registry",
    "Twin": "surgery.registry",
    "Twins": "surgery.registry",
    "When": "surgery.architecture",
    "Work": "surgery.adapter.work",
    "add_update": "surgery.adapter.parts",
    "compare": "surgery.report:compare_and_report",
    "diff_checkpoints": "surgery.checkpoint.diff",
    "extract": "surgery.spectra.extraction",
    "hookimpl": "surgery.registry",
    "load_adapter": "surgery.operation",
    "load_registry": "surgery.registry",
    "load_spec": "surgery.registry",
    "merge_checkpoint": "surgery.checkpoint.merge",
    "operate": "surgery.operation",
    "plan": "surgery.planning",
    "plan_merge": "surgery.checkpoint.merge",
    "read_config": "surgery.planning.headers",
    "sites": "surgery.planning",
    "spread_parts": "surgery.adapter.parts",
    "train": "surgery.training",
    "unmerge_checkpoint": "surgery.checkpoint.merge",
    "verify_checkpoint": "surgery.checkpoint.verify",
}

__all__ = [*_DOOR]  # noqa: PLE0604 - the keys are strings
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name in _DOOR:
        module, _, inside = _DOOR[name].partition(":")
        value = getattr(import_module(module), inside or name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'surgery' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_DOOR})
