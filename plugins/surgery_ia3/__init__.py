"""IA3: learned vectors that rescale what linear maps give or take, Liu et al. 2022, arXiv 2205.05638."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from surgery import AdapterType, Options, Site, hookimpl

if TYPE_CHECKING:
    import torch

    from surgery import Adapter


class Ia3Options(Options):
    """What a rule with `adapter: ia3` may say."""

    rescale: Literal["auto", "outputs", "inputs"] = Field(
        default="auto",
        description="auto: the inputs of mlp.down and of other roles that end in .down, else the outputs",
    )
    experts: Literal["separate", "shared"] = Field(
        default="separate", description="in a weight of experts: a vector for each expert, or one for all"
    )

    def scales_inputs(self, site: Site) -> bool:
        """Return whether the vector is on the inputs of `site`: there it meets the feed-forward's inner activations."""
        return self.rescale == "inputs" or (self.rescale == "auto" and site.role.endswith(".down"))


class Ia3(AdapterType[Ia3Options]):
    """One factor for each output (bias included) or input feature of a linear map; all start at one."""

    name = "ia3"
    summary = "learned vectors that rescale outputs (keys, values) or inputs (feed-forward) of linear weights"
    options = Ia3Options

    def claims(self, site: Site) -> bool:
        return bool(site.experts) or (site.is_matrix and site.host != "embedding")

    def companions(self, site: Site, options: Ia3Options, available: Collection[str]) -> tuple[str, ...]:
        # Experts' biases are parameters of the same module, called after the weight.
        bias = "bias" if site.parameter == "weight" else f"{site.parameter}_bias"
        return (bias,) if bias in available and not options.scales_inputs(site) else ()

    def parameters(self, site: Site, options: Ia3Options) -> int:
        vectors = site.experts if site.experts and options.experts == "separate" else 1
        return vectors * (site.fan_in if options.scales_inputs(site) else site.fan_out)

    def build(
        self, site: Site, options: Ia3Options, pristine: Mapping[str, torch.Tensor], generator: torch.Generator
    ) -> Adapter:
        from surgery_ia3.module import InputFactors, OutputFactors

        made = InputFactors if options.scales_inputs(site) else OutputFactors
        return made(site, self.parameters(site, options))


@hookimpl
def surgery_adapters() -> list[AdapterType[Any]]:
    return [Ia3()]
