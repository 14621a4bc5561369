"""Python that an author names on the command line: a plugin's module, or a function in one."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from surgery.errors import PluginError, nearest

__all__ = ["load_function", "load_module"]


def load_module(ref: str) -> ModuleType:
    """Import a module by its path (`mine.py`, a package's folder) or by its name, which is also looked for here.

    Raises:
        PluginError: there is none, or it cannot be imported.
    """
    path = Path(ref).expanduser()
    if path.is_dir():
        path = path / "__init__.py"
    try:
        if path.is_file():
            return _from_file(path)
        if path.suffix == ".py" or os.sep in ref:
            raise PluginError("there is no such file, or no package in this folder", ref, "name a .py file")
        with _here():
            return importlib.import_module(ref)
    except PluginError:
        raise
    except ModuleNotFoundError as error:
        if error.name is None or not (ref == error.name or ref.startswith(f"{error.name}.")):
            raise _failed(ref, error) from error
        installed = {entry.value.partition(":")[0]: entry.name for entry in entry_points(group="surgery")}
        near = nearest(ref, [*installed, *installed.values()])
        names = {entry: value for value, entry in installed.items()}
        hint = f"did you mean {names[ref]!r}?" if ref in names else near if near.startswith("did you") else ""
        raise PluginError(
            "there is no such module or file", ref, hint or "give an import path, a .py file, or a package's folder"
        ) from error
    except (Exception, SystemExit) as error:  # an author's module may raise anything, and even leave
        raise _failed(ref, error) from error


def load_function(ref: str) -> Callable[[], Any]:
    """Return the function that `MODULE:FUNCTION` names.

    Raises:
        PluginError: no such module, no such function in it, or a text of another form.
    """
    module, _, name = ref.rpartition(":")
    if not module or not name.isidentifier():
        raise PluginError("it must be MODULE:FUNCTION", ref, "for example my_models:build, or my_models.py:build")
    found = load_module(module)
    function = getattr(found, name, None)
    if not callable(function):
        known = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
        raise PluginError(f"{module} has no function {name!r}", ref, nearest(name, known))
    made: Callable[[], Any] = function
    return made


def _failed(ref: str, error: BaseException) -> PluginError:
    return PluginError(
        f"it cannot be imported: {type(error).__name__}: {error}", ref, "run it with python to see where"
    )


def _from_file(path: Path) -> ModuleType:
    is_package = path.name == "__init__.py"
    name = path.resolve().parent.name if is_package else path.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path.resolve()):
        return known
    if known is not None or not name.isidentifier():  # another module has the name
        name = f"surgery_checked_{abs(hash(str(path.resolve())))}"
    places = [str(path.resolve().parent)] if is_package else None
    spec = importlib.util.spec_from_file_location(name, path.resolve(), submodule_search_locations=places)
    if spec is None or spec.loader is None:
        raise PluginError("this is no Python file", str(path), "name a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _here() -> Iterator[None]:
    """The working folder, where `python -m` looks first and a console script does not."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
