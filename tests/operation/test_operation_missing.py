"""A checkpoint says which plugins it needs, and loading it without them says which distributions to install."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from operating import LORA, REGISTRY, operated, unchanged

from surgery import load_adapter
from surgery.errors import PluginError
from surgery.testing import ToyModel


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    with operated(ToyModel(), {"role": r"attention\..*", **LORA}) as op:
        op.save(tmp_path / "saved")
    return tmp_path / "saved"


def test_without_its_architecture_the_distribution_is_named(saved: Path) -> None:
    model = ToyModel()
    with unchanged(model), pytest.raises(PluginError) as caught:
        load_adapter(model, saved, registry=replace(REGISTRY, architectures={}))
    assert caught.value.what == "the architecture 'surgery-toy' is not installed; it came from tests"
    assert caught.value.where == str(saved)
    assert caught.value.hint.startswith("install tests, or name its plugin with --plugin")


def test_everything_that_is_missing_is_told_at_once(saved: Path) -> None:
    path = saved / "adapter.json"
    config = json.loads(path.read_text("utf-8"))
    config["plugins"] = {"dora": {"distribution": "acme-dora", "version": "2.0"}, "vera": None}
    config["architecture"] = "acme-net (acme-arch 0.3)"
    path.write_text(json.dumps(config), "utf-8")
    with pytest.raises(PluginError) as caught:
        load_adapter(ToyModel(), saved, registry=REGISTRY)
    assert [problem.what for problem in caught.value.problems] == [
        "the adapter type 'dora' is not installed; it came from acme-dora 2.0",
        "the adapter type 'vera' is not installed; it came from an unknown distribution",
        "the architecture 'acme-net' is not installed; it came from acme-arch 0.3",
    ]
    assert [problem.hint.partition(",")[0] for problem in caught.value.problems] == [
        "install acme-dora 2.0",
        "install its distribution",
        "install acme-arch 0.3",
    ]
