"""Residues: any bits come back, small where they should be, and no blob does harm."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.errors import CheckpointError, StateError, SurgeryError
from surgery.exact import Delta, Product, candidates, decode, encode, merge_block, residue, same_bits

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64]
GRIDS = [torch.int8, torch.uint8, torch.int16, torch.int32]
HEADER = struct.Struct("<4sBBBxIIQ")
RAW, SPARSE, RANKS, ZEROS = range(4)


@st.composite
def bits(draw: st.DrawFn, dtype: torch.dtype, shape: tuple[int, int]) -> torch.Tensor:
    size = torch.empty(0, dtype=dtype).element_size() * shape[0] * shape[1]
    raw = draw(st.binary(min_size=size, max_size=size))
    return torch.frombuffer(bytearray(raw), dtype=dtype).view(shape).clone()


@st.composite
def triples(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """An original, what may or may not be its merged form, and what may or may not be the delta."""
    dtype = draw(st.sampled_from(FLOATS + GRIDS))
    shape = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    original = draw(bits(dtype, shape))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    delta = torch.randn(shape, generator=generator, dtype=torch.float64) * 2.0 ** draw(st.integers(-30, 30))
    kind = draw(st.sampled_from(["any", "sum", "tame"]))
    if kind == "any":
        delta = draw(bits(torch.float64, shape))
        return original, draw(bits(dtype, shape)), delta
    if kind == "tame" and dtype in FLOATS:
        original = torch.randn(shape, generator=generator).to(dtype)
    if dtype in GRIDS:
        limits = torch.iinfo(dtype)
        merged = (original.double() + torch.floor(delta + 0.5)).clamp(limits.min, limits.max).to(dtype)
    else:
        merged = (original.double() + delta).float().to(dtype)
    return original, merged, delta


@settings(max_examples=600, deadline=None)
@given(triples())
def test_every_bit_comes_back(triple) -> None:
    original, merged, delta = triple
    copies = original.clone(), merged.clone(), delta.clone()
    blob = encode(original, merged, delta)
    assert len(blob) <= HEADER.size + original.nbytes
    assert same_bits(decode(merged, delta, blob), original).all()
    for tensor, copy in zip(triple, copies, strict=True):
        assert same_bits(tensor, copy).all()


def _case(
    dtype: torch.dtype, ratio: float, shape: tuple[int, int] = (512, 512), seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = 1.0 if torch.empty(0, dtype=dtype).element_size() == 1 else 0.02
    weight = (torch.randn(shape, generator=generator) * size).to(dtype)
    up = torch.randn(shape[0], 16, generator=generator) * (ratio * size / 4)
    delta = Delta([Product(up, torch.randn(16, shape[1], generator=generator))], shape)
    return weight, merge_block(weight, delta, 0), delta.block(0, shape[0], correct=dtype == torch.float32)


# Bytes for each parameter; a copy takes 4, 2 and 1.
BARS = {1e-3: 0.001, 1e-2: 0.005, 0.1: 0.03, 1.0: 0.16}


@pytest.mark.parametrize("ratio", sorted(BARS))
@pytest.mark.parametrize("dtype", FLOATS[:5], ids=str)
def test_residues_are_small(dtype: torch.dtype, ratio: float) -> None:
    original, merged, delta = _case(dtype, ratio)
    blob = encode(original, merged, delta)
    # In 8 bits normal numbers are rounded to -0 now and then, and a -0 costs five bytes.
    assert len(blob) / original.numel() <= BARS[ratio] + (0.002 if original.element_size() == 1 else 0)
    assert same_bits(decode(merged, delta, blob), original).all()


@pytest.mark.parametrize("dtype", GRIDS, ids=str)
def test_a_grid_has_no_residue_but_where_it_is_clipped(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    original = torch.randint(10, 117, (64, 64), generator=generator).to(dtype)
    delta = torch.randn(64, 64, generator=generator, dtype=torch.float64) * 3
    merged = (original.double() + torch.floor(delta + 0.5)).to(dtype)
    blob = encode(original, merged, delta)
    assert len(blob) == HEADER.size
    assert same_bits(decode(merged, delta, blob), original).all()


def test_the_smallest_form_is_chosen() -> None:
    kinds = set()
    for ratio, noise in ((0.1, False), (1e-7, False), (0.1, True)):
        original, merged, delta = _case(torch.bfloat16, ratio, (64, 64))
        if noise:
            merged = torch.randn(64, 64, generator=torch.Generator().manual_seed(5)).bfloat16()
        kinds.add(encode(original, merged, delta)[5])
    original, _, delta = _case(torch.bfloat16, 0.1, (64, 64))
    original = torch.where(original.abs() > 0.01, original.sign() * 0.02, 0.0)
    merged = (original.double() + delta).float().bfloat16()
    blob = encode(original, merged, delta)
    assert len(blob) / original.numel() < 0.03
    assert kinds | {blob[5]} == {RAW, SPARSE, RANKS, ZEROS}


def test_a_flaw_in_the_candidates_costs_bytes_and_no_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    original, merged, delta = _case(torch.bfloat16, 0.1, (64, 64))
    real = candidates.candidates
    good = len(encode(original, merged, delta))

    def wrong(block: torch.Tensor, added: torch.Tensor) -> candidates.Candidates:
        found = real(block, added)
        return candidates.Candidates(found.guess + 1, found.places, found.first + 3, found.counts)

    monkeypatch.setattr(residue, "candidates", wrong)
    blob = encode(original, merged, delta)
    assert len(blob) > good
    assert same_bits(decode(merged, delta, blob), original).all()


def test_a_decoder_that_fails_is_noticed_when_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    original, merged, delta = _case(torch.bfloat16, 0.1, (64, 64))
    real = residue._apply

    def broken(*args):
        found = real(*args).copy()
        found[7] ^= 1
        return found

    monkeypatch.setattr(residue, "_apply", broken)
    blob = encode(original, merged, delta)
    assert blob[5] == RAW
    assert same_bits(decode(merged, delta, blob), original).all()


# Hostile blobs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32, torch.float8_e4m3fn], ids=str)
def coded(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, bytes]:
    original, merged, delta = _case(request.param, 0.3, (48, 48))
    original.view(-1)[5] = -7.0  # something that no candidate explains
    return original, merged, delta, encode(original, merged, delta)


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_a_flipped_bit_is_an_error(coded, place: int, bit: int) -> None:
    original, merged, delta, blob = coded
    assert blob[5] == RANKS
    damaged = bytearray(blob)
    damaged[place % len(blob)] ^= 1 << bit
    try:
        got = decode(merged, delta, bytes(damaged))
    except CheckpointError:
        return
    # The last byte of each width may have bits that belong to no number.
    assert same_bits(got, original).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9), st.binary(max_size=40))
def test_a_cut_or_longer_blob_is_an_error(coded, length: int, tail: bytes) -> None:
    _, merged, delta, blob = coded
    for damaged in (blob[: length % len(blob)], blob + tail + b"\0"):
        with pytest.raises(CheckpointError):
            decode(merged, delta, damaged)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_any_bytes_are_an_error(coded, body: bytes, kind: int, count: int) -> None:
    original, merged, delta, blob = coded
    for damaged in (body, HEADER.pack(b"sres", 1, kind, blob[6], original.numel(), count, 0) + body):
        with pytest.raises(CheckpointError):
            decode(merged, delta, damaged)


def _with(blob: bytes, **changes: int | bytes) -> bytes:
    names = ("magic", "version", "kind", "code", "elements", "count", "digest")
    fields = dict(zip(names, HEADER.unpack_from(blob), strict=True))
    return HEADER.pack(*{**fields, **changes}.values()) + blob[HEADER.size :]


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "magic": lambda blob: _with(blob, magic=b"none"),
    "version": lambda blob: _with(blob, version=2),
    "kind": lambda blob: _with(blob, kind=4),
    "sparse": lambda blob: _with(blob, kind=SPARSE),
    "raw": lambda blob: _with(blob, kind=RAW),
    "dtype": lambda blob: _with(blob, code=blob[6] % 5 + 1),
    "elements": lambda blob: _with(blob, elements=1 << 31),
    "count": lambda blob: _with(blob, count=(1 << 32) - 1),
    "digest": lambda blob: _with(blob, digest=1),
    "reserved": lambda blob: blob[:7] + b"\1" + blob[8:],
    "index beyond": lambda blob: blob[: HEADER.size] + struct.pack("<I", 1 << 31) + blob[HEADER.size + 4 :],
    "empty": lambda blob: b"",
}


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_each_field_is_checked(coded, change: str) -> None:
    _, merged, delta, blob = coded
    with pytest.raises(CheckpointError, match="residue"):
        decode(merged, delta, CHANGES[change](blob))


def test_indices_must_ascend() -> None:
    original, merged, delta = _case(torch.bfloat16, 1e-6, (32, 32))
    original.view(-1)[[3, 900]] = -7.0
    blob = encode(original, merged, delta)
    assert (blob[5], HEADER.unpack_from(blob)[5]) == (SPARSE, 2)
    for first, second in ((900, 3), (3, 3), (3, 1024)):
        with pytest.raises(CheckpointError, match="ascending"):
            decode(merged, delta, blob[: HEADER.size] + struct.pack("<II", first, second) + blob[HEADER.size + 8 :])


def test_a_candidate_that_does_not_exist_is_an_error() -> None:
    original, merged, delta = _case(torch.bfloat16, 0.3, (48, 48))
    known = candidates.candidates(merged, delta)
    assert bool((known.counts & (known.counts - 1)).any())  # some numbers of candidates are no powers of two
    blob = encode(original, merged, delta)
    start = len(blob) - len(residue.pack(known.ranks(candidates.patterns(original)), known.widths))
    with pytest.raises(CheckpointError, match="does not exist"):
        decode(merged, delta, blob[:start] + b"\xff" * (len(blob) - start))


@pytest.mark.parametrize("which", ["merged", "delta"])
def test_other_tensors_are_noticed(coded, which: str) -> None:
    _, merged, delta, blob = coded
    if which == "merged":
        merged = merged.clone()
        merged.view(-1)[100] = merged.view(-1)[100].float() * -1
    else:
        delta = delta.clone()
        delta.view(-1)[100] += 1
    with pytest.raises(CheckpointError):
        decode(merged, delta, blob)


def test_tensors_that_do_not_fit_are_refused() -> None:
    original, merged, delta = _case(torch.bfloat16, 0.1, (4, 4))
    for wrong in (
        (original, merged.float(), delta),
        (original, merged[:2], delta),
        (original, merged, delta.float()),
        (original, merged, delta[:2]),
        (original.bool(), merged.bool(), delta),
    ):
        with pytest.raises(StateError):
            encode(*wrong)


def test_blobs_are_the_same_in_any_layout_and_for_empty_blocks() -> None:
    original, merged, delta = _case(torch.bfloat16, 0.1, (40, 24))
    turned = [tensor.T.contiguous().T for tensor in (original, merged, delta)]
    assert encode(*turned) == encode(original, merged, delta)
    assert same_bits(decode(*turned[1:], encode(*turned)), original).all()
    nothing = [tensor[:0] for tensor in (original, merged, delta)]
    assert decode(*nothing[1:], encode(*nothing)).shape == (0, 24)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 33), st.integers(0, 2**40)), max_size=50))
def test_packing(pairs: list[tuple[int, int]]) -> None:
    from surgery.exact.packing import pack, packed_size, unpack

    widths = np.array([width for width, _ in pairs], dtype=np.int64)
    numbers = np.array([number % 2**width for width, number in pairs], dtype=np.int64)
    data = pack(numbers, widths)
    assert len(data) == packed_size(widths)
    assert np.array_equal(unpack(data, widths), numbers)


@pytest.mark.parametrize(
    ("dtype", "bar"), [(torch.bfloat16, 0.005), (torch.float16, 0.005), (torch.float32, 0.005)], ids=str
)
def test_real_weights(real_models, dtype: torch.dtype, bar: float) -> None:
    """Small pretrained decoders, with a random update of a hundredth of each weight's size."""
    from safetensors.torch import load_file

    stored = elements = 0
    for file in sorted(real_models.glob("*/model.safetensors")):
        for name, weight in sorted(load_file(file).items()):
            if weight.dim() != 2 or not weight.is_floating_point() or weight.numel() < 4096:
                continue
            base = weight.to(dtype)
            generator = torch.Generator().manual_seed(len(name))
            size = float(weight.float().std()) * 1e-2
            up, down = (torch.randn(shape, generator=generator) for shape in ((len(base), 8), (8, base.shape[1])))
            delta = Delta([Product(up * (size / 8**0.5), down)], tuple(base.shape))
            merged, added = merge_block(base, delta, 0), delta.block(0, len(base))
            blob = encode(base, merged, added)
            assert same_bits(decode(merged, added, blob), base).all(), name
            stored, elements = stored + len(blob), elements + base.numel()
    if not elements:
        pytest.skip("no safetensors here")
    assert stored / elements <= bar, stored / elements


def test_errors_tell_what_to_do(coded) -> None:
    with pytest.raises(SurgeryError) as caught:
        decode(coded[1], coded[2], b"x" * 100)
    assert caught.value.hint
