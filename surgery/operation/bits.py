"""Bits: checksums of tensors, equality of bits, and rounding once."""

from __future__ import annotations

import _thread
import hashlib
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import torch
import xxhash

__all__ = ["Expected", "as_bytes", "checksum", "checksums", "round_once", "same_bits", "sha256"]

Expected = Future[int]
"""A checksum that may still be on its way."""

_AT_ONCE = 1 << 20
"""Bytes that are summed before `checksums` returns; what is beyond goes to a thread."""

_INTEGER_VIEW = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the tensor's elements in order as bytes (copied only when not contiguous on the CPU)."""
    flat = tensor.detach().to("cpu").contiguous().flatten()
    array: Any = flat.view(torch.uint8).numpy()
    return memoryview(array)


def checksum(tensor: torch.Tensor) -> int:
    """Return a 64-bit checksum of dtype, shape and bits: fast, for noticing drift, not for adversaries."""
    digest = xxhash.xxh3_64(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(as_bytes(tensor))
    return digest.intdigest()


def checksums(tensors: Sequence[torch.Tensor]) -> list[Expected]:
    """Return the checksums of all tensors, which must stay as they are: a thread reads the larger part of them."""
    futures: list[Expected] = [Future() for _ in tensors]
    budget = _AT_ONCE
    later: list[tuple[Expected, torch.Tensor]] = []
    for future, tensor in zip(futures, tensors, strict=True):
        budget -= tensor.numel() * tensor.element_size()
        if budget >= 0:
            future.set_result(checksum(tensor))
        else:
            later.append((future, tensor))
    if later:
        # Not threading.Thread: its start() waits until the thread runs, which on a busy machine takes longer than
        # everything else that an operation does when it begins.
        _thread.start_new_thread(_sum_all, (later,))
    return futures


def _sum_all(pairs: Sequence[tuple[Expected, torch.Tensor]]) -> None:
    for future, tensor in pairs:
        try:
            future.set_result(checksum(tensor))
        except BaseException as error:
            future.set_exception(error)


def sha256(tensor: torch.Tensor) -> str:
    """Return the sha256 of the tensor's bytes, as files are identified by."""
    return hashlib.sha256(as_bytes(tensor)).hexdigest()


def same_bits(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return elementwise equality of bits (NaN equals itself, -0 differs from +0), a bool tensor."""
    view = _INTEGER_VIEW[left.element_size()]
    return left.detach().contiguous().view(view) == right.detach().contiguous().view(view)


def round_once(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round float64 to `dtype`, to nearest even, once.

    torch casts float64 to 16 bits through float32 and so rounds twice. Rounding to odd in between makes the second
    rounding right: float32 keeps more than the two extra bits that this needs (Boldo and Melquiond 2008).
    """
    if value.dtype != torch.float64 or dtype in (torch.float64, torch.float32):
        return value.to(dtype)
    single = value.to(torch.float32)
    error = value - single.to(torch.float64)
    bits = single.view(torch.int32)
    is_wrong = (error != 0) & ((bits & 1) == 0) & torch.isfinite(single)
    # Away from zero the next float has the next higher bit pattern; towards zero the next lower one. A rounded value
    # of exactly zero has the error's sign and a pattern of its own.
    outwards = (error > 0) == (value > 0)
    odd = torch.where(outwards, bits + 1, bits - 1)
    tiny = torch.where(value < 0, torch.full_like(bits, -(2**31) + 1), torch.ones_like(bits))
    odd = torch.where(single == 0, tiny, odd)
    return torch.where(is_wrong, odd, bits).view(torch.float32).to(dtype)
