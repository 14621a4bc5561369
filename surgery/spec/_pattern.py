"""Regular expressions from strangers: bounded in size before they are compiled, and in time when they match."""

from __future__ import annotations

from functools import lru_cache

import regex

from surgery.errors import SpecError
from surgery.spec._pattern_scan import PatternError, scan
from surgery.spec._quote import quoted

__all__ = ["MATCH_SECONDS", "Pattern", "compile_pattern"]

MATCH_SECONDS = 0.05


class Pattern:
    """A regular expression that must match a whole name, within 50 ms. Made by `compile_pattern`."""

    __slots__ = ("_compiled", "text")

    def __init__(self, text: str, compiled: regex.Pattern[str]) -> None:
        self.text = text
        self._compiled = compiled

    def fullmatch(self, text: str) -> bool:
        """Return whether the whole of `text` matches.

        Raises:
            SpecError: the match took longer than 50 ms (catastrophic backtracking).
        """
        try:
            return self._compiled.fullmatch(text, timeout=MATCH_SECONDS) is not None
        except TimeoutError:
            raise SpecError(
                f"the pattern {quoted(self.text, 60)} took more than {MATCH_SECONDS * 1000:.0f} ms "
                f"on {quoted(text, 60)}",
                hint="simplify it: avoid a repeat inside a repeat such as (a+)+ and alternatives that overlap",
            ) from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and self.text == other.text

    def __hash__(self) -> int:
        return hash((Pattern, self.text))

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return (compile_pattern, (self.text,))


@lru_cache(maxsize=4096)
def compile_pattern(text: str) -> Pattern:
    """Compile a regular expression that `Pattern.fullmatch` applies to whole names.

    Raises:
        SpecError: the pattern is not valid, too long, or uses a construct whose cost cannot be bounded.
    """
    try:
        scan(text)
        return Pattern(text, regex.compile(text, regex.VERSION0))
    except PatternError as problem:
        raise _spec_error(text, problem.what, problem.position, problem.hint) from None
    except regex.error as error:
        position = getattr(error, "pos", None) or 0
        reason = getattr(error, "msg", str(error))
        raise _spec_error(text, reason, position, "put \\ before a character that is meant literally") from None
    except (RecursionError, MemoryError, OverflowError, ValueError, KeyError, IndexError) as error:
        raise _spec_error(text, f"it cannot be compiled ({type(error).__name__})", 0, "simplify it") from None


def _spec_error(text: str, reason: str, position: int, hint: str) -> SpecError:
    what = f"not a usable regular expression: {reason} at character {position + 1} of {quoted(text, 60)}"
    return SpecError(what, hint=hint)
