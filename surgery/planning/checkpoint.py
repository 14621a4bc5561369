"""The inventory of a checkpoint from its file headers: what the files call a tensor, and what the model calls it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.architecture import Architecture, When
from surgery.architecture.counts import UnknownSettingError, count_of, setting
from surgery.errors import CheckpointError
from surgery.planning.headers import TensorHeader, read_checkpoint_headers
from surgery.planning.inventory import Inventory, ParameterEntry

__all__ = ["Piece", "inventory_of_checkpoint", "pieces_of_checkpoint"]

_MOST_TENSORS = 250_000
"""The largest open checkpoints, quantised and with a tensor for each of hundreds of experts, hold about 200,000."""
_MOST_PARTS = 64
_MOST_BESIDE = 1_000
"""Tensors of one module: each of them is looked at beside all others."""
_NUMBER = r"(0|[1-9][0-9]{0,8})"


_Headers = Mapping[str, TensorHeader]


def inventory_of_checkpoint(
    folder: Path, architecture: Architecture | None, config: Mapping[str, Any], headers: _Headers | None = None
) -> Inventory:
    """Take the inventory from headers. `architecture` tells names, hosts and ties, which headers do not say."""
    headers, settings = _taken(folder, config, headers)
    entries = list(_entries(headers.values(), architecture, settings))
    entries.sort(key=lambda entry: _natural(entry.name))
    names = {entry.name: entry for entry in entries}
    groups: dict[str, list[str]] = {}  # the name that is in the file -> those that were left out
    classes = config.get("architectures")
    for alias, target in architecture.tied_names() if architecture else ():
        if alias not in names and target in names and _is_left_out(alias, target, names, classes):
            path, _, parameter = alias.rpartition(".")
            source = names[target]
            entries.append(ParameterEntry(path, parameter, source.shape, source.dtype, ""))
            groups.setdefault(target, [target]).append(alias)
    for alias, target in _shared(names, architecture, settings) if architecture else ():
        path, _, parameter = alias.rpartition(".")
        entries.append(ParameterEntry(path, parameter, names[target].shape, names[target].dtype, ""))
        groups.setdefault(target, [target]).append(alias)
    ties = {name: tuple(other for other in group if other != name) for group in groups.values() for name in group}
    # Names that were left out come last, as heads do in a model: the first name of a tied tensor is then the same one.
    return Inventory(
        str(config.get("model_type") or "") or None, "", "headers", tuple(entries), ties, settings, config or None
    )


def _taken(folder: Path, config: Mapping[str, Any], headers: _Headers | None) -> tuple[_Headers, Mapping[str, Any]]:
    """Return headers, read where they are not given, and the settings of a model and its text part."""
    text = config.get("text_config")
    headers = read_checkpoint_headers(folder) if headers is None else headers
    _refuse_hostile(headers, folder)
    return headers, {**(text if isinstance(text, dict) else {}), **config}


def _shared(
    names: Mapping[str, ParameterEntry], architecture: Architecture, settings: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yield (name that was left out, name in the file) of modules that several layers share."""
    made = 0
    for path, (beside, count) in architecture.shared.items():
        layers = sorted({int(match[1]) for match in map(_pattern(beside).search, names) if match})
        stored: dict[int, list[re.Match[str]]] = defaultdict(list)
        for match in filter(None, map(_pattern(path).search, names)):
            stored[int(match[1])].append(match)
        try:
            several = max(1, count_of(count, settings, architecture.defaults))
        except UnknownSettingError as error:
            what = f"the configuration does not say {error.name!r}, how many modules the layers share"
            raise CheckpointError(what, "config.json", "complete it, or plan from the model itself") from None
        for position, layer in enumerate(layers):
            for match in stored[layers[position % several]]:
                alias = f"{match.string[: match.start(1)]}{layer}{match.string[match.end(1) :]}"
                made += 1
                if made > _MOST_TENSORS:
                    raise CheckpointError(f"layers that share modules have more than {_MOST_TENSORS:,} tensors")
                if alias not in names:
                    yield alias, match.string


