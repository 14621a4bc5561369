"""Costs predicted and measured, side by side, and where they are too far apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import TypedDict

from surgery.errors import SurgeryError

if TYPE_CHECKING:
    from surgery.study.record import Memory
    from surgery.training import FitResult, Session

__all__ = ["COMPONENTS", "FAR", "Predicted", "StepCost", "apart", "step_cost"]

FAR = 0.10
"""Share of the measured value by which a prediction may be off."""

COMPONENTS = ("weights", "gradients", "optimizer", "activations")
_SMALL = 64 << 10  # bytes: counters and buffers, of which no prediction speaks


class Predicted(TypedDict):
    """What the cost model says of the first batch, bytes and floating-point operations; None where it does not know."""

    weights: int
    gradients: int
    optimizer: int
    activations: int | None
    forward: int | None
    backward: int | None
    why: str


class StepCost(TypedDict):
    """Work of the first batch's step: its shape, floating-point operations by PyTorch's counter, and the prediction."""

    examples: int
    length: int
    padded: bool
    forward: int
    backward: int
    predicted: Predicted


def step_cost(session: Session, result: FitResult) -> StepCost | None:
    """Return the cost of the run's first batch, measured and predicted; None where it was not measured."""
    from surgery.planning import anatomy, inventory
    from surgery.planning.cost import Batch, known, predict
    from surgery.planning.sites import sites_of

    first = result.first_batch
    if first is None:
        return None
    plan, registry, batch = session.plan, session.registry, Batch(first.examples, first.length, first.padded)
    found = inventory(session.model, registry)
    sites = sites_of(found, anatomy(found, registry).architecture)
    device = next(session.model.parameters()).device.type
    try:
        told = predict(plan, found, sites, registry, batch, device=device, precision=session.precision)
    except SurgeryError as error:  # of a plugin; what was trained must not be lost for a prediction
        told = known(plan, batch, str(error))
    forward, backward = told.flops or (None, None)
    return StepCost(
        examples=first.examples,
        length=first.length,
        padded=first.padded,
        forward=result.flops["forward"],
        backward=result.flops["backward"],
        predicted=Predicted(
            weights=told.weights,
            gradients=told.gradients,
            optimizer=told.optimizer,
            activations=told.kept,
            forward=forward,
            backward=backward,
            why=told.why,
        ),
    )


def apart(memory: Memory | None, cost: StepCost | None) -> tuple[str, ...]:
    """Return the components whose prediction is more than a tenth of the measured value off."""
    if cost is None:
        return ()
    told = cost["predicted"]
    pairs = [("forward", told["forward"], cost["forward"], 0), ("backward", told["backward"], cost["backward"], 0)]
    if memory is not None:
        measured = (memory["weights"], memory["gradients"], memory["optimizer"], memory["activations"])
        predicted = (told["weights"], told["gradients"], told["optimizer"], told["activations"])
        pairs += [(name, t, m, _SMALL) for name, t, m in zip(COMPONENTS, predicted, measured, strict=True)]
    return tuple(
        name
        for name, predicted, found, small in pairs
        if predicted is not None and abs(predicted - found) > max(FAR * found, small)
    )
