"""From a verb's function to a Typer command: the common options, and every way in which a call can end."""

from __future__ import annotations

import contextlib
import gc
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

from surgery.cli.call import Call, Common
from surgery.cli.complete import plugin_names
from surgery.cli.errors import BROKEN_PIPE, exit_code, report

__all__ = ["as_command", "as_root"]

_Plugin = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="NAME",
        help="Load this plugin even where SURGERY_DISABLE_PLUGIN_AUTOLOAD=1 is set. Repeatable.",
        autocompletion=plugin_names,
        show_default=False,
    ),
]
_NoPlugin = Annotated[
    list[str] | None,
    typer.Option(
        "--no-plugin",
        metavar="NAME",
        help="Do not load this plugin. Repeatable.",
        autocompletion=plugin_names,
        show_default=False,
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Answer in JSON on stdout; errors are JSON on stderr.")]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="The answer only: no progress, notes or next step.")]
_Debug = Annotated[
    bool,
    typer.Option("--debug", envvar="SURGERY_DEBUG", show_envvar=False, help="Show the traceback of an error."),
]


def _options(
    plugin: _Plugin = None,
    no_plugin: _NoPlugin = None,
    json: _Json = False,
    quiet: _Quiet = False,
    debug: _Debug = False,
) -> Common:
    return Common(tuple(plugin or ()), tuple(no_plugin or ()), json, quiet, debug)


_SHARED = [
    parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    for parameter in inspect.signature(_options, eval_str=True).parameters.values()
]
_CONTEXT = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)


def as_command(verb: Callable[..., None], *, is_brief: bool = False) -> Callable[..., None]:
    """Return what Typer needs for `verb`, whose first parameter is the `Call` and whose others are its own options.

    A verb that is not brief runs with Python's garbage collector, which the console script starts without.
    """

    def command(ctx: typer.Context, **given: Any) -> None:
        if not is_brief:
            gc.enable()
        common = (ctx.obj if isinstance(ctx.obj, Common) else Common()) | _take_common(given)
        _run(verb, common, given)

    _, *own = inspect.signature(verb, eval_str=True).parameters.values()
    command.__doc__ = verb.__doc__
    return _signed(command, own)


def as_root(root: Callable[..., None]) -> Callable[..., None]:
    """Return the callback of the whole program: it keeps the common options that stand before the verb."""

    def callback(ctx: typer.Context, **given: Any) -> None:
        ctx.obj = _take_common(given)
        root(**given)

    callback.__doc__ = root.__doc__
    return _signed(callback, list(inspect.signature(root, eval_str=True).parameters.values()))


def _signed(function: Callable[..., None], own: Iterable[inspect.Parameter]) -> Callable[..., None]:
    parameters = [_CONTEXT, *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own), *_SHARED]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return function


def _take_common(given: dict[str, Any]) -> Common:
    return _options(**{parameter.name: given.pop(parameter.name) for parameter in _SHARED})


def _run(verb: Callable[..., None], common: Common, given: dict[str, Any]) -> None:
    call = Call(common, sys.stdout, sys.stderr)
    try:
        # Whatever a library or a plugin prints, stdout holds the answer only.
        with contextlib.redirect_stdout(sys.stderr):
            verb(call, **given)
        call.out.flush()
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it ends; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), call.out.fileno())
        raise typer.Exit(BROKEN_PIPE) from None
    except (Exception, KeyboardInterrupt) as error:
        with contextlib.suppress(OSError):  # the exit code tells it where stderr cannot
            if common.debug:
                traceback.print_exception(error, file=call.err)
            report(error, call.err, as_json=common.json)
        raise typer.Exit(exit_code(error)) from None
