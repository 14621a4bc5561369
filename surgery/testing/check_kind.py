"""The part of an adapter type's contract that needs no tensor: name, options, import, claims and counts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from surgery.adapter import AdapterType
from surgery.architecture import Site
from surgery.errors import PluginError, SpecError
from surgery.planning import sites
from surgery.registry import Provenance, check_adapter_type
from surgery.spec import Options, Rule
from surgery.testing.toy import ToyModel, toy_registry

__all__ = ["check_kind"]

_ROUNDS = 5
_IMPORTS_TORCH = 3
# Runs in a process of its own. A module that only this process can find (a notebook's, say) is not judged: no entry
# point could name it either.
_IMPORT = """
import importlib, sys
sys.path[:] = {path!r}
try:
    importlib.import_module({module!r})
except ModuleNotFoundError as error:
    if error.name is None or not ({module!r} + ".").startswith(error.name + "."):
        raise
sys.exit({imports_torch} if "torch" in sys.modules else 0)
"""


def check_kind(kind: AdapterType[Any], options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Check what can be checked without building anything, and return the options to go on with."""
    assert not isinstance(kind, type), f"give an instance, not the class: check_adapter({kind.__name__}())"
    assert isinstance(kind, AdapterType), f"give an instance of an AdapterType, not {kind!r}"
    try:
        check_adapter_type(kind, Provenance(kind.name, "the plugin under test", ""))
    except PluginError as error:
        raise AssertionError(str(error)) from None
    _check_import(type(kind).__module__)
    chosen = dict(kind.defaults() if options is None else options)
    bound = _bound(kind, chosen, is_default=options is None)
    _check_counts(kind, bound, _check_claims(kind))
    return chosen


def _check_import(module: str) -> None:
    """Plans are made from file headers without importing torch; the plugin's module must not import it either."""
    if module == "__main__" or not getattr(sys.modules.get(module), "__file__", None):
        return
    code = _IMPORT.format(path=sys.path, module=module, imports_torch=_IMPORTS_TORCH)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != _IMPORTS_TORCH, (
        f"importing {module} imports torch: keep the AdapterType in a module without it, and import it in build"
    )
    assert done.returncode == 0, f"importing {module} in a new process fails:\n{done.stderr}"


def _check_claims(kind: AdapterType[Any]) -> list[Site]:
    """Return the sites of the toy model that the type claims, the same ones each time it is asked."""
    found = sites(ToyModel(), toy_registry(kind))
    answers = [[site for site in found if kind.claims(site)] for _ in range(_ROUNDS)]
    assert all(answer == answers[0] for answer in answers), (
        "claims() answers otherwise when it is asked again: it must depend on the site alone"
    )
    assert answers[0], "claims() accepts no site of the toy model, which has every kind of host but 'other'"
    return answers[0]


def _bound(kind: AdapterType[Any], chosen: Mapping[str, Any], *, is_default: bool) -> Options:
    try:
        return toy_registry(kind).bind(Rule(target=".*", adapter=kind.name, **chosen), "")
    except SpecError as error:
        if not is_default:  # the caller's own options: the message says which
            raise
        raise AssertionError(
            f"the options that defaults() returns, {dict(chosen)}, are not enough: {error.what}; "
            f"give check_adapter(kind, {{...}}) or implement defaults()"
        ) from None


def _check_counts(kind: AdapterType[Any], options: Options, claimed: list[Site]) -> None:
    for site in claimed:
        count: object = kind.parameters(site, options)
        assert isinstance(count, int), f"parameters() must return a whole number, not {count!r}, on {site.key}"
        assert count >= 0, f"parameters() must not be negative, as {count} is, on {site.key}"
