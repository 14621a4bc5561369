"""The residue: what a merged block and the delta do not determine about the original, in as few bytes as that takes.

A blob is a header (`_HEADER`) and a body. All numbers are little-endian.

    raw      the patterns of all elements
    sparse   count indices (u32, ascending), then their patterns: elements whose likeliest original is not the right one
    ranks    as sparse, then for each element with several candidates which one it is, packed by widths
    zeros    as ranks, but what may have been zero is taken to have been zero

`decode` is a function of W', the delta and the blob alone. `encode` runs it, and falls back to raw where it does not
return the very bits, so a flaw in the arithmetic of candidates costs bytes and never correctness.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import xxhash

from surgery.errors import CheckpointError, StateError
from surgery.exact.candidates import Candidates, candidates, patterns, unpatterned
from surgery.exact.coded import Strays, coded_size, strays_of, write
from surgery.exact.loops import compiled_for
from surgery.exact.packing import pack, packed_size, unpack

__all__ = ["decode", "encode", "encode_known"]

Ints = npt.NDArray[Any]

_HEADER = struct.Struct("<4sBBBxIIQ")
_MAGIC, _VERSION = b"sres", 1
_RAW, _SPARSE, _RANKS, _ZEROS = range(4)
_CODES = {
    torch.float32: 1,
    torch.bfloat16: 2,
    torch.float16: 3,
    torch.float8_e4m3fn: 4,
    torch.float8_e5m2: 5,
    torch.float64: 6,
    torch.int8: 16,
    torch.uint8: 17,
    torch.int16: 18,
    torch.int32: 19,
}


class _Header(NamedTuple):
    magic: bytes
    version: int
    kind: int
    code: int
    elements: int
    patches: int
    digest: int


@torch.no_grad()
def encode(original: torch.Tensor, merged: torch.Tensor, delta_block: torch.Tensor) -> bytes:
    """Return a blob from which `decode(merged, delta_block, blob)` makes `original` again, bit for bit.

    The blob is small where `merged` is about `original + delta_block`, rounded; it is right whatever they are, and
    never larger than a copy and a header. For float32 use `Delta.block(..., correct=True)`; in 16 bits and fewer the
    fast one serves as well.

    Args:
        original: any shape; float32, bfloat16, float16, float8 (e4m3fn, e5m2), float64, or int8, uint8, int16, int32
            (a grid: the delta counts its steps).
        merged: likewise, same shape and dtype.
        delta_block: float64, same shape, the same bits at decoding.

    Raises:
        StateError: tensors that do not fit each other, an unknown dtype, or 2**32 elements.
    """
    _check(original, merged, delta_block)
    return encode_known(original, candidates(merged.contiguous(), delta_block))


def encode_known(original: torch.Tensor, known: Candidates, strays: Strays | None = None) -> bytes:
    """Do as `encode` does where the candidates are known; `known.guess` is not what it was, afterwards.

    Args:
        original: as of `encode`.
        known: `candidates(merged, delta_block)`.
        strays: of these, where they are known as well.
    """
    own = patterns(original)
    code, digest = _CODES[original.dtype], xxhash.xxh3_64_intdigest(own.data)
    loops = compiled_for(original, "codes")
    if loops is not None:
        kind, count, body = _compiled(loops, own, known, strays or strays_of(original, known))
    else:
        kind, count, body = min(_bodies(own, known), key=lambda choice: len(choice[2]))
    if len(body) < own.nbytes:
        blob = _HEADER.pack(_MAGIC, _VERSION, kind, code, own.size, count, digest) + body
        found = _apply(known, _read(blob, own.size, code), blob, loops)
        if np.array_equal(found, own) if loops is None else not loops.differ(found, own):
            return blob
    return _HEADER.pack(_MAGIC, _VERSION, _RAW, code, own.size, 0, digest) + own.tobytes()


def _bodies(own: Ints, known: Candidates) -> Iterator[tuple[int, int, bytes]]:
    """Yield kind, number of patches, and body of the forms that may be the smallest."""
    differs = own != known.guess
    yield _SPARSE, *_patches(own, differs, b"")
    if not known.places.size:
        return
    forms = [(_RANKS, known)]
    may_be_zero = known.places[known.may_be_zero]
    if may_be_zero.size and np.count_nonzero(own[may_be_zero]) * 4 < may_be_zero.size:
        forms.insert(0, (_ZEROS, known.zeros()))
    for kind, part in forms:
        ranks = part.ranks(own)
        # The guesses of the last form are those that were compared.
        wrong = differs if part is known else own != part.guess
        wrong[part.places] = part.chosen(ranks) != own[part.places]
        yield kind, *_patches(own, wrong, pack(ranks, part.widths))


def _compiled(loops: ModuleType, own: Ints, known: Candidates, strays: Strays) -> tuple[int, int, bytes]:
    """Return the form of `_bodies` that is the smallest."""
    wrong = len(strays.where) + strays.there
    sizes = {_SPARSE: (wrong, (4 + own.itemsize) * wrong)}
    if known.places.size:
        may_be_zero = known.places[known.may_be_zero]
        if may_be_zero.size and np.count_nonzero(own[may_be_zero]) * 4 < may_be_zero.size:
            sizes[_ZEROS] = coded_size(loops, own, known, strays, True)
        sizes[_RANKS] = coded_size(loops, own, known, strays, False)
    kind = min(sizes, key=lambda kind: sizes[kind][1])
    if kind == _SPARSE:
        return kind, *_patches(own, own != known.guess, b"")
    return kind, sizes[kind][0], write(loops, own, known, strays, kind == _ZEROS, sizes[kind])


def _patches(own: Ints, wrong: Ints, ranks: bytes) -> tuple[int, bytes]:
    places = np.flatnonzero(wrong)
    return places.size, places.astype("<u4").tobytes() + own[places].tobytes() + ranks


@torch.no_grad()
def decode(merged: torch.Tensor, delta_block: torch.Tensor, blob: bytes) -> torch.Tensor:
    """Return the original of `merged`, bit for bit.

    A 64-bit checksum (XXH3) of the original is in the blob, so that other tensors, or damage, are noticed. That is for
    accidents; against adversaries compare a sha256 of the result.

    Args:
        merged, delta_block: the very bits that were given to `encode`.
        blob: what `encode` returned. It may come from anywhere: it is checked, and no more memory is taken than the
            tensors themselves take.

    Raises:
        CheckpointError: the blob is damaged, of another version, or belongs to other tensors.
        StateError: tensors that do not fit each other, or an unknown dtype.
    """
    _check(merged, merged, delta_block)
    size = merged.numel()
    header = _read(blob, size, _CODES[merged.dtype])
    merged = merged.contiguous()
    if header.kind == _RAW:
        body = memoryview(blob)[_HEADER.size :]
        if len(body) != size * merged.element_size():
            raise _damaged("a raw body has another size")
        found = np.frombuffer(body, patterns(merged).dtype).copy()
    else:
        found = _apply(candidates(merged, delta_block), header, blob, compiled_for(merged, "codes"))
    if xxhash.xxh3_64_intdigest(found.data) != header.digest:
        raise _damaged("it decodes to something else than what was encoded")
    return unpatterned(found, merged)


def _read(blob: bytes, elements: int, code: int) -> _Header:
    if len(blob) < _HEADER.size:
        raise _damaged("it ends within its header")
    header = _Header(*_HEADER.unpack_from(blob))
    if header.magic != _MAGIC:
        raise _damaged("it does not begin as a residue")
    if header.version != _VERSION:
        raise CheckpointError(f"a residue of version {header.version}", hint="use a newer surgery to read it")
    if blob[7] or header.kind > _ZEROS or header.patches > header.elements:
        raise _damaged("its header makes no sense")
    if header.elements != elements or header.code != code:
        raise _damaged("it belongs to a tensor of another size or dtype")
    return header


def _apply(known: Candidates, header: _Header, blob: bytes, loops: ModuleType | None) -> Ints:
    """Return the patterns that a blob, not a raw one, makes of what is known.

    With `loops`, `surgery.exact.compiled_codes`, they are written over `known.guess`.
    """
    is_zeros = header.kind == _ZEROS
    if is_zeros and loops is None:
        known = known.zeros()
    guess = known.guess
    places_end = _HEADER.size + 4 * header.patches
    patches_end = places_end + guess.dtype.itemsize * header.patches
    codes = 0
    if header.kind != _SPARSE:
        several = known.places, known.first, known.counts
        codes = packed_size(known.widths) if loops is None else loops.sizes(guess[:0], *several, is_zeros)[1]
    if len(blob) != patches_end + codes:
        raise _damaged(f"it has {len(blob)} bytes and should have {patches_end + codes}")
    places = np.frombuffer(blob, "<u4", header.patches, _HEADER.size).astype(np.int64)
    if places.size and (int(places[-1]) >= guess.size or bool((np.diff(places) <= 0).any())):
        raise _damaged("its indices are not ascending or out of range")
    if header.kind != _SPARSE:
        guess = _chosen(known, np.frombuffer(blob, np.uint8, codes, patches_end), is_zeros, loops)
    elif loops is None:
        guess = guess.copy()
    guess[places] = np.frombuffer(blob, guess.dtype, header.patches, places_end)
    return guess


def _chosen(known: Candidates, codes: Ints, is_zeros: bool, loops: ModuleType | None) -> Ints:
    """Return patterns with the candidates that `codes` (uint8) choose; `is_zeros` is done already without `loops`."""
    if loops is not None:
        if loops.filled(known.guess, known.places, known.first, known.counts, is_zeros, codes):
            return known.guess
    else:
        ranks = unpack(codes.tobytes(), known.widths)
        if not bool((ranks >= known.counts).any()):
            return known.filled(ranks)
    raise _damaged("it chooses a candidate that does not exist")


def _check(one: torch.Tensor, other: torch.Tensor, delta: torch.Tensor) -> None:
    if one.dtype not in _CODES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _CODES)
        raise StateError(f"no residue is known for {one.dtype}", hint=f"known: {known}")
    if one.dtype != other.dtype or one.shape != other.shape or delta.shape != one.shape or delta.dtype != torch.float64:
        raise StateError(
            "an original, its merged form and a float64 delta must have one shape, and the first two one dtype"
        )
    if one.numel() >= 1 << 32:
        raise StateError("a residue is of fewer than 2**32 elements", hint="encode row blocks")


def _damaged(what: str) -> CheckpointError:
    return CheckpointError(f"a residue cannot be decoded: {what}", hint="it is damaged, or W' or the adapter changed")
