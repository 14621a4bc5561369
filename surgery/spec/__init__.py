"""The spec: what a user writes, checked word by word, with the place of every mistake. It knows nothing of torch."""

from surgery.spec._catalog import Catalog
from surgery.spec._defaults import default_problems
from surgery.spec._document import Document, load_document
from surgery.spec._layers import layer_indices
from surgery.spec._load import load_spec, parse_spec, validate_document
from surgery.spec._pattern import Pattern, compile_pattern
from surgery.spec._rule import Exclude, Rule
from surgery.spec._schema import json_schema
from surgery.spec._spec import DataSpec, ModelRef, Spec, TaskSpec
from surgery.spec._strict import Options, StrictModel
from surgery.spec._training import ParameterGroup, TrainingSpec

__all__ = [
    "Catalog",
    "DataSpec",
    "Document",
    "Exclude",
    "ModelRef",
    "Options",
    "ParameterGroup",
    "Pattern",
    "Rule",
    "Spec",
    "StrictModel",
    "TaskSpec",
    "TrainingSpec",
    "compile_pattern",
    "default_problems",
    "json_schema",
    "layer_indices",
    "load_document",
    "load_spec",
    "parse_spec",
    "validate_document",
]
