"""An adapter type: the name, the options, and the decisions that need no tensor. Importing it must not import torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from surgery.adapter.work import Work
from surgery.architecture import Site
from surgery.spec import Options

if TYPE_CHECKING:
    import torch

    from surgery.adapter.module import Adapter

__all__ = ["AdapterType"]

OptionsT = TypeVar("OptionsT", bound=Options)


class AdapterType(ABC, Generic[OptionsT]):
    """What a plugin registers. Subclasses set the class variables and implement the four methods.

    Attributes:
        name: what a rule's `adapter:` says.
        summary: one line for `surgery plugins`.
        options: the Pydantic model of the keys that may stand beside `adapter:` in a rule.
        joins_parts: whether the parts of a fused parameter are adapted as one where a rule wins them all.
        takes_routers: whether a wide rule gives it the routers of experts, too. Else a rule must name them: a change of
            the routing is not what someone means who adapts "all linear weights".
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    options: ClassVar[type[Options]] = Options
    joins_parts: ClassVar[bool] = False
    takes_routers: ClassVar[bool] = False

    @abstractmethod
    def claims(self, site: Site) -> bool:
        """Return whether this adapter adapts `site` when a rule's patterns match it."""

    def companions(self, site: Site, options: OptionsT, available: Collection[str]) -> tuple[str, ...]:
        """Return names of further parameters of the same host that `fold` changes (LoRA's optional bias).

        Args:
            site: the site.
            options: validated options.
            available: names of the host's other parameters. Naming one that is not there is the user's error.
        """
        return ()

    @abstractmethod
    def parameters(self, site: Site, options: OptionsT) -> int:
        """Return how many trainable numbers `build` will make for `site`."""

    def trainable_dtype(self, site: Site) -> str:
        """Return the dtype of the trainable numbers: the site's own, but at least float32 unless overridden."""
        return site.dtype if site.dtype == "float64" else "float32"

    @abstractmethod
    def build(
        self, site: Site, options: OptionsT, pristine: Mapping[str, torch.Tensor], generator: torch.Generator
    ) -> Adapter:
        """Make the module that owns the trainable tensors of one edit.

        Args:
            site: the edited site.
            options: validated options.
            pristine: the site's parameter and its companions by local name; matrices are (fan_out, fan_in) whatever
                the host stores; parts of fused weights are cut out. Each look-up is a copy of the caller's own.
            generator: a CPU generator seeded from (seed, site) alone. Every random draw must come from it, in `build`.
        """

    def work(self, site: Site, options: OptionsT) -> Work | None:
        """Return what the adapter computes in a training step, for cost models; None where it cannot be said so."""
        return None

    def defaults(self) -> Mapping[str, Any]:
        """Return options that `surgery.testing` uses where the type has required ones."""
        return {}
