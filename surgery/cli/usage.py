"""Mistakes in the command line itself: told as text with the usage, or as the JSON object that `--json` promises."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from surgery.cli.errors import report
from surgery.errors import SurgeryError

__all__ = ["Program", "UsageError"]

# Typer carries a click of its own in some versions and not in others; its public exceptions lead to the right one.
_Mistake: type[Exception] = typer.BadParameter.__bases__[0]


class UsageError(SurgeryError):
    """An unknown verb or option, a missing argument, a value that an option does not take."""

    exit_code = 2


class Program(TyperGroup):
    """The whole program, whose callers may have asked for JSON before it was known that they are mistaken."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **named: Any) -> NoReturn:
        words = list(sys.argv[1:] if args is None else args)
        if "--json" not in words:
            super().main(words, *more, **named)
            sys.exit(0)
        try:
            code = super().main(words, *more, **{**named, "standalone_mode": False})
        except _Mistake as mistake:
            context = getattr(mistake, "ctx", None)
            path = context.command_path if context is not None else "surgery"
            words_of = getattr(mistake, "format_message", mistake.__str__)
            error = UsageError(words_of().rstrip("."), path, f"{path} --help")
            report(error, sys.stderr, as_json=True)
            sys.exit(error.exit_code)
        sys.exit(code if isinstance(code, int) else 0)
