"""Label smoothing: part of the target is spread evenly, Szegedy et al. 2016, arXiv 1512.00567."""

from __future__ import annotations

import torch
from torch.nn import functional

from surgery.errors import TrainingError

__all__ = ["smoothed"]

_IGNORED = -100


def smoothed(
    loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, share: float, *, shifted: bool
) -> torch.Tensor:
    """Return (1 - share) * loss + share * (mean over the classes of -log p, summed over each example's positions).

    Args:
        loss: negative log-likelihood summed over each example, (batch,).
        logits: (batch, classes) or (batch, positions, classes).
        labels: (batch,) or (batch, positions), -100 where there is no loss.
        share: of the target that is spread.
        shifted: whether a position predicts the label after it.

    Raises:
        TrainingError: labels that are no classes.
    """
    if labels.is_floating_point() or logits.ndim != labels.ndim + 1:
        raise TrainingError(
            "the task predicts no classes to spread a label over", "training.label_smoothing", "write 0"
        )
    if shifted:
        labels = functional.pad(labels[:, 1:], (0, 1), value=_IGNORED)
    spread = -functional.log_softmax(logits[labels != _IGNORED].float(), dim=-1).mean(dim=-1)
    rows = (labels != _IGNORED).nonzero()[:, 0]
    return (1 - share) * loss + share * torch.zeros_like(loss).index_add(0, rows, spread.to(loss.dtype))
