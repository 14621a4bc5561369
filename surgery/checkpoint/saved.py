"""A saved adapter, fitted to a checkpoint: which of its tensors change which parameter. Tensors are read when used."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from surgery.checkpoint.digest import sha256_of
from surgery.checkpoint.failures import told
from surgery.checkpoint.weights import Weights
from surgery.errors import CheckpointError, StateError
from surgery.operation.change import Step
from surgery.operation.fold import Link
from surgery.planning.headers import TensorHeader, read_header

__all__ = ["Acts", "Factor", "SavedAdapter", "TensorFile"]

Factor = float


class Acts(ABC):
    """What one adapter does to one parameter, its tensors loaded.

    Attributes:
        order: what those of one parameter are sorted by, as in an operation.
        link: the adapter module and its site, where there is one.
        is_portable: whether it was made without looking at the base.
        replaces: what takes the parameter's place, where that is all it does.
    """

    order: tuple[bool, str, str]
    link: Link | None = None
    is_portable: bool = True
    replaces: torch.Tensor | None = None

    @abstractmethod
    def steps(self, index: int, shape: tuple[int, int]) -> Sequence[Step] | None:
        """Return what is done to matrix `index` of the parameter, or None where factors do not say it."""


class TensorFile:
    """The safetensors file of an adapter: hashed and searched for NaN and inf once, then read by tensor.

    Attributes:
        path: where it is.
        headers: name of a tensor -> where it is.
        sha256: of the file.
        not_finite: names of tensors that hold NaN or inf.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.headers: dict[str, TensorHeader] = read_header(path)
        self.sha256 = sha256_of(path)
        self.not_finite = {
            name
            for name in self.headers
            if (tensor := self.read(name)).is_floating_point() and not bool(torch.isfinite(tensor).all())
        }

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor."""
        header = self.headers[name]
        with told(self.path), self.path.open("rb") as file:
            file.seek(header.start)
            data = bytearray(file.read(header.end - header.start))
        if len(data) != header.end - header.start:
            raise CheckpointError("the file became shorter while it was read", str(self.path))
        dtype: torch.dtype = getattr(torch, header.dtype)
        if not data:
            return torch.empty(header.shape, dtype=dtype)
        return torch.frombuffer(data, dtype=torch.uint8).view(dtype).view(header.shape)


class SavedAdapter(ABC):
    """An adapter folder. `fit` it before anything else is asked.

    Attributes:
        folder: where it is.
        name: what it is called beside others.
        factor: what its scale is multiplied by.
        digest: sha256 that stands for all of it.
        sums: name of each of `files` -> sha256 of what was read of it.
    """

    format: str
    digest: str
    sums: Mapping[str, str]

    def __init__(self, folder: Path, name: str, factor: Factor) -> None:
        if not math.isfinite(factor):
            raise StateError(f"the weight of {name!r} is {factor}", str(folder), "weights are finite numbers")
        self.folder, self.name, self.factor = folder, name, factor

    @property
    @abstractmethod
    def files(self) -> Mapping[str, Path]:
        """The files that make it up, by plain name."""

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Name of a parameter, as the files say it -> sha256 that the base must have."""
        return {}

    @abstractmethod
    def fit(self, weights: Weights) -> None:
        """Find a home for every tensor.

        Raises:
            CheckpointError: a tensor has none, or one of another shape; or the base is another one.
        """

    @property
    @abstractmethod
    def changed(self) -> frozenset[str]:
        """Names of the parameters that it changes, as the files say them."""

    @abstractmethod
    def acts(self, parameter: str, base: Mapping[str, torch.Tensor] | None) -> list[Acts]:
        """Load what it does to a parameter.

        Args:
            parameter: one of `changed`.
            base: name of a parameter -> the base's tensor, read when looked up; None where it is not there, and only
                what is portable is asked for.
        """
