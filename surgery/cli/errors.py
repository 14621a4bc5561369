r"""How a call ends: errors as lines (or JSON) on stderr, and the exit code.

| code | what happened |
|---|---|
| 0 | done |
| 1 | an error of no kind below |
| 2 | the command line itself: an unknown verb or option, a missing argument |
| 3 | `SpecError`: a spec or study that cannot be read or does not say what it must |
| 4 | `PlanError`: a spec that does not fit the model |
| 5 | `PluginError`: a plugin that is missing, broken, misspelt, or clashes with another |
| 6 | `StateError`: an act that the present state does not allow, or a folder in use |
| 7 | `DriftError`: somebody else changed a model since the operation began |
| 8 | `CheckpointError`: a model, file or folder of weights that is missing, damaged, or another's |
| 9 | `DataError`: training or evaluation data that cannot be used |
| 10 | `TrainingError`: a run that cannot start, go on, or be resumed |
| 11 | `DiskError`: a disk that is full, read-only, forbidden or failing |
| 70 | a bug in surgery or in a plugin; `--debug` shows where |
| 130 | stopped by Ctrl-C |
| 141 | whoever read the output went away (`surgery schema \| head`) |

An error is `error: WHERE: WHAT` and, where there is a way out, `  hint: ...` in the line below; everything found at
once, one after the other. With `--json` stderr holds one object instead:
`{"error": {"exit_code": 3, "kind": "SpecError", "problems": [{"hint": "...", "what": "...", "where": "..."}]}}`.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from typing import TextIO

from surgery.cli.terminal import write_line
from surgery.errors import Problem, SurgeryError

__all__ = ["BROKEN_PIPE", "BUG", "INTERRUPTED", "exit_code", "report"]

BUG = 70
INTERRUPTED = 130
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
BROKEN_PIPE = 141


def exit_code(error: BaseException) -> int:
    """Return what the console script exits with after `error`."""
    if _is_interruption(error):
        return INTERRUPTED
    if isinstance(error, SurgeryError):
        return error.exit_code
    return SurgeryError.exit_code if _is_of_the_system(error) else BUG


def report(error: BaseException, stream: TextIO, *, as_json: bool = False) -> None:
    """Tell `error` on `stream`, never with a traceback."""
    problems = _problems(error)
    if as_json:
        told = [{"what": item.what, "where": item.where, "hint": item.hint} for item in problems]
        value = {"error": {"kind": type(error).__name__, "exit_code": exit_code(error), "problems": told}}
        stream.write(json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n")
        return
    for problem in problems:
        where = [(f"{problem.where}: ", "bold")] if problem.where else []
        write_line(stream, [("error: ", "bold red"), *where, (_indented(problem.what), "")])
        if problem.hint:
            write_line(stream, [("  hint: ", "cyan"), (_indented(problem.hint), "")])


def _problems(error: BaseException) -> Sequence[Problem]:
    if isinstance(error, SurgeryError):
        return error.problems
    if isinstance(error, KeyboardInterrupt):
        return [Problem("stopped by Ctrl-C")]
    if isinstance(error, OSError) and _is_of_the_system(error):
        return [Problem(f"the system says: {error.strerror}", str(error.filename or ""))]
    text = next(iter(str(error).strip().splitlines()), "")
    what = f"unexpected {type(error).__name__}{f': {text[:300]}' if text else ''}"
    return [Problem(what, hint="this is a bug: please report it with what --debug (or SURGERY_DEBUG=1) prints")]


def _is_of_the_system(error: BaseException) -> bool:
    """Whether a file or a disk is what is wrong: a name that is too long, a link in a circle, no space left."""
    return isinstance(error, OSError) and error.strerror is not None and (bool(error.filename) or error.errno in _FULL)


def _is_interruption(error: BaseException | None) -> bool:
    """Whether Ctrl-C is what began it: a layer that tells how to go on raises an error of its own in its place."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")
