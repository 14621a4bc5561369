"""A weight as a forward sees it while adapters act on it: not folded where small factors will do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self, cast

import torch
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from surgery.adapter.factors import Factors
from surgery.architecture import Site
from surgery.errors import PluginError, StateError
from surgery.operation.blame import named
from surgery.operation.fold import Link
from surgery.operation.products import Factored, Gathered, Grouped, OneMap, Product, through
from surgery.operation.said import said_factors

__all__ = ["FactoredWeight", "factored_chain"]


def factored_chain(parameter: str, base: torch.Tensor, chain: Sequence[Link]) -> tuple[Factored, ...] | None:
    """Return what the adapters of `chain` do to a linear map, or to those of experts; None where one must be folded.

    Raises:
        PluginError: an adapter's factors do not fit its site.
    """
    if not all(_is_map(site, parameter) for _, site in chain):
        return None
    found = []
    for adapter, site in chain:
        factors = said_factors(parameter, adapter, site)
        if factors is None or (site.slice is not None and not _is_part_of_outputs(site, factors, base.dim())):
            return None
        if factors.up is not None and factors.down is not None and factors.up.dtype != factors.down.dtype:
            what = (
                f"factors({parameter!r}) do not fit each other: up is {factors.up.dtype} and down {factors.down.dtype}"
            )
            raise PluginError(what, f"{named([adapter])} on {site.key}", "give both one dtype")
        found.append(Factored(site, factors, adapter.training))
    return tuple(found)


def _is_map(site: Site, parameter: str) -> bool:
    return bool(site.experts) or (site.host in ("linear", "conv1d") and parameter == "weight" and site.is_matrix)


def _is_part_of_outputs(site: Site, factors: Factors, axes: int) -> bool:
    assert site.slice is not None
    return site.slice.axis == axes - (1 if site.is_transposed else 2) and factors.columns is None


class FactoredWeight(torch.Tensor):
    """Stands for W' = W with adapters in it, and holds W and the adapters' factors alone.

    Choosing experts, transposing and multiplying need no W'; every other use computes it, and is then what it is for
    a plain tensor. It lives from the forward's look at the parameter to its product.
    """

    _stored: torch.Tensor
    _chain: tuple[Factored, ...]
    _fold: Callable[[], torch.Tensor]
    _index: int | torch.Tensor | None
    _is_turned: bool
    _folded: dict[bool, tuple[torch.Tensor, int]]

    def __new__(
        cls,
        base: torch.Tensor,
        chain: tuple[Factored, ...],
        fold: Callable[[], torch.Tensor],
        index: int | torch.Tensor | None = None,
        *,
        turned: bool = False,
    ) -> Self:
        """Make one.

        Args:
            base: the pristine weight as stored, (out, in) or (in, out), of experts with a first axis for them.
            chain: what the adapters do, in canonical order; not empty.
            fold: computes W' as stored.
            index: the expert, or one for each row (n); None for all of them, or where there are none.
            turned: whether the last two axes are swapped.
        """
        shape, stride = list(base.shape), list(base.stride())
        if isinstance(index, torch.Tensor) and index.dim() == 1:
            shape = [len(index), *shape[1:]]
            stride = [shape[1] * shape[2], shape[2], 1]
        elif index is not None:
            shape, stride = shape[1:], stride[1:]
        if turned:
            shape[-2:], stride[-2:] = shape[:-3:-1], stride[:-3:-1]
        made: Self = torch.Tensor._make_wrapper_subclass(
            cls, shape, strides=stride, dtype=base.dtype, device=base.device
        )
        vars(made).update(_stored=base, _chain=chain, _fold=fold, _index=index, _is_turned=turned, _folded={})
        return made

    def with_index(self, index: int | torch.Tensor) -> FactoredWeight:
        """Return the weight of one expert, or of one for each row."""
        index = index.clone() if isinstance(index, torch.Tensor) else index  # the forward may go on to change it
        return FactoredWeight(self._stored, self._chain, self._fold, index, turned=self._is_turned)

    def swapped(self) -> FactoredWeight:
        """Return the weight with its last two axes swapped."""
        return FactoredWeight(self._stored, self._chain, self._fold, self._index, turned=not self._is_turned)

    def view_of(self, stored: torch.Tensor) -> torch.Tensor:
        """Return of a tensor that is stored like the weight what this stands for."""
        chosen = stored if self._index is None else stored[self._index]
        return chosen.mT if self._is_turned else chosen

    def dense(self) -> torch.Tensor:
        """Return W' (or the part of it) as a plain tensor."""
        # Kept, so that a pointer to it stays valid as long as this object does.
        for folded, version in self._folded.values():
            if _may_be_written(folded, version):
                return folded
        key = torch.is_grad_enabled()
        if key not in self._folded:
            folded = self.view_of(self._fold())
            self._folded[key] = folded, 0 if folded.is_inference() else folded._version
        return self._folded[key][0]

    @property
    def is_written(self) -> bool:
        """Whether a forward may have changed what this stands for in place; then it is no product any more."""
        return any(_may_be_written(folded, version) for folded, version in self._folded.values())

    @property
    def is_out_in(self) -> bool:
        """Whether the last two axes are (out, in)."""
        return self._chain[0].site.is_transposed == self._is_turned

    @property
    def needs_grad(self) -> bool:
        """Whether autograd records what is computed with it now."""
        tensors = (tensor for link in self._chain for tensor in link.factors.tensors)
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)

    @property
    def scales_rows(self) -> bool:
        """Whether a bias added in the product would be scaled, too."""
        return any(link.factors.rows is not None for link in self._chain)

    def product(self, inputs: torch.Tensor, how: Product) -> torch.Tensor:
        """Return `inputs` (..., fan_in) through this weight."""
        return through(self._chain, inputs, how)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named_args = dict(kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            if func in _PLAIN:
                return func(*args, **named_args)
            rule: Callable[..., Any] | None = _RULES.get(func)
            if getattr(func, "__name__", "") in _GROUPED_NAMES:
                rule = _grouped
            result = NotImplemented
            if rule is not None and not _has_written((*args, *named_args.values())):
                # Names of arguments that a rule does not know are left to torch.
                result = rule(func, *args, **named_args) if _knows(rule, args, named_args) else NotImplemented
            if result is NotImplemented:
                args, named_args = _densely(args), _densely(named_args)
                result = func(*args, **named_args)
        return result

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares its own as a function without a class
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        # Only what goes past `__torch_function__` gets here, and autograd has been passed by then.
        given: list[Any] = []
        tree_map(given.append, (args, dict(kwargs or {})))
        if any(isinstance(one, FactoredWeight) and one.needs_grad for one in given):
            raise StateError(
                f"{func} reads a weight of experts where its adapters' gradients would be lost",
                hint='choose another implementation: model.set_experts_implementation("grouped_mm")',
            )
        return func(*_densely(args), **_densely(dict(kwargs or {})))


def _may_be_written(tensor: torch.Tensor, version: int) -> bool:
    # Tensors of inference mode do not count what is written to them.
    return tensor.is_inference() or tensor._version != version


def _has_written(given: Iterable[object]) -> bool:
    return any(isinstance(one, FactoredWeight) and one.is_written for one in given)


def _knows(rule: Callable[..., Any], args: tuple[Any, ...], named_args: Mapping[str, Any]) -> bool:
    """Return whether a rule takes arguments of these names."""
    if not named_args:
        return True
    try:
        inspect.signature(rule).bind(None, *args, **named_args)
    except TypeError:
        return False
    return True


def _densely(given: Any) -> Any:
    return tree_map(lambda one: one.dense() if isinstance(one, FactoredWeight) else one, given)


# What a forward does with a weight: each rule gets the function and its arguments. NotImplemented has it folded.


def _choose(_: object, weight: FactoredWeight, index: object) -> Any:
    is_number = isinstance(index, int) and not isinstance(index, bool)
    is_plain = isinstance(index, torch.Tensor) and not index.is_floating_point() and index.dtype != torch.bool
    is_choice = is_number or (is_plain and index.dim() < 2 and index.dtype != torch.uint8)  # type: ignore[attr-defined]
    if not is_choice or weight.dim() != 3 or weight._index is not None:
        return NotImplemented
    return weight.with_index(cast("int | torch.Tensor", index))


def _transpose(_: object, weight: FactoredWeight, first: Any = -2, second: Any = -1) -> Any:
    axes = (first, second)
    if not all(isinstance(axis, int) for axis in axes):
        return NotImplemented
    return weight.swapped() if {axis % weight.dim() for axis in axes} == _last_two(weight) else NotImplemented


def _mirror(_: object, weight: FactoredWeight, *unused: object) -> Any:
    """`.T` and `.t()`, which swap the axes of a matrix."""
    return weight.swapped() if weight.dim() == 2 else NotImplemented


def _matrix_transpose(_: object, weight: FactoredWeight, *unused: object) -> Any:
    return weight.swapped()


def _last_two(weight: FactoredWeight) -> set[int]:
    return {weight.dim() - 2, weight.dim() - 1}


def _linear(func: Any, input: Any, weight: Any, bias: Any = None) -> Any:  # noqa: A002 - torch's own name
    if not (_is_one_map(weight) and weight.is_out_in and _is_plain(input, bias)) or (
        bias is not None and weight.scales_rows
    ):
        return NotImplemented
    base = weight.view_of(weight._stored)
    return weight.product(input, OneMap(lambda x: func(x, base, bias), weight._index))


def _addmm(func: Any, input: Any, mat1: Any, mat2: Any, **more: Any) -> Any:  # noqa: A002 - torch's own name
    if not (_is_one_map(mat2) and not mat2.is_out_in and _is_plain(input, mat1)) or mat2.scales_rows or more:
        return NotImplemented
    base = mat2.view_of(mat2._stored)
    return mat2.product(mat1, OneMap(lambda x: func(input, x, base), mat2._index))


def _matmul(func: Any, input: Any, other: Any) -> Any:  # noqa: A002 - torch's own name
    if _is_one_map(other) and not other.is_out_in and _is_plain(input) and input.dim() > 0:
        base = other.view_of(other._stored)
        return other.product(input, OneMap(lambda x: func(x, base), other._index))
    for weight, inputs in ((other, input), (input, other)):
        if isinstance(weight, FactoredWeight) and _is_plain(inputs) and inputs.dim() == weight.dim() == 3:
            return _bmm(func, input, other) if len(inputs) == len(weight) else NotImplemented
    return NotImplemented


def _bmm(func: Any, input: Any, mat2: Any) -> Any:  # noqa: A002 - torch's own name
    if isinstance(mat2, FactoredWeight) and not mat2.is_out_in and _is_plain(input):
        base = mat2.view_of(mat2._stored)
        return mat2.product(input, Gathered(lambda x: func(x, base), _rows(mat2)))
    if isinstance(input, FactoredWeight) and input.is_out_in and _is_plain(mat2):
        left = input.view_of(input._stored)
        return input.product(mat2.mT, Gathered(lambda x: func(left, x.mT).mT, _rows(input))).mT
    return NotImplemented


def _grouped(func: Any, input: Any, weight: Any, offs: Any = None, **more: Any) -> Any:  # noqa: A002 - torch's own name
    fits = isinstance(weight, FactoredWeight) and weight._index is None and not weight.is_out_in
    if not (fits and _is_plain(input, offs) and offs is not None and input.dim() == 2) or any(
        value is not None for value in more.values()
    ):
        return NotImplemented

    def multiply(x: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        return cast("torch.Tensor", func(x, matrices, offs=offs))

    base = weight.view_of(weight._stored)
    return weight.product(input, Grouped(lambda x: multiply(x, base), multiply, offs))


def _is_one_map(weight: object) -> bool:
    return isinstance(weight, FactoredWeight) and weight.dim() == 2


def _is_plain(*given: object) -> bool:
    return all(one is None or (isinstance(one, torch.Tensor) and not isinstance(one, FactoredWeight)) for one in given)


def _rows(weight: FactoredWeight) -> torch.Tensor | None:
    assert not isinstance(weight._index, int)
    return weight._index


def _needs_grad(_: object, weight: FactoredWeight, *unused: object) -> bool:
    return weight.needs_grad


_T = torch.Tensor
_RULES: dict[Any, Callable[..., Any]] = {
    _T.__getitem__: _choose,
    **dict.fromkeys((_T.transpose, torch.transpose, _T.swapaxes, torch.swapaxes), _transpose),
    **dict.fromkeys((_T.T.__get__, _T.t, torch.t), _mirror),  # type: ignore[attr-defined]
    **dict.fromkeys((_T.mT.__get__,), _matrix_transpose),  # type: ignore[attr-defined]
    F.linear: _linear,
    torch.addmm: _addmm,
    **dict.fromkeys((_T.matmul, torch.matmul, _T.__matmul__, _T.mm, torch.mm), _matmul),
    **dict.fromkeys((_T.bmm, torch.bmm), _bmm),
    _T.requires_grad.__get__: _needs_grad,  # type: ignore[attr-defined]
}
_GROUPED_NAMES = frozenset({"grouped_mm", "_grouped_mm", "grouped_mm_fallback"})
"""torch's grouped product, the older one, and the operator that stands in for them in transformers."""

_PLAIN = frozenset(
    {
        _T.dim,
        _T.size,
        _T.numel,
        _T.element_size,
        _T.is_floating_point,
        _T.is_complex,
        _T.get_device,
        _T.__len__,
        _T.stride,
    }
    | {getattr(_T, name).__get__ for name in ("shape", "ndim", "dtype", "device", "layout", "is_cuda", "itemsize")}
)
"""What is asked about a tensor, and does not touch its numbers."""
