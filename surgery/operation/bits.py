"""Bits: checksums of tensors, equality of bits, and rounding once."""

from __future__ import annotations

import _thread
import hashlib
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import torch
import xxhash

from surgery.exact import round_once, same_bits

__all__ = ["Expected", "as_bytes", "checksum", "checksums", "round_once", "rounded", "same_bits", "sha256"]

Expected = Future[int]
"""A checksum that may still be on its way."""

_AT_ONCE = 1 << 20
"""Bytes that are summed before `checksums` returns; what is beyond goes to a thread."""


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


def rounded(weight: torch.Tensor, wide: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (`value` rounded once into the dtype of `weight`, where that loses a number), elementwise.

    Elements that stay where they are keep their very bits, -0 and NaN payloads included. Lost is what was finite, or
    no NaN, and is not any more.

    Args:
        weight: the pristine weight.
        wide: the same in the precision of `value`.
        value: what it is to be.
    """
    is_kept = (value == wide) | (wide.isnan() & value.isnan())
    result = torch.where(is_kept, weight, round_once(value, weight.dtype))
    number = result if result.element_size() > 1 else result.to(wide.dtype)  # float8 knows neither question
    is_lost = (torch.isfinite(wide) & ~torch.isfinite(number)) | (number.isnan() & ~wide.isnan())
    return result, is_lost


def sha256(tensor: torch.Tensor) -> str:
    """Return the sha256 of the tensor's bytes, as files are identified by."""
    return hashlib.sha256(as_bytes(tensor)).hexdigest()
