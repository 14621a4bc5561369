"""Plain data made read-only: what a spec holds can be shared, hashed and pickled, never changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

__all__ = ["MAX_INTEGER", "FrozenMap", "control_character", "freeze"]

MAX_INTEGER = 2**63 - 1
_KEPT_CONTROLS = frozenset("\t\n\r")


class FrozenMap(dict[str, Any]):
    """A dict without mutators. It stays a dict so that Pydantic, JSON and YAML treat it as one."""

    __slots__ = ()

    def _refuse(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise TypeError("this mapping belongs to a spec and is read-only; make a new spec instead")

    __setitem__ = __delitem__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse
    __ior__ = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        # dict's own reduction fills an empty copy item by item, which the missing mutators forbid.
        return (FrozenMap, (dict(self),))

    def __copy__(self) -> FrozenMap:
        return self

    def __deepcopy__(self, _memo: dict[int, Any]) -> FrozenMap:
        return self


def control_character(text: str) -> str | None:
    """Return the first character of `text` that no spec may hold (control or half a surrogate pair), as U+XXXX."""
    if text.isprintable():
        return None
    for char in text:
        code = ord(char)
        if (code < 32 and char not in _KEPT_CONTROLS) or 0x7F <= code <= 0x9F or 0xD800 <= code <= 0xDFFF:
            return f"U+{code:04X}"
    return None


def freeze(value: Any, depth: int = 0) -> Any:
    """Return plain data as read-only plain data: dicts become `FrozenMap`, lists become tuples.

    Raises:
        ValueError: `value` holds something that YAML and JSON cannot hold and give back unchanged.
    """
    if depth > 32:
        raise ValueError("must be nested at most 32 levels deep")
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("must have only text as keys")
        return FrozenMap({freeze(key): freeze(item, depth + 1) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return tuple(freeze(item, depth + 1) for item in value)
    _check_scalar(value)
    return value


def _check_scalar(value: Any) -> None:
    if value is None or type(value) is bool:
        return
    if type(value) is int:
        if abs(value) > MAX_INTEGER:
            raise ValueError("must be an integer of at most 64 bits")
    elif type(value) is float:
        if not math.isfinite(value):
            raise ValueError("must be a finite number")
    elif type(value) is str:
        if bad := control_character(value):
            raise ValueError(f"must not hold the control character {bad}")
    else:
        raise ValueError(
            f"must be plain data (text, number, true/false, null, list, mapping), not {type(value).__name__}"
        )
