"""What the tests of the command line share besides fixtures."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

__all__ = ["GOLDEN", "LORA", "ROOT", "SCRIPT", "TASK", "Result", "Run"]

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
SCRIPT = Path(sys.executable).with_name("surgery")
"""The installed console script."""

LORA = r"- {role: attention\.(query|value), adapter: lora, rank: 2}"
TASK = "task: {kind: text-classification}\n"


@dataclass(frozen=True)
class Result:
    """How one call ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> dict[str, object]:
        """The error that `--json` put on stderr."""
        found: dict[str, object] = json.loads(self.err)["error"]
        return found


class Run(Protocol):
    """One call of the command line."""

    def __call__(self, *arguments: object, **environment: str) -> Result: ...
