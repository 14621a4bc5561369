"""The rows of a spec's splits: from files, a plugin's data set, or the hub; mapped, held out, limited, hashed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from surgery.errors import DataError, Problem, nearest
from surgery.registry import Registry
from surgery.spec import DataSpec
from surgery.training.hub import load_from_hub
from surgery.training.readers import FORMATS, read_table
from surgery.training.splits import held_out, limited, limits
from surgery.training.table import Row, Table

__all__ = ["SPLITS", "DataOverride", "LoadedData", "columns_of", "describe", "load_data"]

SPLITS = ("train", "validation", "test")
DataOverride: TypeAlias = str | Path | Mapping[str, "str | Path | Sequence[Row]"]
"""A file of training rows, a folder with one file for each split, or split -> file or rows."""

_NAMES = {"train": ("train", "training", "all"), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


@dataclass(frozen=True)
class LoadedData:
    """What was loaded.

    Attributes:
        splits: split -> rows, with the task's own column names and no other columns.
        hashes: split -> sha256 of the rows.
        notes: what was decided on the way, for the user to read.
    """

    splits: Mapping[str, Table]
    hashes: Mapping[str, str]
    notes: tuple[str, ...] = ()


def load_data(
    spec: DataSpec | None,
    columns: Mapping[str, str],
    registry: Registry,
    *,
    override: DataOverride | None = None,
    limit: Mapping[str, int] | int | None = None,
    trains: bool = True,
) -> LoadedData:
    """Load the splits of `spec`.

    Args:
        spec: what the spec says of its data.
        columns: the task's columns -> default names ("" for an optional one).
        registry: the installed data sets.
        override: takes the place of the spec's files or name; its columns and limits stay.
        limit: most rows of every split, or of some, over the spec's own.
        trains: whether there must be a training split; without it, any one split will do.

    Raises:
        DataError: with place, cause, and what to do.
    """
    spec = spec or DataSpec.model_validate({})
    raw = _raw(spec, registry, override)
    if not raw or (trains and "train" not in raw):
        raise DataError("there is no training data", hint="name a data set or a train: file under data:, or use --data")
    splits = {split: _mapped(raw[split], spec.columns, columns) for split in SPLITS if split in raw}
    is_held_out = "validation" not in splits and "train" in splits
    if is_held_out:
        splits["train"], splits["validation"] = held_out(splits["train"], next(iter(columns)))
    most = limits(dict(spec.limit), limit)
    splits = {split: limited(splits[split], split, most.get(split)) for split in SPLITS if split in splits}
    # Told of what is left after the limits: those are the rows that are used.
    notes = (_held_out_note(len(splits["validation"]), len(splits["train"])),) if is_held_out else ()
    return LoadedData(splits, {split: table.digest() for split, table in splits.items()}, notes)


def columns_of(spec: DataSpec, registry: Registry) -> frozenset[str]:
    """Return the columns that the rows of `spec` have, and what `data.columns` calls them.

    Raises:
        DataError: with place, cause, and what to do.
    """
    return frozenset(spec.columns).union(*(table[0] for table in _raw(spec, registry, None).values()))


def _held_out_note(held: int, kept: int) -> str:
    share = f"{100 * held / (held + kept):.1f} %"
    return (
        f"no validation split: {held:,} of {held + kept:,} training rows ({share}) are held out by a hash of their text"
    )


def _raw(spec: DataSpec, registry: Registry, override: DataOverride | None) -> dict[str, Table]:
    if override is not None:
        return _from_override(override)
    if spec.name is None:
        named = {split: getattr(spec, split) for split in SPLITS}
        return {split: read_table(Path(path)) for split, path in named.items() if path is not None}
    if spec.name in registry.datasets:
        return _from_plugin(spec, registry)
    return load_from_hub(spec, tuple(registry.datasets))


def _from_plugin(spec: DataSpec, registry: Registry) -> dict[str, Table]:
    assert spec.name is not None
    loaded = registry.dataset(spec.name).load()
    tables: dict[str, Table] = {}
    for split in SPLITS:
        name = getattr(spec, split) or split
        if name in loaded:
            rows = loaded[name]
            tables[split] = Table(rows, f"{spec.name}[{name}]", range(1, len(rows) + 1), "row ")
        elif getattr(spec, split) is not None:
            raise DataError(f"the data set has no split {name!r}", spec.name, nearest(name, loaded))
    return _not_empty(tables)


def _from_override(override: DataOverride) -> dict[str, Table]:
    if isinstance(override, Mapping):
        unknown = sorted(set(override) - set(SPLITS))
        if unknown:
            raise DataError(f"unknown split {unknown[0]!r}", "data", nearest(unknown[0], SPLITS))
        return _not_empty({split: _given(split, value) for split, value in override.items()})
    path = Path(override)
    return _from_folder(path) if path.is_dir() else {"train": read_table(path)}


def _given(split: str, value: str | Path | Sequence[Row]) -> Table:
    if isinstance(value, str | Path):
        return read_table(Path(value))
    return Table(value, split, range(1, len(value) + 1), "row ")


def _from_folder(folder: Path) -> dict[str, Table]:
    """Find `train.jsonl`, `dev.csv`, `test_10k.json`, ...: the words of a name say which split a file is."""
    found: dict[str, list[Path]] = {split: [] for split in SPLITS}
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in FORMATS)
    for path in files:
        words = set(re.split(r"[^a-z]+", path.stem.lower()))
        for split, aliases in _NAMES.items():
            if words & set(aliases):
                found[split].append(path)
    if len(files) == 1 and not any(found.values()):
        return {"train": read_table(files[0])}
    for split, paths in found.items():
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise DataError(f"several files could be the {split} split: {names}", str(folder), "name one file instead")
    if not found["train"]:
        names = ", ".join(path.name for path in files) or "no data files"
        hint = "a folder needs train.csv, train.jsonl or train.json (and may hold validation and test files)"
        raise DataError(f"no training file among: {names}", str(folder), hint)
    return {split: read_table(paths[0]) for split, paths in found.items() if paths}


def _not_empty(tables: dict[str, Table]) -> dict[str, Table]:
    for table in tables.values():
        if not table:
            raise DataError("the split holds no rows", table.origin)
    return tables


def _mapped(table: Table, named: Mapping[str, str], columns: Mapping[str, str]) -> Table:
    """Return `table` with the task's column names; rows keep their places."""
    unknown = sorted(set(named) - set(columns))
    if unknown:
        what = f"the task has no column {unknown[0]!r}"
        raise DataError(what, f"data.columns.{unknown[0]}", nearest(unknown[0], columns))
    wanted = {key: named.get(key, default) for key, default in columns.items()}
    wanted = {key: column for key, column in wanted.items() if column}
    _check_columns(table, wanted)
    rows = [{key: row[column] for key, column in wanted.items()} for row in table]
    return Table(rows, table.origin, table.places, table.unit)


def _check_columns(table: Table, wanted: Mapping[str, str]) -> None:
    present: set[str] = set(table[0])
    problems: list[Problem] = []
    for key, column in wanted.items():
        if column not in present:
            near = nearest(column, [str(name) for name in present])
            hint = f"{near}; map it in the spec: data: {{columns: {{{key}: NAME}}}}"
            problems.append(Problem(f"there is no column {column!r}", table.origin, hint))
    if problems:
        raise DataError.of(problems)
    for index, row in enumerate(table):
        missing = [column for column in wanted.values() if column not in row]
        if missing:
            raise DataError(f"the row has no {missing[0]!r}", table.where(index), "every row needs the same columns")


def describe(override: DataOverride | None) -> Any:
    """Return `override` as plain JSON for a run's record; rows given in Python are only counted."""
    if override is None or isinstance(override, str | Path):
        return None if override is None else str(override)
    return {
        split: str(value) if isinstance(value, str | Path) else f"{len(value)} rows given in Python"
        for split, value in override.items()
    }
