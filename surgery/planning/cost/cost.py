"""What one training step of a plan costs, predicted from shapes: no weight is read and nothing is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from surgery.architecture import Site
from surgery.planning.asking import Asked
from surgery.planning.cost.hosts import hosts_of
from surgery.planning.cost.settings import settings_of
from surgery.planning.cost.tape import Tape
from surgery.planning.cost.unknown import Unknown
from surgery.planning.cost.walk import Batch, Walk
from surgery.planning.inventory import DTYPE_BYTES, Inventory
from surgery.planning.plan import Plan
from surgery.registry import Registry

__all__ = ["Cost", "known", "predict"]

_MIXED = "mixed precision keeps some results in another dtype than the weights"


@dataclass(frozen=True)
class Cost:
    """The cost of one optimizer step on one batch.

    Attributes:
        batch: its shape.
        parameters, trainable: numbers in the base model, and trained ones.
        forward, backward: floating-point operations of matrix products by part, counted as PyTorch's counter counts;
            None where they are not known. Elementwise work is not counted.
        weights, gradients, optimizer: bytes of the base with what is trained beside it, of the gradients, and of
            AdamW's two moments.
        activations: bytes kept from forward for backward by part, each tensor once; None where they are not known.
        why: why something is not known; empty where all is.
    """

    batch: Batch
    parameters: int
    trainable: int
    weights: int
    gradients: int
    optimizer: int
    forward: Mapping[str, int] | None = None
    backward: Mapping[str, int] | None = None
    activations: Mapping[str, int] | None = None
    why: str = ""

    @property
    def flops(self) -> tuple[int, int] | None:
        """Forward and backward in all, or None."""
        if self.forward is None or self.backward is None:
            return None
        return sum(self.forward.values()), sum(self.backward.values())

    @property
    def kept(self) -> int | None:
        """Bytes of all activations that are kept, or None."""
        return None if self.activations is None else sum(self.activations.values())

    def to_dict(self) -> dict[str, Any]:
        plain = asdict(self)
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in plain.items()}


def predict(  # noqa: PLR0913 - everything after the star is optional and named
    plan: Plan,
    found: Inventory,
    sites: Iterable[Site],
    registry: Registry,
    batch: Batch,
    *,
    device: str = "cpu",
    precision: str = "fp32",
) -> Cost:
    """Predict what one training step of `plan` costs.

    Args:
        plan: what is trained.
        found, sites: the model.
        registry: knows the adapter types.
        batch: examples, tokens of each, and whether some are padded.
        device: `cpu` or `cuda`: they keep other masks, and choose other kernels of attention.
        precision: `fp32` (the weights' own dtype), `bf16` or `fp16`, as of a training.
    """
    try:
        tape = _walked(plan, found, tuple(sites), registry, batch, device)
    except Unknown as reason:
        return known(plan, batch, str(reason))
    cost = replace(known(plan, batch), forward=dict(tape.forward), backward=dict(tape.backward))
    return replace(cost, activations=dict(tape.saved)) if precision == "fp32" else replace(cost, why=_MIXED)


def known(plan: Plan, batch: Batch, why: str = "") -> Cost:
    """Return what a plan alone says: parameters, weights, gradients and optimizer."""
    return Cost(
        batch=batch,
        parameters=plan.model_parameters,
        trainable=plan.parameters,
        weights=plan.model_bytes + plan.gradient_bytes,
        gradients=plan.gradient_bytes,
        optimizer=plan.optimizer_bytes,
        why=why,
    )


def _walked(
    plan: Plan, found: Inventory, sites: tuple[Site, ...], registry: Registry, batch: Batch, device: str
) -> Tape:
    dtypes = {site.dtype for site in sites if site.is_matrix}
    if len(dtypes) != 1:
        raise Unknown(f"the matrices are of {len(dtypes)} dtypes")
    settings = settings_of(found, DTYPE_BYTES.get(next(iter(dtypes)), 4))
    asked = {edit.adapter: Asked(edit.adapter, registry) for edit in plan.edits}
    hosts = hosts_of(plan, sites, lambda edit: asked[edit.adapter].work(edit.site, edit.options))
    # PyTorch's fused kernel for processors knows no dropout.
    fused = not settings.written_out and (device == "cuda" or not settings.attention_dropout)
    tape = Tape(fused_dropout=device == "cuda")
    Walk(tape, hosts, settings, batch, fused=fused).run()
    return tape
