"""Which weights a model reads past the module that holds them, as far as its code tells.

An output edit acts where its host is called. A weight that is read without a call, `F.linear(x, self.layer.weight)` for
one, or the fused kernels of `nn.TransformerEncoderLayer` in evaluation mode, would never see it. Such weights are
folded instead, which is right wherever they are read. The code of every class is looked at once; nothing is run.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType
from typing import Any

from torch import nn

from surgery.operation.host import host_class_of

__all__ = ["code_under", "read_past_modules"]

Chain = tuple[str, ...]
"""Attributes from the instance on; `*` is any child of a list."""

_ABOUT = frozenset({"dtype", "device", "shape", "size", "ndim", "dim", "is_meta", "requires_grad", "layout", "numel"})
"""What of a tensor is the same with and without an adapter."""

_ASKING = frozenset({"isinstance", "hasattr", "type", "id"})
"""Functions that look at a tensor and compute nothing with it."""

_HARMLESS = frozenset(f"torch.nn.modules.{name}" for name in ("container", "linear", "sparse", "normalization"))
"""Where torch keeps modules that hold no others, or only call them."""


def read_past_modules(modules: Mapping[str, nn.Module]) -> frozenset[tuple[int, str]]:
    """Return (id of the holder, parameter name) of what some other module's forward reads by name.

    Seen are attributes of the instance through children, lists, loops over them and local names, in `forward` and the
    methods that it uses. A module that is handed to a function, and code that is not Python, is not seen into.

    Args:
        modules: path -> module, of the whole model.
    """
    found: set[tuple[int, str]] = set()
    for module in {id(module): module for module in modules.values()}.values():
        for chain in _chains_of(host_class_of(module)):
            found.update(_resolve(module, chain))
    return frozenset(found)


def _resolve(module: nn.Module, chain: Chain) -> Iterator[tuple[int, str]]:
    holders = [module]
    for index, name in enumerate(chain):
        is_about = chain[index + 1 : index + 2] and chain[index + 1] in _ABOUT
        for holder in holders:
            if holder is not module and holder._parameters.get(name) is not None and not is_about:
                yield id(holder), name
        below: list[nn.Module | None] = []
        for holder in holders:
            below += holder._modules.values() if name == "*" else [holder._modules.get(name)]
        holders = [child for child in below if child is not None]


def _chains_of(cls: type[nn.Module]) -> tuple[Chain, ...]:
    """The attribute chains of at least two names that instances of `cls` read in a forward."""
    key = (cls, cls.forward)  # others may put a forward of their own on a class
    if key not in _CHAINS:
        codes = () if cls.__module__ in _HARMLESS else code_under(cls, "forward")
        chains = (chain for code, me in codes for chain in _chains_in(code, me) if len(chain) > 1)
        _CHAINS[key] = tuple(dict.fromkeys(chains))
    return _CHAINS[key]


_CHAINS: dict[tuple[type[nn.Module], Any], tuple[Chain, ...]] = {}
"""What was found so far: a model has many modules of few classes."""


def code_under(cls: type, *starts: str) -> Iterator[tuple[CodeType, str]]:
    """Yield the code of the methods `starts` of `cls` and of all that they name, each with its name for the instance.

    Inherited methods and functions inside are among them.
    """
    waiting, seen = list(starts), set(starts)
    while waiting:
        name = waiting.pop()
        for base in cls.__mro__:
            if base in (nn.Module, object) or name not in vars(base):
                continue
            # An override may call what it overrides: all of them are looked at.
            for code, me in _codes(vars(base)[name]):
                yield code, me
                fresh = [other for other in code.co_names if other not in seen and _is_method(cls, other)]
                seen.update(fresh)
                waiting.extend(fresh)


def _is_method(cls: type, name: str) -> bool:
    return any(name in vars(base) for base in cls.__mro__ if base not in (nn.Module, object))


def _codes(attribute: Any) -> Iterator[tuple[CodeType, str]]:
    function = attribute.fget if isinstance(attribute, property) else attribute
    function = inspect.unwrap(getattr(function, "__func__", function)) if callable(function) else None
    waiting: list[CodeType] = [code for code in [getattr(function, "__code__", None)] if code is not None]
    me = next(iter(waiting[0].co_varnames), "") if waiting else ""
    while waiting:
        code = waiting.pop()
        yield code, me
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def _chains_in(code: CodeType, me: str) -> Iterator[Chain]:
    """Yield what is read from the instance, which the code calls `me`, or from a local name for a part of it."""
    lines = [line for line in dis.get_instructions(code) if line.opname not in _NOTHING]
    names: dict[str, list[Chain]] = {me: [()]}  # one name may stand for several parts, one after the other
    for start, line in enumerate(lines):
        is_asked = start > 0 and lines[start - 1].argval in _ASKING
        for known in tuple(names.get(_loaded(line) or "", ())):
            chain, position = _follow(lines, start + 1, known)
            after = lines[position] if position < len(lines) else None
            if after is not None and after.opname.startswith("STORE_FAST"):
                others = names.setdefault(_local_names(after)[0], [])
                if chain not in others and len(others) < _MOST:
                    others.append(chain)
            if chain and not is_asked:
                yield chain


_MOST = 32
"""Chains that one name is followed for: each `node = node.left` makes as many again."""

_NOTHING = frozenset({"CACHE", "PRECALL", "PUSH_NULL", "EXTENDED_ARG", "RESUME", "NOP", "COPY_FREE_VARS"})


def _follow(lines: Sequence[dis.Instruction], position: int, chain: Chain) -> tuple[Chain, int]:
    """Return the chain that goes on at `position`, and where it ends."""
    while position < len(lines):
        line, then = lines[position], lines[position + 1 : position + 2]
        is_looped = line.opname == "GET_ITER" and bool(then) and then[0].opname == "FOR_ITER"
        if line.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            chain, position = (*chain, str(line.argval)), position + 1
        elif is_looped or (line.opname.startswith(_INDICES) and bool(then) and _is_index(then[0])):
            chain, position = (*chain, "*"), position + 2
        else:
            break
    return chain, position


_INDICES = ("LOAD_CONST", "LOAD_FAST", "LOAD_SMALL_INT")


def _is_index(line: dis.Instruction) -> bool:
    return line.opname == "BINARY_SUBSCR" or (line.opname == "BINARY_OP" and line.argrepr == "[]")


def _loaded(line: dis.Instruction) -> str | None:
    """The local name whose value is on top of the stack after `line`."""
    is_load = "LOAD_FAST" in line.opname or line.opname == "LOAD_DEREF"
    return _local_names(line)[-1] if is_load else None


def _local_names(line: dis.Instruction) -> tuple[str, ...]:
    """The local names that an instruction speaks of: newer Pythons put two loads or stores, or one of each, in one."""
    return tuple(map(str, line.argval)) if isinstance(line.argval, tuple) else (str(line.argval),)