def _refuse_hostile(names: Collection[str], folder: Path) -> None:
    """Refuse what no model is, and what would be planned for minutes."""
    if len(names) > _MOST_TENSORS:
        raise CheckpointError(f"it holds {len(names):,} tensors; at most {_MOST_TENSORS:,} are read", str(folder))
    for name in names:
        if name.count(".") >= _MOST_PARTS:
            raise CheckpointError(
                f"a tensor's name has more than {_MOST_PARTS} parts", f"{folder}: tensor {name[:60] + '...'!r}"
            )
    most = Counter(name.rpartition(".")[0] for name in names).most_common(1)
    if most and most[0][1] > _MOST_BESIDE:
        what = f"the module {most[0][0]!r} has {most[0][1]:,} tensors; at most {_MOST_BESIDE:,} are read"
        raise CheckpointError(what, str(folder))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one tensor of a file goes.

    Attributes:
        name: its name in the model.
        position, parts: which of how many names in files it had, where a parameter is put together from several.
        number: which of those that are stacked it is; None for none.
    """

    name: str
    position: int = 0
    parts: int = 1
    number: int | None = None


class _Names:
    """`Architecture.files` and `Architecture.ignored`, ready to be matched."""

    def __init__(self, architecture: Architecture, settings: Mapping[str, Any], stored: Iterable[str]) -> None:
        self._renamings: list[tuple[str, list[re.Pattern[str]]]] = []
        for name, given in architecture.files.items():
            if isinstance(given, When) and not any(map(_pattern(given.beside).search, stored)):
                continue
            patterns = (str(given.path),) if isinstance(given, When) else given
            patterns = patterns if isinstance(patterns, tuple) else (patterns,)
            self._renamings.append((name, [_pattern(pattern) for pattern in patterns]))
        ignored = [item if isinstance(item, When) else When(item) for item in architecture.ignored]
        self._ignored = [
            _pattern(str(item.path))
            for item in ignored
            if all(setting(key, settings, architecture.defaults) == value for key, value in item.settings.items())
        ]

    def is_ignored(self, name: str) -> bool:
        return any(pattern.search(name) for pattern in self._ignored)

    def locate(self, name: str) -> _Place:
        place = _Place(name)
        for new, patterns in self._renamings:
            for position, pattern in enumerate(patterns):
                match = pattern.search(place.name)
                if match:
                    name = f"{place.name[: match.start()]}{new}{place.name[match.end() :]}"
                    number = int(match[1]) if match.groups() else place.number
                    joins = len(patterns) > 1
                    place = _Place(
                        name, position if joins else place.position, len(patterns) if joins else place.parts, number
                    )
                    break
        return place


_Pieces = list[tuple[_Place, TensorHeader]]


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor of a file, as a part of a parameter of the model.

    Attributes:
        header: where it is, and its shape.
        matrix: which of the parameter's matrices it is or begins with, where it is one of those that are stacked.
        row: the first row of that matrix that it holds.
        is_stacked: whether it is one matrix of several.
    """

    header: TensorHeader
    matrix: int = 0
    row: int = 0
    is_stacked: bool = False


def pieces_of_checkpoint(
    folder: Path, architecture: Architecture | None, config: Mapping[str, Any], headers: _Headers | None = None
) -> dict[str, tuple[Piece, ...]]:
    """Return name of a parameter -> the tensors of files that make it up, in the order of its elements.

    Raises:
        CheckpointError: as `inventory_of_checkpoint`.
    """
    headers, settings = _taken(folder, config, headers)
    found = {}
    for name, pieces in _located(headers.values(), architecture, settings).items():
        _joined(name, pieces)
        made, rows = [], dict[int, int]()
        for place, header in sorted(pieces, key=lambda pair: (pair[0].number or 0, pair[0].position)):
            matrix = place.number or 0
            made.append(Piece(header, matrix, rows.get(matrix, 0), place.number is not None))
            rows[matrix] = rows.get(matrix, 0) + (header.shape[0] if header.shape else 1)
        found[name] = tuple(made)
    return found


