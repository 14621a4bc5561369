"""What is in the wheel: the packages, their data, and nothing else."""

from __future__ import annotations

import email
import zipfile
from pathlib import Path

import pytest

from surgery import __version__


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()


def test_top_level(names: list[str]) -> None:
    top = {name.partition("/")[0] for name in names}
    info = f"model_surgery-{__version__}.dist-info"
    assert {"surgery", "surgery_lora", "surgery_bert", info} <= top
    assert {name for name in top if name != "surgery" and not name.startswith("surgery_")} == {info}


def test_every_plugin_is_a_package(names: list[str]) -> None:
    for top in {name.partition("/")[0] for name in names if not name.startswith("model_surgery-")}:
        assert f"{top}/__init__.py" in names


def test_data_files(names: list[str]) -> None:
    for name in (
        "surgery/py.typed",
        "surgery/report/templates/report.html",
        "surgery/report/templates/style.css",
        "surgery_demo/gpt2/model.safetensors",
        "surgery_demo/gpt2/config.json",
        "surgery_demo/gpt2/tokenizer.json",
        "surgery_demo/gpt2/CARD.md",
    ):
        assert name in names
    assert not [
        name for name in names if name.endswith((".pyc", ".orig")) or "/tests/" in name or "__pycache__" in name
    ]


def test_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(archive.read(path))
    assert metadata["Name"] == "model-surgery"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    required = [line for line in metadata.get_all("Requires-Dist") or [] if "extra ==" not in line]
    assert not [line for line in required if line.startswith(("peft", "hypothesis", "pytest"))]
    assert "make demo" in str(metadata.get_payload())
    assert [name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE")]
    (entries,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
    text = archive.read(entries).decode()
    assert "surgery = surgery.cli.main:run" in text
    assert "lora = surgery_lora" in text


def test_size(wheel: Path) -> None:
    assert wheel.stat().st_size < 8 * 2**20
