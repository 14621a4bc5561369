"""Merging and unmerging in a process of its own, with other instructions and threads: asked by lines of JSON.

Run as a script it is that process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["OtherProcess", "do"]


def do(ask: dict[str, Any]) -> bool:
    """Merge or unmerge; return whether it had been done before."""
    from operating import REGISTRY

    from surgery import merge_checkpoint, unmerge_checkpoint
    from surgery.checkpoint import units

    own, units.BLOCK = units.BLOCK, ask["block"]
    try:
        out, jobs = ask["out"], ask["jobs"]
        if ask["do"] == "merge":
            report = merge_checkpoint(ask["from"], ask["adapters"], out, undo=ask["undo"], jobs=jobs, registry=REGISTRY)
        else:
            report = unmerge_checkpoint(ask["from"], out, adapters=ask["adapters"], jobs=jobs, registry=REGISTRY)
    finally:
        units.BLOCK = own
    return report.was_done


class OtherProcess:
    """One that was started once and knows of nothing but files."""

    def __init__(self) -> None:
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "2"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def do(self, ask: dict[str, Any]) -> bool:
        """As `do`, over there; raises the SurgeryError that it raised."""
        from surgery import errors

        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(ask) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise getattr(errors, answer["error"])(answer["what"])
        return bool(answer["was_done"])

    def end(self) -> None:
        """Let it go."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def _serve() -> None:
    here = Path(__file__).parent
    sys.path[:0] = [str(here), str(here.parent / "operation")]
    from surgery import SurgeryError

    for line in sys.stdin:
        try:
            answer: dict[str, Any] = {"was_done": do(json.loads(line))}
        except SurgeryError as error:
            answer = {"error": type(error).__name__, "what": error.what}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
