"""Asking an adapter type: what it raises, and answers that are none, become errors that name who supplied it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from surgery.adapter import AdapterType, Work
from surgery.architecture import Site
from surgery.errors import PluginError, SurgeryError
from surgery.planning.inventory import DTYPE_BYTES
from surgery.registry import Registry
from surgery.spec import Options

__all__ = ["Asked"]


class Asked:
    """The adapter type called `name`, for plans: its answers are checked.

    Every method raises PluginError where the adapter type fails.
    """

    def __init__(self, name: str, registry: Registry) -> None:
        self._kind: AdapterType[Any] = registry.adapter(name)
        self.name = name
        self.joins_parts = self._kind.joins_parts
        self.takes_routers = self._kind.takes_routers
        self._registry = registry

    def claims(self, site: Site) -> bool:
        try:
            return bool(self._kind.claims(site))
        except Exception as error:
            raise self._failed("claims", site, error) from error

    def parameters(self, site: Site, options: Options) -> int:
        try:
            count = self._kind.parameters(site, options)
        except Exception as error:
            raise self._failed("parameters", site, error) from error
        if type(count) is not int or count < 0:
            raise self._refused("parameters", site, "a number of parameters", count)
        return count

    def trainable_dtype(self, site: Site) -> str:
        try:
            name = self._kind.trainable_dtype(site)
        except Exception as error:
            raise self._failed("trainable_dtype", site, error) from error
        if not isinstance(name, str) or name not in DTYPE_BYTES:
            raise self._refused("trainable_dtype", site, "the name of a dtype, such as 'float32'", name)
        return name

    def companions(self, site: Site, options: Options, available: Collection[str]) -> tuple[str, ...]:
        try:
            names = self._kind.companions(site, options, available)
        except Exception as error:
            raise self._failed("companions", site, error) from error
        if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
            raise self._refused("companions", site, "a tuple of names", names)
        return tuple(names)

    def work(self, site: Site, options: Options) -> Work | None:
        try:
            told = self._kind.work(site, options)
        except Exception as error:
            raise self._failed("work", site, error) from error
        if told is not None and not isinstance(told, Work):
            raise self._refused("work", site, "a Work or None", told)
        return told

    def _failed(self, method: str, site: Site, error: Exception) -> SurgeryError:
        if isinstance(error, SurgeryError):  # the plugin's own words, for the user
            return error
        what = f"{method} failed: {type(error).__name__}: {error}"
        return self._registry.failure("adapter", self.name, what, site.key)

    def _refused(self, method: str, site: Site, wanted: str, got: object) -> PluginError:
        return self._registry.failure("adapter", self.name, f"{method} must return {wanted}, not {got!r}", site.key)