def _located(
    headers: Collection[TensorHeader], architecture: Architecture | None, settings: Mapping[str, Any]
) -> dict[str, _Pieces]:
    stored = [header.name for header in headers]
    names = _Names(architecture or Architecture((), "", {}, {}), settings, stored)
    found: dict[str, _Pieces] = defaultdict(list)
    for header in headers:
        if not names.is_ignored(header.name):
            place = names.locate(header.name)
            found[place.name].append((place, header))
    return found


def _entries(
    headers: Collection[TensorHeader], architecture: Architecture | None, settings: Mapping[str, Any]
) -> Iterator[ParameterEntry]:
    for name, pieces in _located(headers, architecture, settings).items():
        path, _, parameter = name.rpartition(".")
        yield ParameterEntry(path, parameter, _joined(name, pieces), pieces[0][1].dtype, "")


def _joined(name: str, pieces: _Pieces) -> tuple[int, ...]:
    """Return the shape of the parameter that several tensors are, after checking that they are one."""
    first, header = pieces[0]
    if len(pieces) == 1 and first.parts == 1 and first.number is None:
        return header.shape
    stacks: list[dict[int | None, TensorHeader]] = [{} for _ in range(max(place.parts for place, _ in pieces))]
    for place, piece in pieces:
        if place.number in stacks[place.position]:
            raise CheckpointError(f"two tensors would be the model's {name}", _where(piece))
        stacks[place.position][place.number] = piece
    count = len(stacks[0])
    numbers = {None} if first.number is None else set(range(count))
    if any(stack.keys() != numbers for stack in stacks):
        raise CheckpointError(f"some of the tensors that are the model's {name} are missing", _where(header))
    shapes = [{piece.shape for piece in stack.values()} for stack in stacks]
    alike = {(piece.dtype, piece.shape[1:]) for _, piece in pieces}
    if len(alike) > 1 or any(len(found) > 1 or found == {()} for found in shapes):
        raise CheckpointError(f"the tensors that are the model's {name} differ in dtype or shape", _where(header))
    joined = sum(next(iter(found))[0] for found in shapes)
    return (*(() if first.number is None else (count,)), joined, *header.shape[1:])


def _where(header: TensorHeader) -> str:
    return f"{header.file}: tensor {header.name!r}"


def _pattern(text: str) -> re.Pattern[str]:
    """Compile a run of name parts; every regular expression made here is matched in linear time."""
    parts = [_NUMBER if part == "*" else re.escape(part) for part in text.removeprefix("^").split(".")]
    start = "^" if text.startswith("^") else r"(?<![^.])"
    return re.compile(start + r"\.".join(parts) + r"(?![^.])")


# Names of the classes of transformers whose last layer may be tied to the tokens' table.
_PREDICTS_TOKENS = re.compile(r".*(LMHead|DoubleHeads|ForCausalLM|ForMaskedLM|ForConditionalGeneration).*")


def _is_left_out(alias: str, target: str, names: Collection[str], classes: Any) -> bool:
    """Whether the model has `alias` although its file does not: not every task model has what is tied.

    It does when something else of the same module is in the file, such as other layers of a decoder or the bias of a
    head. A head of one tensor is there when the configuration names a class that has one; where it names no class,
    when there is nothing but the base model.
    """
    holder, _, _ = alias.rpartition(".")
    around = holder.rpartition(".")[0] or holder
    if any(name.startswith(f"{around}.") for name in names):
        return True
    if around != holder:
        return False
    if isinstance(classes, list) and classes:
        return _PREDICTS_TOKENS.fullmatch(str(classes[0])) is not None
    return all(name.startswith(f"{target.partition('.')[0]}.") for name in names)


def _natural(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() and part.isascii() else (1, part) for part in name.split(".")]
