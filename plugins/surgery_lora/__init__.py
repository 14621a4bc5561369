"""LoRA: W + scale * B A with A (rank, fan_in) and B (fan_out, rank), Hu et al. 2021, arXiv 2106.09685."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from surgery import AdapterType, Options, Site, Work, hookimpl

if TYPE_CHECKING:
    import torch

    from surgery import Adapter


class LoraOptions(Options):
    """What a rule with `adapter: lora` may say."""

    rank: int = Field(gt=0, le=2**20, description="rank of the update")
    alpha: float = Field(default=16.0, gt=0, le=1e9, description="the update is scaled by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the adapter's input while training")
    init: Literal["kaiming", "gaussian", "orthogonal", "zeros"] = Field(
        default="kaiming", description="how A starts; B starts at zero, so the first output is the base's"
    )
    init_std: float = Field(default=0.02, gt=0, description="standard deviation of A for `init: gaussian`")
    rslora: bool = Field(default=False, description="scale by alpha / sqrt(rank), arXiv 2312.03732")
    bias: bool = Field(default=False, description="also train a bias on the update (needs a host with a bias)")
    experts: Literal["separate", "shared"] = Field(
        default="separate", description="in a weight of experts: A and B for each expert, or one pair for all"
    )

    @property
    def scale(self) -> float:
        """Return alpha / rank, or alpha / sqrt(rank) with rslora."""
        return float(self.alpha / (self.rank**0.5 if self.rslora else self.rank))


class Lora(AdapterType[LoraOptions]):
    """Low-rank updates of linear maps and embeddings."""

    name = "lora"
    summary = "low-rank update W + alpha/rank * B A of linear weights and embeddings"
    options = LoraOptions

    def claims(self, site: Site) -> bool:
        return site.is_matrix or bool(site.experts)

    def companions(self, site: Site, options: LoraOptions, available: Collection[str]) -> tuple[str, ...]:
        return ("bias",) if options.bias else ()

    def parameters(self, site: Site, options: LoraOptions) -> int:
        pairs = site.experts if site.experts and options.experts == "separate" else 1
        return pairs * options.rank * (site.fan_in + site.fan_out) + (site.fan_out if options.bias else 0)

    def work(self, site: Site, options: LoraOptions) -> Work | None:
        return None if options.bias else Work(rank=options.rank, dropout=options.dropout)

    def build(
        self, site: Site, options: LoraOptions, pristine: Mapping[str, torch.Tensor], generator: torch.Generator
    ) -> Adapter:
        from surgery_lora.module import LoraAdapter

        return LoraAdapter(site, options, generator)

    def defaults(self) -> Mapping[str, Any]:
        return {"rank": 2}


@hookimpl
def surgery_adapters() -> list[AdapterType[Any]]:
    return [Lora()]
