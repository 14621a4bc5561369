"""Counts that depend on a configuration: `8`, `num_heads`, `num_heads + 2 * attn.kv_heads`. Data, never code."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeAlias

from surgery.errors import PluginError

__all__ = ["Count", "UnknownSettingError", "check_count", "count_of", "setting"]

Count: TypeAlias = int | str
"""A number, or an expression of configuration names, whole numbers, parentheses and + - * //; dots lead into parts."""

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}
_LONGEST = 200
_DEEPEST = 5


class UnknownSettingError(LookupError):
    """The configuration does not say what a count or a condition needs."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def check_count(count: Count, where: str) -> None:
    """Raise PluginError when `count` is neither a number nor such an expression."""
    if isinstance(count, bool) or not isinstance(count, int | str):
        raise PluginError(f"{count!r} is no count", where, "give a number, or an expression of configuration names")
    if isinstance(count, str):
        try:
            if len(count) > _LONGEST:
                raise ValueError(count)
            _refuse_code(_tree(count))
        except (SyntaxError, ValueError):
            hint = "write configuration names, whole numbers, parentheses and + - * //"
            raise PluginError(f"{count[:_LONGEST]!r} is no count", where, hint) from None


def count_of(count: Count, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> int:
    """Return the number that `count` is for a configuration.

    Args:
        count: see `Count`; checked before.
        settings: the configuration.
        defaults: what holds where the configuration says nothing (or null): values, or counts of their own.

    Raises:
        UnknownSettingError: a name that neither of them knows as a number.
        ZeroDivisionError: a division by a size of 0.
    """
    return count if isinstance(count, int) else _value(_tree(count), settings, defaults, _DEEPEST)


def setting(name: str, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> Any:
    """Return what the configuration says under `name`, else the default, else None.

    A name with dots, `attn_config.kv_heads`, is one of a part of the configuration.
    """
    first, *inner = name.split(".")
    said = settings.get(first)
    for part in inner:  # a part is a table in a file, and an object in a live configuration
        said = said.get(part) if isinstance(said, Mapping) else getattr(said, part, None)
    return defaults.get(name) if said is None else said


@lru_cache(maxsize=1024)
def _tree(text: str) -> ast.expr:
    return ast.parse(text.strip(), mode="eval").body


def _refuse_code(node: ast.expr) -> None:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        _refuse_code(node.left)
        _refuse_code(node.right)
    elif not _name(node) and not (isinstance(node, ast.Constant) and type(node.value) is int):
        raise ValueError(ast.dump(node))


def _name(node: ast.expr) -> str:
    """Return the name that a node is, dots included; "" where it is none."""
    if isinstance(node, ast.Attribute):
        outer = _name(node.value)
        return f"{outer}.{node.attr}" if outer else ""
    return node.id if isinstance(node, ast.Name) else ""


def _value(node: ast.expr, settings: Mapping[str, Any], defaults: Mapping[str, Any], depth: int) -> int:
    if isinstance(node, ast.BinOp):
        left, right = (_value(side, settings, defaults, depth) for side in (node.left, node.right))
        return _OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, int)
        return node.value
    name = _name(node)
    said = setting(name, settings, defaults)
    if isinstance(said, str) and depth:  # a default in terms of other settings
        return _value(_tree(said), settings, defaults, depth - 1)
    if isinstance(said, bool) or not isinstance(said, int):
        raise UnknownSettingError(name)
    return said
