"""House language: each kind of finding as a sentence that names the key, what it must be, and what it is."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

from pydantic_core import ErrorDetails

from surgery.errors import nearest
from surgery.spec._quote import quoted

__all__ = ["Words", "alternatives", "describe"]

_Said = tuple[str, str]
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'")
_NUMBER = re.compile(r"[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def describe(value: Any) -> str:
    """Return what `value` is, as the user would call it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        shown = repr(value)
        return shown if len(shown) <= 40 else "a number that is too large"
    if isinstance(value, str):
        return f"the text {quoted(value)}" if value else "an empty text"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    return "a mapping" if isinstance(value, dict) else f"a {type(value).__name__}"


def alternatives(spoken: Sequence[_Said], got: str) -> _Said:
    """Join what the branches of a union say: `must be a number or text, not a list`."""
    wanted = [re.search(r" must be (.*?)(?:, not .*)?$", what) for what, _ in spoken]
    if not all(wanted):
        return spoken[0]
    names = list(dict.fromkeys(match.group(1) for match in wanted if match))
    label = spoken[0][0].partition(" must be ")[0]
    return f"{label} must be {' or '.join(names)}, not {got}", next((hint for _, hint in spoken if hint), "")


class Words:
    """One error of Pydantic's, to be put into words."""

    def __init__(self, error: ErrorDetails, path: tuple[str | int, ...], about_key: bool) -> None:
        self._kind: str = error["type"]
        self._context: dict[str, Any] = error.get("ctx") or {}
        self._value = error.get("input")
        self._message = error["msg"]
        self._path = path
        self._about_key = about_key

    def spoken(self) -> _Said:
        """Return the sentence and the hint."""
        if self._about_key and self._kind == "literal_error":
            return self._unknown(_QUOTED.findall(str(self._context.get("expected", ""))))
        if self._about_key and self._kind not in ("unknown_key", "extra_forbidden"):
            return f"the key {quoted(self._last)} is not accepted", ""
        say = _SAYINGS.get(self._kind)
        return say(self) if say is not None else self._fallback()

    @property
    def _last(self) -> str:
        return str(self._path[-1]) if self._path else ""

    @property
    def label(self) -> str:
        """The key as it stands in the file, with the position in its list."""
        index = ""
        for step in reversed(self._path):
            if isinstance(step, str):
                return step + index
            index = f"[{step}]{index}"
        return "the document" + index

    def must_be(self, wanted: str, hint: str = "") -> _Said:
        """Say what the value must be, and what it is."""
        return f"{self.label} must be {wanted}, not {describe(self._value)}", hint

    def whole_number(self) -> _Said:
        return self.must_be("a whole number", self._number_hint())

    def number(self) -> _Said:
        return self.must_be("a number", self._number_hint())

    def finite(self) -> _Said:
        return self.must_be("a finite number")

    def boolean(self) -> _Said:
        words = {"yes": "true", "on": "true", "no": "false", "off": "false", "true": "true", "false": "false"}
        meant = words.get(self._value.lower()) if isinstance(self._value, str) else None
        return self.must_be("true or false", f"write {meant}" if meant else "")

    def text(self) -> _Said:
        hint = f'write "{describe(self._value)}" in quotes' if isinstance(self._value, bool | int | float) else ""
        return self.must_be("text", hint)

    def list(self) -> _Said:
        return self.must_be("a list", "write [ ] around it" if isinstance(self._value, str | int | float) else "")

    def mapping(self) -> _Said:
        return self.must_be("a mapping", "write its keys below it, indented, as key: value")

    def choice(self) -> _Said:
        names = _QUOTED.findall(str(self._context.get("expected", "")))
        if not names:
            return self.must_be(str(self._context.get("expected", "one of the known values")))
        hint = nearest(self._value, names) if isinstance(self._value, str) else ""
        return self.must_be(_any_of(names), hint if hint.startswith("did") else "")

    def missing(self) -> _Said:
        return f"key {self._last!r} is missing", self._misspelt() or f"add {self._last}: with a value"

    def _misspelt(self) -> str:
        """Where a plugin's options are not known yet, a core key misspelt ends up among them."""
        options = self._value.get("options") if isinstance(self._value, dict) else None
        close = difflib.get_close_matches(self._last, list(options or ())[:200], n=1, cutoff=0.75)
        return f"is {close[0]!r} meant to be {self._last!r}?" if close else ""

    def unknown(self) -> _Said:
        if hint := self._context.get("hint"):
            return f"unknown key {self._last!r}", str(hint)
        return self._unknown(self._context.get("known", ()))

    def _unknown(self, known: Sequence[str]) -> _Said:
        return f"unknown key {quoted(self._last)}", nearest(self._last, known)

    def bound(self) -> _Said:
        """Say a bound; a strict bound of an integer as the next one, as people count."""
        limit = self._context[_BOUNDS[self._kind][0]]
        words = _BOUNDS[self._kind][1]
        if type(limit) is int and self._kind == "greater_than":
            limit, words = limit + 1, "at least"
        elif type(limit) is int and self._kind == "less_than":
            limit, words = limit - 1, "at most"
        shown = int(limit) if isinstance(limit, float) and limit.is_integer() and abs(limit) < 1e15 else limit
        return self.must_be(f"{words} {shown}")

    def length(self) -> _Said:
        few = "min_length" in self._context
        limit = self._context["min_length" if few else "max_length"]
        unit = "character" if self._kind.startswith("string") else "item"
        words = "at least" if few else "at most"
        return f"{self.label} must have {words} {limit} {unit}{'' if limit == 1 else 's'}", ""

    def said(self) -> _Said:
        what, hint = str(self._context["what"]), str(self._context.get("hint", ""))
        return (f"{self.label} {what}" if what.startswith(_VERBS) else what), hint

    def value(self) -> _Said:
        """A validator of a plugin's author raised: its own words, after the key if they begin with a verb.

        Otherwise without the key, which the place in front of them ends with.
        """
        what = str(self._context.get("error", "")) or self._message
        return (f"{self.label} {what}" if what.startswith(_VERBS) else what), ""

    def _fallback(self) -> _Said:
        what = re.sub(r"^Input should (?:be )?", "must be ", self._message)
        return (
            f"{self.label} {what}" if what.startswith(_VERBS) else f"{self.label}: {what[:1].lower()}{what[1:]}"
        ), ""

    def _number_hint(self) -> str:
        if self._value is None:
            return "write a number, or leave the key out if it has a default"
        if isinstance(self._value, str) and _NUMBER.fullmatch(self._value):
            return f"write {self._value.replace('_', '')} without quotes"
        return ""


_VERBS = ("must ", "is ", "has ", "needs ", "cannot ", "may ")
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
    "multiple_of": ("multiple_of", "a multiple of"),
}


def _any_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


_SAYINGS: dict[str, Callable[[Words], _Said]] = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), Words.whole_number),
    **dict.fromkeys(("float_type", "float_parsing", "decimal_type"), Words.number),
    "finite_number": Words.finite,
    **dict.fromkeys(("bool_type", "bool_parsing"), Words.boolean),
    **dict.fromkeys(("string_type", "string_unicode", "path_type"), Words.text),
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "frozen_set_type", "iterable_type"), Words.list),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "model_attributes_type"), Words.mapping),
    **dict.fromkeys(("literal_error", "enum"), Words.choice),
    "missing": Words.missing,
    **dict.fromkeys(("unknown_key", "extra_forbidden"), Words.unknown),
    **dict.fromkeys(tuple(_BOUNDS), Words.bound),
    **dict.fromkeys(("too_short", "too_long", "string_too_short", "string_too_long"), Words.length),
    "said": Words.said,
    **dict.fromkeys(("value_error", "assertion_error"), Words.value),
}
