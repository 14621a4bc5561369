"""The one mutator of a model: operate, merge, unmerge, disable, undo, save and load, each with its inverse."""

from surgery.operation.merge import MergeRecord
from surgery.operation.operate import load_adapter, operate
from surgery.operation.operation import Operation

__all__ = ["MergeRecord", "Operation", "load_adapter", "operate"]
