"""The tiny models live beside the contract tests; torch runs on one thread."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small products on a machine that is shared: waiting for a second thread costs up to fifty times the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
