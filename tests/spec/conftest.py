"""A small catalog that stands in for installed plugins: the spec layer must not need any of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pytest
from pydantic import Field

from surgery.spec import Options


class LoraOptions(Options):
    """Options like those of a LoRA adapter."""

    rank: int = Field(gt=0, description="Rank of the update.")
    alpha: float = Field(16.0, gt=0, description="Scale of the update.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the input.")
    init: Literal["kaiming", "gaussian", "zeros"] = Field("kaiming", description="How the update starts.")
    bias: bool = Field(False, description="Train a bias as well.")
    heads: tuple[int, ...] = Field((), description="Which heads.")
    mixture: int | str = Field(1, description="A number or a name.")


class FullOptions(Options):
    """Full tuning has nothing to set."""


class ClassificationOptions(Options):
    """Options like those of a classification task."""

    labels: int = Field(2, ge=2, description="How many classes.")


class FakeCatalog:
    """Two adapters and one task."""

    def adapter_names(self) -> Sequence[str]:
        return ["lora", "full"]

    def adapter_options(self, name: str) -> type[Options]:
        models: dict[str, type[Options]] = {"lora": LoraOptions, "full": FullOptions}
        return models[name]

    def task_names(self) -> Sequence[str]:
        return ["text-classification"]

    def task_options(self, name: str) -> type[Options]:
        models: dict[str, type[Options]] = {"text-classification": ClassificationOptions}
        return models[name]


@pytest.fixture(scope="session")
def catalog() -> FakeCatalog:
    return FakeCatalog()
