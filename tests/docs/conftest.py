"""A folder in which the pages' blocks run: the repository's specs and scripts, and the models that pages name."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import ROOT

CLEARED = ("SURGERY_DEBUG", "SURGERY_DISABLE_PLUGIN_AUTOLOAD", "NO_COLOR", "FORCE_COLOR", "RANK")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`bert-base-uncased` is its configuration; `gpt2` is the small GPT-2 that the demo plugin carries."""
    from transformers import BertConfig

    for name in ("specs", "docs", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "gpt2").symlink_to(ROOT / "plugins" / "surgery_demo" / "gpt2")
    BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(tmp_path / "bert-base-uncased")
    for name in CLEARED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        # Modules that a page brought along must not meet those of another page.
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
