"""Tiny models of every family are built beside these tests."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "contract"), str(HERE.parent / "operation"), str(HERE)]
