"""Memory does not grow with the checkpoint: measured in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

PROGRAM = """
import sys, surgery
from pathlib import Path
from surgery.checkpoint import merge
import torch
from surgery.checkpoint.report import Tally
from surgery.exact import Delta, Product, encode, merge_block, passage
registry = surgery.load_registry()
# Libraries and compiled loops are there before anything is measured.
weight, added = torch.randn(512, 512).bfloat16(), torch.empty(512, 512, dtype=torch.float64)
delta = Delta([Product(torch.ones(512, 1), torch.ones(1, 512))], (512, 512))
merged = merge_block(weight, delta, 0, added=added)
Tally().add(weight, merged, added)
passage(weight, delta, 0, correct=True, out=merged, with_residue=True)
encode(weight, merged, added)
def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) * 1024
before = peak()
surgery.merge_checkpoint(sys.argv[1], sys.argv[2], sys.argv[3], jobs=2, registry=registry)
merged = peak() - before
surgery.unmerge_checkpoint(sys.argv[3], sys.argv[4], jobs=2, registry=registry)
print(merged, peak() - before)
"""


@pytest.mark.parametrize("is_compiled", [False, True])
def test_peak_memory_is_flat(is_compiled: bool, tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_DISABLE_JIT": str(int(not is_compiled))}
    peaks = []
    for count in (4, 24):
        folder = tmp_path / str(count)
        (folder / "base").mkdir(parents=True)
        (folder / "a").mkdir()
        names = [f"layers.{index}.map" for index in range(count)]
        save_file(
            {f"{n}.weight": torch.randn(2048, 2048).bfloat16() for n in names}, folder / "base" / "model.safetensors"
        )
        factors = {f"base_model.model.{n}.lora_A.weight": torch.randn(4, 2048) / 50 for n in names}
        factors |= {f"base_model.model.{n}.lora_B.weight": torch.randn(2048, 4) / 50 for n in names}
        save_file(factors, folder / "a" / "adapter_model.safetensors")
        said = {"peft_type": "LORA", "r": 4, "lora_alpha": 4}
        (folder / "a" / "adapter_config.json").write_text(json.dumps(said))
        command = [sys.executable, "-c", PROGRAM, *(str(folder / name) for name in ("base", "a", "out", "back"))]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        peaks.append([int(part) for part in done.stdout.split()])
        same = (folder / "back" / "model.safetensors").read_bytes() == (
            folder / "base" / "model.safetensors"
        ).read_bytes()
        assert same
    for small, large in zip(*peaks, strict=True):
        assert large < 120e6, peaks
        assert large - small < 24e6, peaks  # 168 MB of weights more
