"""What a plain YAML scalar means: the core schema of YAML 1.2, bounded, and without its traps."""

from __future__ import annotations

import math
import re
from typing import Any

from surgery.spec._frozen import MAX_INTEGER

__all__ = ["ScalarError", "plain"]

_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_DECIMAL = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


class ScalarError(ValueError):
    """A scalar that means nothing usable, and what to write instead."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


def plain(text: str) -> Any:
    """Return the value of an unquoted scalar.

    Raises:
        ScalarError: the number is ambiguous (017), too large, or not finite.
    """
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "+-.0123456789":
        return text
    if _DECIMAL.fullmatch(text):
        return _decimal(text)
    if _BASED.fullmatch(text):
        return _bounded(text, int(text, 0)) if len(text) <= 32 else _bounded(text, MAX_INTEGER + 1)
    if _FLOAT.fullmatch(text):
        return _finite(text)
    if _NOT_FINITE.fullmatch(text):
        raise ScalarError(f"{text} is not a finite number", "write a finite number, or quote it to mean text")
    return text


def _decimal(text: str) -> int:
    digits = text.lstrip("+-")
    if len(digits) > 1 and digits[0] == "0":
        # Readers of YAML 1.1 take 017 for octal 15, readers of YAML 1.2 for 17: neither is safe to pick.
        raise ScalarError(
            f"{_short(text)} can be read as octal or as decimal",
            f"write {_short(digits.lstrip('0') or '0')}, or quote it to mean text",
        )
    # Converting the digits takes quadratic time: the length decides first.
    return _bounded(text, int(text) if len(digits) <= 20 else MAX_INTEGER + 1)


def _bounded(text: str, value: int) -> int:
    if abs(value) > MAX_INTEGER:
        raise ScalarError(f"the number {_short(text)} is too large", f"integers go up to {MAX_INTEGER}")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ScalarError(f"the number {_short(text)} is too large", "write a number below 1.8e308")
    return value


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:20]}... ({len(text)} characters)"
