"""Reading Python source that is already on this machine: files, docstrings, and a split that never changes.

Nothing here imports the modules it reads; text is taken with `ast` from the files alone, so reading has no side
effects and costs only the parse.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Installed packages, tests, generated tables and whole applications: not what the library reference is about.
_STDLIB_SKIPPED = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3", "encodings", "_pyrepl"}
    | {"pydoc_data", "turtledemo", "__phello__", "ensurepip"}
)
# Generated for one interpreter build: holds paths of the machine it was compiled on.
_STDLIB_SKIPPED_PREFIXES = ("_sysconfigdata", "_sysconfig_vars", "config-", "__hello__")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One Python file: `name` is its path relative to the collection's root, with forward slashes on every system."""

    name: str
    path: Path

    def read(self) -> str:
        """The file's text with Unix line ends, or "" where it cannot be read as UTF-8: such a file is skipped."""
        try:
            return self.path.read_text(encoding="utf-8").replace("\r\n", "\n")
        except (OSError, UnicodeDecodeError):
            return ""


def digest(*parts: object) -> int:
    """A 64-bit number that depends on the parts only: the same in every process, unlike `hash`."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")


def stdlib_files() -> list[SourceFile]:
    """Every library file of the running interpreter's standard library, in name order, tests and tables left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return [file for file in _walk(root, _STDLIB_SKIPPED) if not file.name.startswith(_STDLIB_SKIPPED_PREFIXES)]


def package_files(package: str, folders: Sequence[str], modules: Sequence[str] = ()) -> list[SourceFile]:
    """Python files of an installed top-level package, found without importing it.

    `folders` are walked, `modules` are single files, both relative to the package. An absent package gives an
    empty list: the caller knows what to tell the user.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return []
    root = Path(next(iter(spec.submodule_search_locations)))
    found = [SourceFile(name, root / name) for name in modules if (root / name).is_file()]
    for folder in folders:
        found.extend(
            SourceFile(f"{folder}/{file.name}", file.path) for file in _walk(root / folder, frozenset({"__pycache__"}))
        )
    return sorted(found, key=lambda file: file.name)


def docstrings(text: str) -> Iterator[str]:
    """The cleaned docstrings of a module, its classes and its functions, breadth first; none for unparsable text."""
    try:
        with warnings.catch_warnings():
            # Old escapes such as "\d" warn when parsed; they are not the reader's business.
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            raw = ast.get_docstring(node, clean=False)
            if raw:
                yield inspect.cleandoc(raw)


def first_paragraph(docstring: str) -> str:
    """The first paragraph of a docstring on one line, single-spaced."""
    for block in docstring.split("\n\n"):
        line = " ".join(block.split())
        if line:
            return line
    return ""


def _walk(root: Path, skipped: frozenset[str]) -> list[SourceFile]:
    found: list[SourceFile] = []
    pending = [root]
    while pending:
        folder = pending.pop()
        try:
            entries = list(folder.iterdir())
        except OSError:
            continue
        for entry in entries:
            if entry.name in skipped:
                continue
            if entry.suffix == ".py":
                found.append(SourceFile(entry.relative_to(root).as_posix(), entry))
            elif entry.is_dir() and not entry.is_symlink():
                pending.append(entry)
    return sorted(found, key=lambda file: file.name)
