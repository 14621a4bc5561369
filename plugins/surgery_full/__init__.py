"""Full tuning as an adapter: the trainable tensor is a copy of the parameter, so the base stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from surgery import AdapterType, Options, Site, Work, hookimpl

if TYPE_CHECKING:
    import torch

    from surgery import Adapter


class Full(AdapterType[Options]):
    """Every number of every matched parameter."""

    name = "full"
    summary = "full tuning: every number of the matched parameters, the baseline of comparisons"
    joins_parts = True
    takes_routers = True

    def claims(self, site: Site) -> bool:
        return True

    def parameters(self, site: Site, options: Options) -> int:
        return site.size

    def trainable_dtype(self, site: Site) -> str:
        return site.dtype

    def work(self, site: Site, options: Options) -> Work:
        return Work(replaces=True)

    def build(
        self, site: Site, options: Options, pristine: Mapping[str, torch.Tensor], generator: torch.Generator
    ) -> Adapter:
        from surgery import ReplacementAdapter

        return ReplacementAdapter(site, pristine[site.parameter])


@hookimpl
def surgery_adapters() -> list[AdapterType[Any]]:
    return [Full()]
