"""The project's pages as data: fenced blocks, what their info strings say, headings and links.

Info strings: `python` runs, `python file=PATH` is written, `python illustrative` is neither; `text output` is what the
python block above it prints; `console` is run and compared, `console illustrative` is not; `console installed` is run by
tests/packaging, where the packages of the pages are installed. In shown output `...` stands for anything.
"""

from __future__ import annotations

import doctest
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGES", "ROOT", "Block", "blocks", "commands", "files", "headings", "links", "same_output"]

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "plugins").glob("*/README.md")]
)

_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ (?P<title>.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block and the line of its first line of text."""

    language: str
    words: tuple[str, ...]
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """Where the block is to be written, if it is a file."""
        return next((word.removeprefix("file=") for word in self.words if word.startswith("file=")), None)

    @property
    def is_illustrative(self) -> bool:
        return bool({"illustrative", "installed"}.intersection(self.words))


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = page.read_text("utf-8")
    found = []
    for match in _FENCE.finditer(text):
        language, *words = match["info"].split() or [""]
        found.append(Block(language, tuple(words), match["text"], text.count("\n", 0, match.start()) + 2))
    return found


def files(page: Path) -> dict[str, str]:
    """Return path -> text of the files that a page holds."""
    return {block.file: block.text for block in blocks(page) if block.file}


def commands(block: Block) -> list[tuple[str, str]]:
    """Return (command, shown output) for each `$` line of a console block."""
    pieces = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    assert not pieces[0].strip(), f"line {block.line}: a console block begins with a command"
    found = []
    for piece in pieces[1:]:
        command, _, output = re.sub(r"\\\n\s*", "", piece).partition("\n")
        found.append((command, output))
    return found


def headings(page: Path) -> set[str]:
    """Return the anchors of a page, as GitHub makes them."""
    text = _FENCE.sub("", page.read_text("utf-8"))
    titles = [re.sub(r"[`*]", "", match["title"]).lower() for match in _HEADING.finditer(text)]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def links(page: Path) -> list[str]:
    """Return the targets of a page's links outside of fenced blocks."""
    return [match["target"] for match in _LINK.finditer(_FENCE.sub("", page.read_text("utf-8")))]


def same_output(shown: str, printed: str) -> bool:
    """Return whether a page shows what is printed, the project's version and spaces at line ends apart."""
    version = r"(model-surgery\s+)\d[\w.]*"
    shown, printed = (
        "".join(f"{line.rstrip()}\n" for line in re.sub(version, r"\1VERSION", text).rstrip().splitlines())
        for text in (shown, printed)
    )
    return doctest.OutputChecker().check_output(shown, printed, doctest.ELLIPSIS)
