"""Residues that are in the repository decode to the same bits whatever the processor's instructions, BLAS or threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from golden_cases import CASES, case, digest, facts

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
REGENERATES = os.environ.get("SURGERY_REGENERATE_GOLDEN") == "1"

ENVIRONMENTS = {
    "default": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "OMP_NUM_THREADS": "2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "OMP_NUM_THREADS": "2"},
    "sse": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "OMP_NUM_THREADS": "1"},
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_this_process_has_the_golden_bits(name: str) -> None:
    file = GOLDEN / f"{name}.residue"
    found, blob = facts(name, None if REGENERATES else file.read_bytes())
    known = GOLDEN / "sha256.json"
    if REGENERATES:
        file.write_bytes(blob)
        others = json.loads(known.read_text()) if known.exists() else {}
        known.write_text(json.dumps({**others, name: found}, indent=1, sort_keys=True) + "\n")
    assert found == json.loads(known.read_text())[name]
    assert found["original"] == digest(case(name)[0])
    assert file.stat().st_size < 3000


@pytest.mark.parametrize("environment", sorted(ENVIRONMENTS))
def test_every_environment_has_the_golden_bits(environment: str) -> None:
    run = subprocess.run(
        [sys.executable, str(HERE / "golden_cases.py"), str(GOLDEN)],
        env={**os.environ, **ENVIRONMENTS[environment]},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == json.loads((GOLDEN / "sha256.json").read_text())
