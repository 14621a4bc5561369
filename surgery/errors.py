"""Every error a user can cause, in one shape: what went wrong, where, and what to type next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "CheckpointError",
    "DataError",
    "DiskError",
    "DriftError",
    "PlanError",
    "PluginError",
    "Problem",
    "SpecError",
    "StateError",
    "SurgeryError",
    "TrainingError",
    "nearest",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding: `what` went wrong, `where` (file:line:col, site, file), and a `hint` that says what to do."""

    what: str
    where: str = ""
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  hint: {self.hint}" if self.hint else text


class SurgeryError(Exception):
    """A mistake of the user or of the outside world, told without a traceback.

    Attributes:
        problems: one or more `Problem`; everything found at once, never only the first.
        exit_code: what the console script exits with.
    """

    exit_code = 1

    def __init__(self, what: str, where: str = "", hint: str = "", *, problems: Sequence[Problem] = ()) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems) or (Problem(what, where, hint),)
        super().__init__(what, where, hint)

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> SurgeryError:
        """Build one error that carries all `problems` (at least one)."""
        first = problems[0]
        return cls(first.what, first.where, first.hint, problems=problems)

    @property
    def what(self) -> str:
        return self.problems[0].what

    @property
    def where(self) -> str:
        return self.problems[0].where

    @property
    def hint(self) -> str:
        return self.problems[0].hint

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)

    def __reduce__(self) -> tuple[object, ...]:
        # The default reduction forgets keyword-only arguments; worker processes must hand back every problem.
        return (_rebuild, (type(self), self.problems))


def _rebuild(cls: type[SurgeryError], problems: Sequence[Problem]) -> SurgeryError:
    return cls.of(problems)


class SpecError(SurgeryError):
    """A spec that cannot be read or does not say what it must (exit code 3)."""

    exit_code = 3


class PlanError(SurgeryError):
    """A spec that does not fit the model (exit code 4)."""

    exit_code = 4


class PluginError(SurgeryError):
    """A plugin that is missing, broken, misspelt, or clashes with another (exit code 5)."""

    exit_code = 5


class StateError(SurgeryError):
    """An act that the present state does not allow, such as unmerging what is not merged (exit code 6)."""

    exit_code = 6


class DriftError(StateError):
    """Somebody else changed a class, a pointer or a bit since the operation began (exit code 7)."""

    exit_code = 7


class CheckpointError(SurgeryError):
    """A file or folder of weights that is missing, damaged, or belongs to something else (exit code 8)."""

    exit_code = 8


class DiskError(CheckpointError):
    """A disk that is full, read-only, forbidden or failing (exit code 11)."""

    exit_code = 11


class DataError(SurgeryError):
    """Training or evaluation data that cannot be used (exit code 9)."""

    exit_code = 9


class TrainingError(SurgeryError):
    """A run that cannot start, go on, or be resumed (exit code 10)."""

    exit_code = 10


def nearest(word: str, known: Iterable[str], limit: int = 3) -> str:
    """Return a hint that names the entries of `known` nearest to `word`, or all of them when there are few.

    >>> nearest("rnak", ["rank", "alpha"])
    "did you mean 'rank'?"
    """
    choices = sorted(set(known))
    close = difflib.get_close_matches(word, choices, n=limit, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    if not choices:
        return ""
    if len(choices) <= 12:
        return "known: " + ", ".join(choices)
    return f"known: {', '.join(choices[:12])}, and {len(choices) - 12} more"
