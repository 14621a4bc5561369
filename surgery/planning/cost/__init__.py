"""What a training step costs, predicted."""

from surgery.planning.cost.cost import Cost, known, predict
from surgery.planning.cost.render import human_flops, render_cost
from surgery.planning.cost.walk import Batch

__all__ = ["Batch", "Cost", "human_flops", "known", "predict", "render_cost"]
