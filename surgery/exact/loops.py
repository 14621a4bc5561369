"""The compiled loops, where numba is installed and a block is worth it; the same bits come out without."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import threading
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from surgery.exact.rounding import integers

__all__ = ["compiled_for", "unsigned"]

_WORTH = 1 << 18
"""Elements of a block below which importing numba takes longer than it saves."""

_DTYPES = frozenset({torch.bfloat16, torch.float32})
_GUARD = threading.Lock()


def compiled_for(tensor: torch.Tensor, part: str = "") -> ModuleType | None:
    """Return `surgery.exact.compiled`, or its `part`, if it can and should work on a tensor of this dtype and size."""
    found = _compiled() if tensor.numel() >= max(1, _WORTH) and tensor.dtype in _DTYPES else None
    if found is None or not part:
        return found
    with _GUARD:
        return importlib.import_module(f"surgery.exact.compiled_{part}")


def unsigned(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Return the patterns of a contiguous tensor of the shape it has, as the compiled loops take them: a view."""
    return integers(tensor).numpy().view({2: np.uint16, 4: np.uint32}[tensor.element_size()])


def _compiled() -> ModuleType | None:
    # Threads that import and compile at once do it twice, or worse.
    with _GUARD:
        return _imported()


@functools.cache
def _imported() -> ModuleType | None:
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        numba = importlib.import_module("numba")
        # Uncompiled, these loops take a hundred times as long as numpy.
        return None if numba.config.DISABLE_JIT else importlib.import_module("surgery.exact.compiled")
    except Exception as error:  # another numpy, a module that is called like one of numba's own, ...
        what = f"numba is installed and cannot be imported ({type(error).__name__}: {error})"
        warnings.warn(f"{what}: merging goes on without, the bits are the same", RuntimeWarning, stacklevel=2)
        return None
