"""Classes have one order, whatever order a set has; numbers are numbers only where they are short and plain."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
from surgery import load_registry
registry = load_registry()
texts = [{"text": "a", "label": label} for label in ("001", "1", "01", "-1", "2")]
kind = registry.task("text-classification")
print(kind.labels(texts, kind.options()))
tags = [{"tokens": ["a"] * 4, "tags": ["1", "01", "001", "10"]}]
kind = registry.task("token-classification")
print(kind.labels(tags, kind.options(metric="accuracy")))
"""


def test_labels_of_one_number_are_in_one_order() -> None:
    told = {
        subprocess.run([sys.executable, "-c", SCRIPT], env={**os.environ, "PYTHONHASHSEED": seed}, text=True,
                       capture_output=True, check=True).stdout
        for seed in ("1", "2", "3", "5")
    }  # fmt: skip
    assert told == {"('-1', '001', '01', '1', '2')\n('001', '01', '1', '10')\n"}


@pytest.mark.parametrize("label", ["9" * 5000, "--1", "\N{ARABIC-INDIC DIGIT ONE}", "-"])
def test_what_only_looks_like_a_number_is_a_word(label: str) -> None:
    from surgery import load_registry

    kind = load_registry().task("text-classification")
    found = kind.labels([{"text": "a", "label": one} for one in (label, "10", "9")], kind.options())
    assert found == tuple(sorted((label, "10", "9")))
