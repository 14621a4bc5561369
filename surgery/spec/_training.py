"""How a model is trained: budget, optimizer, schedule, precision, and groups of parameters with values of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import InitErrorDetails

from surgery.spec._fields import PatternText, at_most
from surgery.spec._frozen import MAX_INTEGER
from surgery.spec._rule import needs_pattern
from surgery.spec._strict import StrictModel, said

__all__ = ["ParameterGroup", "TrainingSpec"]

_Count = Annotated[int, Field(gt=0, le=MAX_INTEGER)]


class ParameterGroup(StrictModel):
    """Trainable parameters that get a learning rate or a weight decay of their own."""

    role: PatternText | None = Field(default=None, description="Regular expression on the canonical role, full match.")
    target: PatternText | None = Field(default=None, description="Regular expression on the module path, full match.")
    learning_rate: float | None = Field(
        None, gt=0, description="Learning rate of the group; null means the general one."
    )
    weight_decay: float | None = Field(
        default=None, ge=0, description="Weight decay of the group; null means the general one."
    )

    @classmethod
    def _cross_check(cls, data: Mapping[str, Any], context: Any) -> list[InitErrorDetails]:
        return needs_pattern(data, "a parameter group")


class TrainingSpec(StrictModel):
    """The training run, with exactly one of `steps` and `epochs`."""

    steps: _Count | None = Field(default=None, description="Optimizer steps; or give epochs.")
    epochs: float | None = Field(default=None, gt=0, description="Passes over the training data; or give steps.")
    batch_size: _Count = Field(default=16, description="Examples per device and forward pass.")
    evaluation_batch_size: _Count | None = Field(
        default=None, description="The same for evaluation; null means batch_size."
    )
    gradient_accumulation: _Count = Field(default=1, description="Forward passes per optimizer step.")
    learning_rate: float = Field(gt=0, description="Peak learning rate.")
    weight_decay: float = Field(default=0.01, ge=0, description="Decoupled weight decay.")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's decay of the mean of gradients.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW's decay of the mean of squared gradients.")
    epsilon: float = Field(default=1e-8, gt=0, description="What AdamW adds to the root of squared gradients.")
    warmup: float = Field(default=0.1, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    warmup_steps: _Count | None = Field(
        default=None, description="The same as a number of steps; null means the share counts."
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="The learning rate after warm-up."
    )
    max_grad_norm: float | None = Field(
        default=1.0, gt=0, description="Gradients are clipped to this norm; null means never."
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the target that is spread evenly over all classes or tokens."
    )
    base_dropout: bool = Field(
        default=True, description="False switches the base model's own dropout off; that of adapters stays on."
    )
    evaluate_every: _Count | None = Field(
        default=None, description="Steps between evaluations; null means at the end only."
    )
    save_every: _Count | None = Field(
        default=None, description="Steps between checkpoints; null means at the end only."
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Precision of the forward and backward pass."
    )
    groups: Annotated[tuple[ParameterGroup, ...], BeforeValidator(at_most(64, "groups"))] = Field(
        default=(), description="Groups of parameters with values of their own; the first that matches wins."
    )
    log_to: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        default=(), description="Where metrics are sent as well."
    )

    @classmethod
    def _cross_check(cls, data: Mapping[str, Any], context: Any) -> list[InitErrorDetails]:
        lines = []
        given = [key for key in ("steps", "epochs") if data.get(key) is not None]
        if len(given) != 1:
            what = "has both 'steps' and 'epochs'" if given else "needs 'steps' or 'epochs'"
            lines.append(said(f"training {what}", "give exactly one of them, for example steps: 1000"))
        # A dump of this model carries the default share, which must load back.
        share = cls.model_fields["warmup"].default
        if data.get("warmup_steps") is not None and data.get("warmup", share) != share:
            lines.append(said("training has both 'warmup' and 'warmup_steps'", "give one of them"))
        return lines
