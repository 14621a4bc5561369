"""Three text collections made from text that is on every machine, so that nothing is downloaded or shipped.

| function            | rows                    | used for                                                  |
|---------------------|-------------------------|-----------------------------------------------------------|
| `stdlib_docstrings` | text, label             | classification: which chapter does a docstring belong to  |
| `torch_docstrings`  | text                    | a new domain for a causal language model                  |
| `stdlib_text`       | text                    | what the small GPT-2 was pretrained on; measures forgetting |

Every collection is split by file (never a file in two splits) with SHA-256, not Python's `hash`, so the same
installation gives the same rows in every process. The split does not depend on `seed`, which only chooses and orders
rows: whatever the seed, a training row never appears in a test. The contents follow the installed Python and torch;
another version gives other rows. Results are kept in memory for the life of the process, never on disk. None of the
functions imports torch.
"""

from __future__ import annotations

import ast
import inspect
import sysconfig
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from surgery_demo.chapters import CHAPTERS, chapter_of
from surgery_demo.sources import (
    SourceFile,
    digest,
    docstrings,
    first_paragraph,
    package_files,
    stdlib_files,
)

Splits = dict[str, list[dict[str, str]]]
"""Split name ("train", "validation", "test") to rows."""

SPLITS = ("train", "validation", "test")

# Chosen among a few hundred so that the held-out modules are many, of middling size, and about 5 % and 3 % of the text.
_STDLIB_TEXT_SALT = 14
# The folders whose docstrings say most per second of parsing; the rest of torch is three times as much text.
_TORCH_FOLDERS = (
    "nn", "optim", "distributions", "autograd", "utils", "linalg", "fft", "special", "amp", "cuda", "ao", "profiler",
    "func",
)  # fmt: skip
_TORCH_MODULES = ("_torch_docs.py", "_tensor_docs.py", "_tensor.py", "functional.py", "serialization.py", "hub.py")


def stdlib_docstrings(
    seed: int = 0, *, train: int = 2000, validation: int = 250, test: int = 500, per_file: int = 40
) -> Splits:
    """First paragraphs of standard-library docstrings, labelled with the library-reference chapter of their module.

    Rows are `{"text": ..., "label": ...}` with a label from `CHAPTERS`. Sizes are numbers of rows, upper bounds where
    the installation has fewer; rows are drawn as evenly over the chapters as they last. `per_file` bounds how many
    docstrings one file may give, so that no label is one file's style. A text occurs once at most in all splits
    together, and texts seen under two labels are left out.
    """
    _check_sizes(train=train, validation=validation, test=test, per_file=per_file)
    pools = _labelled_pools(per_file)
    wanted = {"train": train, "validation": validation, "test": test}
    return {split: _balanced(pools[split], wanted[split], f"chapters {seed} {split}") for split in SPLITS}


def torch_docstrings(
    seed: int = 0, *, train: int = 2000, validation: int = 200, test: int = 300, characters: int = 1000
) -> Splits:
    """Docstrings of the installed torch package, for adapting a causal language model to a new domain.

    Rows are `{"text": ...}` of at most `characters` characters, cut at a line end. Sizes are upper bounds in rows. All
    splits are empty where torch is not installed.
    """
    _check_sizes(train=train, validation=validation, test=test, characters=characters)
    pools = _torch_pools(characters)
    wanted = {"train": train, "validation": validation, "test": test}
    return {split: _drawn(pools[split], wanted[split], f"torch {seed} {split}") for split in SPLITS}


def stdlib_text(
    seed: int = 0,
    *,
    train: int | None = 2000,
    validation: int | None = 100,
    test: int | None = 200,
    characters: int = 2000,
) -> Splits:
    """Standard-library source, docstrings included, as the small GPT-2 saw it in pretraining.

    Rows are `{"text": ...}`: consecutive pieces of a file of at most `characters` characters, cut at line ends. Sizes
    are upper bounds in rows; None takes all. "validation" and "test" hold whole top-level modules that pretraining
    never saw, chosen by module name, so a module that another Python version turned into a package stays held out:
    losses on them measure forgetting.
    """
    _check_sizes(train=train, validation=validation, test=test, characters=characters)
    pools = _stdlib_pools(characters)
    wanted = {"train": train, "validation": validation, "test": test}
    return {split: _drawn(pools[split], wanted[split], f"stdlib {seed} {split}") for split in SPLITS}


def stdlib_text_split(file_name: str) -> str:
    """The split of `stdlib_text` that a standard-library file such as `email/message.py` belongs to."""
    # `_pydatetime` and `datetime`, `_pydecimal` and `decimal` are one module in two files: they share a name here.
    module = file_name.partition("/")[0].removesuffix(".py").strip("_").removeprefix("py")
    share = digest(_STDLIB_TEXT_SALT, module) % 100
    return "test" if share < 8 else "validation" if share < 14 else "train"


