"""Bias-only tuning (BitFit, Ben Zaken et al. 2021, arXiv 2106.10199): every existing bias, LayerNorm's included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from surgery import AdapterType, Options, Site, Work, hookimpl

if TYPE_CHECKING:
    import torch

    from surgery import Adapter


class BiasOnly(AdapterType[Options]):
    """The biases that the model has; it gets no new ones."""

    name = "bias-only"
    summary = "BitFit: train the biases that exist, and nothing else"
    joins_parts = True
    takes_routers = True

    def claims(self, site: Site) -> bool:
        # A weight of experts has a bias for each of them: (experts, fan_out).
        return site.parameter == "bias" or (len(site.shape) <= 2 and site.parameter.endswith("bias"))

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
    return [BiasOnly()]
