"""What is installed: adapters, architectures, models, data sets and tasks, each with where it came from."""

from surgery.registry.asked import asked
from surgery.registry.checks import check_adapter_type
from surgery.registry.contracts import DataSource, ModelSource, Rows, TaskType
from surgery.registry.generation import Generation
from surgery.registry.hooks import hookimpl
from surgery.registry.load import load_registry
from surgery.registry.registry import Provenance, Registered, Registry
from surgery.registry.specs import load_spec
from surgery.registry.twins import Twin, Twins

__all__ = [
    "DataSource",
    "Generation",
    "ModelSource",
    "Provenance",
    "Registered",
    "Registry",
    "Rows",
    "TaskType",
    "Twin",
    "Twins",
    "asked",
    "check_adapter_type",
    "hookimpl",
    "load_registry",
    "load_spec",
]