@cache
def _labelled_pools(per_file: int) -> dict[str, list[dict[str, str]]]:
    chapters_of_text: dict[str, set[str]] = {}
    by_chapter: dict[str, list[tuple[str, list[str]]]] = {chapter: [] for chapter in CHAPTERS}
    for file in stdlib_files():
        chapter = chapter_of(file.name)
        if chapter is None:
            continue
        texts = [text for text in map(first_paragraph, docstrings(file.read())) if _says_something(text)]
        texts = sorted(dict.fromkeys(texts), key=lambda text: digest(file.name, text))[:per_file]
        for text in texts:
            chapters_of_text.setdefault(text.casefold(), set()).add(chapter)
        if texts:
            by_chapter[chapter].append((file.name, texts))
    pools: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for chapter, files in by_chapter.items():
        for split, texts in _shared_out(files):
            for text in texts:
                key = text.casefold()
                if key not in seen and len(chapters_of_text[key]) == 1:
                    seen.add(key)
                    pools[split].append({"text": text, "label": chapter})
    return pools


def _shared_out(files: Iterable[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    """Give whole files to splits: in an order fixed by their names, each to the split furthest below its share."""
    share = {"train": 0.68, "validation": 0.10, "test": 0.22}
    held = dict.fromkeys(share, 0)
    given: list[tuple[str, list[str]]] = []
    for _, texts in sorted(files, key=lambda item: digest("chapters", item[0])):
        split = min(share, key=lambda split: (held[split] + len(texts)) / share[split])
        held[split] += len(texts)
        given.append((split, texts))
    return given


def _says_something(text: str) -> bool:
    return len(text) >= 40 and len(text.split()) >= 7 and sum(map(str.isalpha, text)) >= 0.6 * len(text)


@cache
def _torch_pools(characters: int) -> dict[str, list[dict[str, str]]]:
    pools: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for file in package_files("torch", _TORCH_FOLDERS, _TORCH_MODULES):
        share = digest("torch", file.name) % 100
        split = "test" if share < 15 else "validation" if share < 28 else "train"
        source = file.read()
        texts = _long_strings(source) if "add_docstr(" in source else docstrings(source)
        for whole in texts:
            text = _pieces(whole, characters)[0] if len(whole) >= 120 else ""
            if text and text not in seen:
                seen.add(text)
                pools[split].append({"text": text})
    return pools


def _long_strings(source: str) -> list[str]:
    """Docstrings of files that document compiled functions: torch attaches those as string arguments of calls."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [inspect.cleandoc(text) for text in found if "\n" in text]


@cache
def _stdlib_pools(characters: int) -> dict[str, list[dict[str, str]]]:
    pools: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
    for file in stdlib_files():
        rows = [{"text": piece} for piece in _pieces(file.read(), characters)]
        pools[stdlib_text_split(file.name)].extend(rows)
    for text in _reference_topics():
        pools["train"].extend({"text": piece} for piece in _pieces(text, characters))
    return pools


def _reference_topics() -> list[str]:
    """The language reference's prose, which Python ships for `help()` as one dictionary of strings."""
    path = Path(sysconfig.get_paths()["stdlib"]) / "pydoc_data" / "topics.py"
    try:
        tree = ast.parse(SourceFile("pydoc_data/topics.py", path).read())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [
        value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for value in node.values
        if isinstance(value, ast.Constant) and isinstance(value.value, str)
    ]


def _pieces(text: str, characters: int) -> list[str]:
    """`text` in consecutive pieces of at most `characters` characters, cut at line ends where that is possible."""
    pieces: list[str] = []
    held = ""
    for line in text.splitlines(keepends=True):
        if held and len(held) + len(line) > characters:
            pieces.append(held)
            held = ""
        held += line
        while len(held) > characters:
            pieces.append(held[:characters])
            held = held[characters:]
    if held:
        pieces.append(held)
    return [piece for piece in pieces if piece.strip()] or [""]


def _drawn(pool: list[dict[str, str]], wanted: int | None, salt: str) -> list[dict[str, str]]:
    """`wanted` rows in an order that depends on the salt and the texts only; copies, so callers may change them."""
    order = sorted(pool, key=lambda row: digest(salt, row["text"]))
    return [dict(row) for row in order[:wanted]]


def _balanced(pool: list[dict[str, str]], wanted: int, salt: str) -> list[dict[str, str]]:
    """Like `_drawn`, taking one row of each label in turn until there are enough, then mixing the labels."""
    by_label: dict[str, list[dict[str, str]]] = {}
    for row in _drawn(pool, None, salt):
        by_label.setdefault(row["label"], []).append(row)
    ranked = [(rank, digest(salt, label), row) for label, rows in by_label.items() for rank, row in enumerate(rows)]
    ranked.sort(key=lambda item: item[:2])
    return _drawn([row for _, _, row in ranked[:wanted]], None, salt + " mixed")


def _check_sizes(**sizes: int | None) -> None:
    wrong: Mapping[str, int] = {name: size for name, size in sizes.items() if size is not None and size < 0}
    if wrong or sizes.get("characters", 1) == 0:
        listed = ", ".join(f"{name}={size}" for name, size in sizes.items() if size is not None)
        raise ValueError(f"sizes must not be negative, and pieces need at least one character: {listed}")
