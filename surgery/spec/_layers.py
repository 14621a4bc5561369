"""Which layers a rule speaks of: the selector's small grammar, and its indices once the number of layers is known."""

from __future__ import annotations

import re
from collections.abc import Sequence

from surgery.errors import PlanError, SpecError
from surgery.spec._quote import quoted

__all__ = ["FORMS", "check_layers", "layer_indices"]

FORMS = "all, first 4, last 4, 0-5, 0-2,5 or [0, 3, -1]"
MAX_LAYER = 99_999
MAX_ITEMS = 1000

_ENDS = re.compile(r"(first|last) +(\d{1,5})")
_ITEM = re.compile(r"(\d{1,5})-(\d{1,5})|(-?\d{1,5})")

# One piece of a selector: from this index to that one, both included; negative counts from the end.
_Piece = tuple[int, int]


def check_layers(selector: object) -> str | tuple[int, ...]:
    """Return `selector` in the form a rule keeps.

    Raises:
        SpecError: it is none of the forms "all", "first 4", "last 4", "0-5", "0-2,5" and [0, 3, -1].
    """
    if isinstance(selector, str):
        kept = " ".join(selector.split())
        _pieces(kept, 1)
        return kept
    if isinstance(selector, int) and not isinstance(selector, bool):
        raise SpecError(f"must be {FORMS}, not the number {selector}", hint=f"write [{selector}]")
    if not isinstance(selector, list | tuple):
        raise SpecError(f"must be {FORMS}", hint="leave the key out to mean every layer")
    if not selector:
        raise SpecError(
            "must name at least one layer, not the empty list", hint="leave the key out to mean every layer"
        )
    _pieces(selector, 1)
    return tuple(selector)


def layer_indices(selector: str | Sequence[int], count: int) -> tuple[int, ...]:
    """Return the layers that `selector` names among `count` layers: sorted, each once, counted from 0.

    Raises:
        PlanError: a layer is named that does not exist.
        SpecError: `selector` is not a layer selector.
    """
    if selector == "all":
        return tuple(range(count))
    chosen: set[int] = set()
    for first, last in _pieces(selector, count):
        chosen.update(range(_within(first, count), _within(last, count) + 1))
    return tuple(sorted(chosen))


def _pieces(selector: str | Sequence[int], count: int) -> list[_Piece]:
    if not isinstance(selector, str):
        _few(len(selector))
        return [_index(item) for item in selector]
    if selector == "all":
        return [(0, count - 1)]
    if ends := _ENDS.fullmatch(selector):
        return [_end(ends.group(1), int(ends.group(2)), count)]
    items = selector.split(",")
    _few(len(items))
    return [_item(item.strip(), selector) for item in items]


def _few(number: int) -> None:
    if number > MAX_ITEMS:
        raise SpecError(f"must name at most {MAX_ITEMS} layers or ranges, not {number}", hint="use a range such as 0-5")


def _index(item: object) -> _Piece:
    if type(item) is not int:
        raise SpecError(f"must hold whole numbers only, not {_shown(item)}", hint=f"use {FORMS}")
    if abs(item) > MAX_LAYER:
        raise SpecError(f"must hold layers below {MAX_LAYER + 1}, not {item}")
    return item, item


def _shown(item: object) -> str:
    return str(item).lower() if isinstance(item, bool) else repr(item)[:40]


def _end(word: str, number: int, count: int) -> _Piece:
    if number == 0:
        raise SpecError(f"must name at least one layer, not '{word} 0'", hint=f"use {FORMS}")
    return (0, number - 1) if word == "first" else (-number, -1)


def _item(item: str, selector: str) -> _Piece:
    match = _ITEM.fullmatch(item)
    if match is None:
        raise SpecError(f"must be {FORMS}, not the text {quoted(selector)}")
    if match.group(3) is not None:
        return int(match.group(3)), int(match.group(3))
    first, last = int(match.group(1)), int(match.group(2))
    if first > last:
        raise SpecError(f"must run from low to high, not {item!r}", hint=f"write {last}-{first}")
    return first, last


def _within(layer: int, count: int) -> int:
    if not -count <= layer < count:
        known = (
            f"the layers are 0 to {count - 1} (or -{count} to -1 from the end)" if count else "there are no layers here"
        )
        raise PlanError(f"layer {layer} does not exist", hint=known)
    return layer % count
