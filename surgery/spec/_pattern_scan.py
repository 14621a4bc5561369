"""A first look at a regular expression that bounds what compiling it can cost.

The `regex` package unrolls counted repeats, so `a{999999999}` alone takes all memory; its matcher can be timed out, its
compiler cannot. The scan therefore admits a plain dialect only, whose compiled size it computes on the way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from surgery.spec._quote import quoted

__all__ = ["MAX_LENGTH", "PatternError", "scan"]

MAX_LENGTH = 512
MAX_UNROLLED = 1000
MAX_DEPTH = 20

_COUNT = re.compile(r"\{(?:(\d{1,9})(?:,(\d{0,9}))?|,(\d{1,9}))\}")
_GROUP = re.compile(r"\((?:\?(?::|=|!|>|<=|<!|P?<[A-Za-z_]\w{0,31}>|[ias]{1,3}:))?")
_FLAGS = re.compile(r"\(\?[ias]{1,3}\)")
_ESCAPED = frozenset("dDwWsSbBAZntr123456789")


class PatternError(ValueError):
    """What the scan refuses: the reason, the position (0-based) and what to write instead."""

    def __init__(self, what: str, position: int, hint: str) -> None:
        super().__init__(what)
        self.what, self.position, self.hint = what, position, hint


@dataclass
class _Group:
    """The sizes of one open group: all it holds so far, and its last item (which a repeat would multiply)."""

    opened: int
    size: int = 1
    last: int = 0


def scan(text: str) -> None:
    """Walk through `text` once and raise `PatternError` for what cannot be bounded."""
    if not text:
        raise PatternError("it is empty and matches nothing", 0, "write .* to match every name")
    if len(text) > MAX_LENGTH:
        raise PatternError(
            f"it has {len(text)} characters, more than {MAX_LENGTH},", MAX_LENGTH, "split the rule into several"
        )
    open_groups = [_Group(0)]
    at = 0
    while at < len(text):
        at = _step(text, at, open_groups)
        if open_groups[-1].size > MAX_UNROLLED:
            raise PatternError(
                f"its counted repeats unroll to more than {MAX_UNROLLED} items", at - 1, "use + or * instead of a count"
            )
    if len(open_groups) > 1:
        raise PatternError("a ( is never closed", open_groups[-1].opened, "add ) or write \\( for a literal bracket")


def _step(text: str, at: int, groups: list[_Group]) -> int:
    char = text[at]
    if char == "(":
        return _open(text, at, groups)
    if char == ")":
        return _close(at, groups)
    if char == "{":
        return _repeat(text, at, groups[-1])
    if char == "\\":
        return _escape(text, at, groups[-1])
    if char == "[":
        return _set(text, at, groups[-1])
    if char not in "*+?|":
        _add(groups[-1], 1)
    return at + 1


def _add(group: _Group, size: int) -> None:
    group.size += size
    group.last = size


def _open(text: str, at: int, groups: list[_Group]) -> int:
    if flags := _FLAGS.match(text, at):
        return flags.end()
    opening = _GROUP.match(text, at)
    if opening is None or text.startswith("?", opening.end()):
        raise PatternError(
            f"the group {quoted(text[at : at + 4])} is not supported",
            at,
            "use ( ), (?: ), (?= ), (?! ), (?<= ), (?<! ) or (?i)",
        )
    if len(groups) > MAX_DEPTH:
        raise PatternError(f"its brackets are nested more than {MAX_DEPTH} deep", at, "split the rule into several")
    groups.append(_Group(at))
    return opening.end()


def _close(at: int, groups: list[_Group]) -> int:
    if len(groups) == 1:
        raise PatternError("a ) was never opened", at, "remove it or write \\) for a literal bracket")
    inner = groups.pop()
    _add(groups[-1], inner.size)
    return at + 1


def _repeat(text: str, at: int, group: _Group) -> int:
    count = _COUNT.match(text, at)
    if count is None:
        # Everything else in braces is fuzzy matching in the regex package: unbounded in cost, and never meant here.
        raise PatternError("a { does not start a repeat such as {2} or {1,3}", at, "write \\{ for a literal brace")
    most = max(int(number or 0) for number in count.groups())
    # Nothing before it is still counted as one item, whatever the regex package makes of that.
    group.last = max(group.last, 1)
    group.size += group.last * max(most - 1, 0)
    group.last *= max(most, 1)
    return count.end()


def _escape(text: str, at: int, group: _Group) -> int:
    char = text[at + 1 : at + 2]
    if not char:
        raise PatternError("it ends in a single \\", at, "write \\\\ for a literal backslash")
    if char.isalnum() and char not in _ESCAPED:
        raise PatternError(
            f"the escape '\\{char}' is not supported", at, "use \\d, \\w, \\s, \\b or \\ before a symbol"
        )
    _add(group, 1)
    return at + 2


def _set(text: str, at: int, group: _Group) -> int:
    end = at + 1
    if text.startswith("^", end):
        end += 1
    if text.startswith("]", end):
        end += 1
    while end < len(text) and text[end] != "]":
        if text[end] == "\\" and text[end + 1 : end + 2].isalnum() and text[end + 1] not in _ESCAPED:
            raise PatternError(
                f"the escape {quoted(text[end : end + 2])} is not supported", end, "write the character itself"
            )
        end += 2 if text[end] == "\\" else 1
    if end >= len(text):
        raise PatternError("a [ is never closed", at, "add ] or write \\[ for a literal bracket")
    _add(group, 1)
    return end + 1
