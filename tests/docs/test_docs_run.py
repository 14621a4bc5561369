"""Everything the pages show runs, and what they print is what is printed."""

from __future__ import annotations

import contextlib
import io
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pages import PAGES, ROOT, Block, blocks, commands, same_output

RUNNABLE = ("python", "console")
WITH_BLOCKS = [
    page
    for page in PAGES
    if page.parent.name != "surgery_demo"  # its one block is a sketch; tests/demo holds it to its numbers
    and any(block.language in RUNNABLE and not block.is_illustrative and not block.file for block in blocks(page))
]


def _run_console(block: Block, place: str) -> None:
    for command, shown in commands(block):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        printed = done.stdout + done.stderr
        assert done.returncode == 0 or "error:" in shown, f"{place}: {command}\n{printed}"
        if shown.strip():
            assert same_output(shown, printed), f"{place}: {command}\nprints\n{printed}"


def _run_python(block: Block, place: str, namespace: dict[str, Any]) -> str:
    printed = io.StringIO()
    code = compile("\n" * (block.line - 1) + block.text, place, "exec")
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    return printed.getvalue()


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_runs(page: Path, workplace: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in blocks(page):
        place = f"{page.relative_to(ROOT)}:{block.line}"
        if block.file:
            target = workplace / block.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, "utf-8")
        elif block.is_illustrative:
            continue
        elif block.language == "python":
            printed = _run_python(block, place, namespace)
        elif block.language == "console":
            _run_console(block, place)
        elif block.language == "text" and "output" in block.words:
            assert same_output(block.text, printed), f"{place}: the block above prints\n{printed}"


def test_what_does_not_run_says_so() -> None:
    """A block whose language would run, or would be a file, is never skipped by a typing mistake."""
    known = {"illustrative", "installed", "output"}
    for page in PAGES:
        for block in blocks(page):
            unknown = {word for word in block.words if not word.startswith("file=")} - known
            assert not unknown, f"{page.name}:{block.line}: {unknown}"
            assert block.language, f"{page.name}:{block.line}: say the language, at least `text`"
