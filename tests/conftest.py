"""What every test may use: offline always, and real data and models where they are to be had."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# One thread for each test process: two processes with two threads each on two cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_BESIDE = Path(__file__).parents[2] / "shared"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes minutes, unless it is asked for by `-m` or SURGERY_SLOW=1."""
    if config.option.markexpr or os.environ.get("SURGERY_SLOW", "0") not in ("", "0"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    items[:] = [item for item in items if not item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)


def _folder(variable: str, name: str) -> Path:
    folder = Path(os.environ.get(variable, _BESIDE / name))
    if not folder.is_dir():
        pytest.skip(f"set {variable} to the folder of real {name} (one sub-folder each, with a README)")
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that holds sst2/, chnsenticorp/, lm_wikitext2/ and so on."""
    return _folder("SURGERY_TEST_DATA", "data")


@pytest.fixture(scope="session")
def real_models() -> Path:
    """The folder that holds small pretrained decoders."""
    return _folder("SURGERY_TEST_MODELS", "models")
