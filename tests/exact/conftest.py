"""Tests of exact arithmetic import their oracle and strategies by name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from surgery.exact import loops

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module", autouse=True, params=["plain", "compiled"])
def arithmetic(request: pytest.FixtureRequest) -> Iterator[str]:
    """Everything that is said of merging and of residues holds with compiled loops, and without."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "plain":
            patch.setattr(loops, "_compiled", lambda: None)
        else:
            pytest.importorskip("numba", reason="numba is not installed: pip install '.[compiled]'")
            patch.setattr(loops, "_WORTH", 0)
        yield request.param
