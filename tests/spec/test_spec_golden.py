"""Every message a user can read, word for word. See golden/README.md for how to regenerate."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from surgery.errors import SpecError
from surgery.spec import Catalog, parse_spec

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("*.yaml"))
JARGON = re.compile(r"Input should|value_error|type=|pydantic|\[key\]|union|Traceback", re.IGNORECASE)


def message(name: str, catalog: Catalog) -> str:
    with pytest.raises(SpecError) as caught:
        parse_spec((GOLDEN / f"{name}.yaml").read_text("utf-8"), "file.yaml", catalog)
    return f"{caught.value}\n"


@pytest.mark.parametrize("name", CASES)
def test_message_is_golden(name: str, catalog: Catalog) -> None:
    text = message(name, catalog)
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("SURGERY_REGENERATE_GOLDEN"):
        golden.write_text(text, "utf-8")
    assert text == golden.read_text("utf-8")


@pytest.mark.parametrize("name", CASES)
def test_message_is_located_sorted_and_free_of_jargon(name: str, catalog: Catalog) -> None:
    text = message(name, catalog)
    assert not JARGON.search(text)
    places = [line for line in text.splitlines() if not line.startswith("  hint: ")]
    found = [re.match(r"file\.yaml:(\d+):(\d+)(?:  \S+)?: ", line) for line in places]
    assert all(found)
    positions = [(int(match[1]), int(match[2])) for match in found if match]
    assert positions == sorted(positions)


def test_no_golden_file_is_left_over() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == CASES
