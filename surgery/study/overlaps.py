"""How far arms, and seeds of one arm, changed the same directions: kept run by run, compared when all are over."""

from __future__ import annotations

import itertools
import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.errors import StateError
from surgery.study.cells import Cell
from surgery.study.results import plain_json

if TYPE_CHECKING:
    from surgery.spectra import Directions

__all__ = ["COUNT", "FOLDER", "SubspaceOverlap", "keep_directions", "subspace_overlaps", "unreadable_directions"]

FOLDER = "directions"
"""Folder, inside a study's, of the leading directions of what each run changed: one file for each run."""

COUNT = 8
"""How many directions of every matrix are kept, and compared."""


@dataclass(frozen=True, slots=True)
class SubspaceOverlap:
    """Two runs: medians of phi over the matrices that both changed (`surgery.spectra.overlap`).

    Attributes:
        first, first_seed, second, second_seed: which two; one arm on two seeds, or two arms on one seed.
        matrices: how many both changed.
        output, input: of left and right singular vectors.
        random_output, random_input: of the first run's and random ones.
        expected_output, expected_input: what random subspaces have on average.
    """

    first: str
    first_seed: int
    second: str
    second_seed: int
    matrices: int
    output: float
    input: float
    random_output: float
    random_input: float
    expected_output: float
    expected_input: float


def keep_directions(found: Mapping[str, Directions], cell: Cell, folder: Path) -> None:
    """Write what `surgery.spectra.directions` found after the run of `cell` to the study's `folder`."""
    from safetensors.torch import save

    tensors, told = {}, []
    for index, one in enumerate(found.values()):
        told.append({"name": one.name, "role": one.role, "stack": one.stack, "layer": one.layer, "expert": one.expert,
                     "energy": one.found.energy})  # fmt: skip
        for part in ("left", "values", "right"):
            tensors[f"{index}.{part}"] = getattr(one.found, part).float().contiguous()
    path = _path(folder, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    draft.write_bytes(save(tensors, {"matrices": json.dumps(told)}))
    draft.replace(path)


def subspace_overlaps(cells: Sequence[Cell], folder: Path) -> tuple[SubspaceOverlap, ...]:
    """Return the overlaps of arms on their first common seed, and of each arm's seeds with its first one.

    Runs whose directions were not kept (none changed a matrix, or an earlier version ran them), or whose file cannot
    be read, have none.
    """
    from surgery.operation.attach import alike_everywhere

    looked = [cell for cell in _kept(cells, folder) if _readable(folder, cell)]
    if len(looked) < 2:
        return ()
    found = []
    with alike_everywhere():
        for one, other in _pairs(looked):
            told = _overlap(one, other, folder)
            if told is not None:
                found.append(told)
    return tuple(found)


def unreadable_directions(cells: Sequence[Cell], folder: Path) -> tuple[str, ...]:
    """Return the names of files of directions that cannot be read: no number but the overlaps rests on them."""
    return tuple(_path(folder, cell).name for cell in _kept(cells, folder) if not _readable(folder, cell))


def _kept(cells: Sequence[Cell], folder: Path) -> list[Cell]:
    # A file, or what took its place; a run that changed no matrix has none.
    return [cell for cell in cells if cell.weights and os.path.lexists(_path(folder, cell))]


def _readable(folder: Path, cell: Cell) -> bool:
    from safetensors import SafetensorError

    try:
        return _path(folder, cell).is_file() and all(_is_sound(one) for one in _read(folder, cell).values())
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _is_sound(one: Directions) -> bool:
    parts = (one.found.left, one.found.values, one.found.right)
    left, values, right = parts
    shaped = [part.ndim for part in parts] == [2, 1, 2] and left.shape[1] == len(values) == right.shape[0] > 0
    return shaped and all(bool(part.isfinite().all()) for part in parts)


def _path(folder: Path, cell: Cell) -> Path:
    return folder / FOLDER / f"{cell.folder}.safetensors"


def _pairs(cells: Sequence[Cell]) -> Iterator[tuple[Cell, Cell]]:
    by_arm: dict[str, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: list(dict.fromkeys(each.seed for each in cells)).index(cell.seed)):
        by_arm.setdefault(cell.arm, []).append(cell)
    for one, other in itertools.combinations(by_arm.values(), 2):
        same = [(a, b) for a in one for b in other if a.seed == b.seed]
        yield from same[:1]
    for runs in by_arm.values():
        yield from ((runs[0], other) for other in runs[1:])


def _overlap(one: Cell, other: Cell, folder: Path) -> SubspaceOverlap | None:
    from surgery.spectra import measure_overlaps

    try:
        told = list(measure_overlaps(_read(folder, one), _read(folder, other)))
    except (StateError, RuntimeError):  # no matrix is in both, or they are of different sizes
        return None

    def middle(name: str) -> float:
        return float(f"{statistics.median(getattr(each, name) for each in told):.6g}")

    return SubspaceOverlap(
        first=one.arm,
        first_seed=one.seed,
        second=other.arm,
        second_seed=other.seed,
        matrices=len(told),
        output=middle("left"),
        input=middle("right"),
        random_output=middle("control_left"),
        random_input=middle("control_right"),
        expected_output=middle("expected_left"),
        expected_input=middle("expected_right"),
    )


def _read(folder: Path, cell: Cell) -> dict[str, Directions]:
    from safetensors import safe_open

    from surgery.spectra import Decomposition, Directions

    found: dict[str, Any] = {}
    with safe_open(_path(folder, cell), framework="pt") as file:
        for index, one in enumerate(plain_json(file.metadata()["matrices"])):
            energy = one.pop("energy")
            left, values, right = (file.get_tensor(f"{index}.{part}") for part in ("left", "values", "right"))
            found[one["name"]] = Directions(**one, found=Decomposition(left, values, right, energy, is_exact=False))
    return found
