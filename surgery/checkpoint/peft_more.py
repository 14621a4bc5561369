"""What PEFT saves besides factors of plain maps: adapted stacks of experts, and whole modules."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from surgery.architecture import Site
from surgery.checkpoint.saved import Acts, TensorFile
from surgery.checkpoint.weights import Weights
from surgery.errors import CheckpointError
from surgery.exact import Product
from surgery.operation.change import Step

__all__ = ["ExpertsActs", "Pair", "WholeActs", "experts_of"]

Pair = tuple[str, str]
"""Names of the tensors A and B."""
_NESTED = ".base_layer"
_MOST = 4


class ExpertsActs(Acts):
    """LoRA on a stack of matrices.

    A is (experts * rank, in), expert by expert; B is (out, rank * experts), the expert's number running fastest.
    """

    def __init__(self, name: str, down: torch.Tensor, up: torch.Tensor, scale: float, site: Site, count: int) -> None:
        self.order = (True, name, site.key)
        self._down = down.reshape(count, -1, down.shape[1])
        self._up = up.reshape(up.shape[0], -1, count)
        self._scale, self._is_transposed = scale, site.is_transposed

    def steps(self, index: int, shape: tuple[int, int]) -> Sequence[Step] | None:
        up, down = self._up[:, :, index], self._down[index]
        left, right = (down.mT, up.mT) if self._is_transposed else (up, down)
        return [Step((), Product(left.contiguous(), right.contiguous(), self._scale))]


class WholeActs(Acts):
    """A parameter of `modules_to_save`: it takes the base's place."""

    def __init__(self, name: str, value: torch.Tensor, key: str) -> None:
        self.order, self.replaces = (False, name, key), value

    def steps(self, index: int, shape: tuple[int, int]) -> Sequence[Step] | None:
        return None


def experts_of(
    pairs: Mapping[str, Pair], targets: Any, tensors: TensorFile, weights: Weights, where: str
) -> dict[str, Pair]:
    """Return name of a stack of experts -> its factors.

    The names of tensors do not say which parameter of a module they adapt, only in which order PEFT wrapped them. Their
    shapes tell, where one assignment alone fits.

    Args:
        pairs: path of a module, with `.base_layer` for each wrapper around it -> factors.
        targets: `target_parameters` of the configuration.
        tensors: the adapter's.
        weights: the base.
        where: the configuration, for errors.

    Raises:
        CheckpointError: a module is not in the base, or more than one assignment fits.
    """
    modules: dict[str, list[Pair]] = defaultdict(list)
    for path, pair in pairs.items():
        plain = path
        while plain.endswith(_NESTED):
            plain = plain.removesuffix(_NESTED)
        modules[plain].append(pair)
    found: dict[str, Pair] = {}
    for path, several in modules.items():
        names = [name for name in _stacks(path, targets, weights) if name not in found]
        fits = [
            chosen
            for chosen in itertools.permutations(names, len(several))
            if all(_fits(pair, name, tensors, weights) for pair, name in zip(several, chosen, strict=True))
        ]
        if len(names) > _MOST or len(fits) != 1:
            what = "no stack of experts in the base fits" if not fits else "more than one parameter fits"
            hint = "merge it with PEFT, and save the whole model"
            raise CheckpointError(f"target_parameters: {what} the factors of {path}", where, hint)
        found.update(zip(fits[0], several, strict=True))
    return found


def _stacks(path: str, targets: Any, weights: Weights) -> list[str]:
    """Return names of three-dimensional parameters of the module `path` that the configuration targets."""
    wanted: Collection[str] = [str(one) for one in targets] if isinstance(targets, list) else []
    shapes = {entry.name: entry.shape for entry in weights.inventory.entries}
    return [
        name
        for name in weights.sites
        if len(shapes.get(name, ())) == 3
        and (name.rpartition(".")[0] == path or f"{path}.".endswith(f".{name.rpartition('.')[0]}."))
        and any(f".{name}".endswith(f".{one}") or f".{one}".endswith(f".{name}") for one in wanted)
    ][: _MOST + 1]


def _fits(pair: Pair, name: str, tensors: TensorFile, weights: Weights) -> bool:
    first, second = (tensors.headers[key].shape for key in pair)
    count, *rest = next(entry.shape for entry in weights.inventory.entries if entry.name == name)
    wanted = rest[::-1] if weights.sites[name].is_transposed else rest
    is_pair = len(first) == len(second) == 2 and first[0] == second[1] and first[0] and not first[0] % count
    return bool(is_pair) and [second[0], first[1]] == wanted
