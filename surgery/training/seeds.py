"""Randomness by name: every draw depends on the seed and on what it is for, never on what was drawn before."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import torch

__all__ = ["generator", "named_seed", "preserved_randomness"]


def named_seed(*purpose: object) -> int:
    """Return 63 bits that depend on `purpose` only: the same in every process and on every machine."""
    text = "\0".join(str(part) for part in purpose)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*purpose: object) -> torch.Generator:
    """Return a CPU generator for one purpose, such as `generator(seed, "head", name)`."""
    return torch.Generator().manual_seed(named_seed(*purpose))


@contextlib.contextmanager
def preserved_randomness() -> Iterator[None]:
    """Give the global generators back as they were: loading and training must not move the caller's."""
    import numpy as np

    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - others seed it
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002 - others seed it
