"""Deliberate mistakes in the arithmetic and the codec: each is noticed by the test that is named beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import test_exact_merge as merging
import test_exact_residue as coding
import torch
from oracle import delta_at, merged

from surgery.exact import (
    Delta,
    Product,
    bounds,
    candidates,
    loops,
    merge_block,
    packing,
    residue,
    same_bits,
    settle,
    slices,
)
from surgery.exact import filter as quick

Patch = Callable[[pytest.MonkeyPatch], None]


def decided_by_bounds() -> None:
    """Products of large cancelling terms: float32 is off by much more than the last bit of the sum."""
    generator = torch.Generator().manual_seed(4)
    for dtype in (torch.bfloat16, torch.float32):
        weight = (torch.randn(32, 32, generator=generator) * 0.02).to(dtype)
        up, down = torch.randn(32, 6, generator=generator), torch.randn(6, 32, generator=generator)
        big = 1e2 if dtype == torch.bfloat16 else 1e8
        products = [(torch.cat([up * big, -up * big, up], 1), torch.cat([down, down, down * 0.01]), 1.0)]
        delta = Delta([Product(*one) for one in products], (32, 32))
        assert same_bits(merge_block(weight, delta, 0), merged(weight, products)).all()


def exact_ties() -> None:
    """Adapters of few bits make W + delta a midpoint, or just not."""
    generator = torch.Generator().manual_seed(5)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        unit = torch.finfo(dtype).eps
        weight = (1 + torch.randint(0, 64, (40, 40), generator=generator) * unit).to(dtype)
        up = torch.randint(-3, 4, (40, 2), generator=generator) * unit / 2
        up[:, 1] *= 2.0**-30
        products = [(up.double(), torch.randint(-1, 2, (2, 40), generator=generator).double(), 1.0)]
        delta = Delta([Product(*one) for one in products], (40, 40))
        assert same_bits(merge_block(weight, delta, 0), merged(weight, products)).all()


def zeros() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        merging.test_zeros_nans_and_infinities_of_the_weight_keep_their_bits(dtype, True)


def small() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        coding.test_residues_are_small(dtype, 1e-2)
        coding.test_residues_are_small(dtype, 1.0)


def other_tensors() -> None:
    original, added, delta = coding._case(torch.bfloat16, 0.3, (48, 48))
    coding.test_other_tensors_are_noticed((original, added, delta, residue.encode(original, added, delta)), "delta")


def exact_slices() -> None:
    merging.test_a_row_of_huge_and_small_numbers_loses_nothing()
    merging.test_threads_blocks_and_libraries_do_not_matter()


def full_slices() -> None:
    """Numbers of 53 bits fill every slice."""
    generator = torch.Generator().manual_seed(6)
    up, down = (torch.rand(shape, generator=generator, dtype=torch.float64) for shape in ((3, 20), (20, 3)))
    for left, right in slices.sliced(up, down).groups:
        product = left @ right
        for row in range(3):
            for column in range(3):
                assert float(product[row, column]) == delta_at([(left, right, 1.0)], row, column)


def packed() -> None:
    coding.test_packing()


def _no_error(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(bounds.Approximation, "error", lambda self, unit, rows, columns: rows * columns * 0.0)


def _no_filter(patch: pytest.MonkeyPatch) -> None:
    real = quick._by_bounds
    patch.setattr(quick, "_by_bounds", lambda *args: real(*args) & False)


def _always_exact(patch: pytest.MonkeyPatch) -> None:
    real = bounds.spans
    patch.setattr(bounds, "spans", lambda factor, axis: real(factor, axis) * 0)


def _cast_twice(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(settle, "round_once", lambda value, dtype: value.float().to(dtype))


def _not_odd(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(settle, "to_odd", lambda total, rest: total)
    patch.setattr(bounds, "_to_odd", sum)


def _nothing_stays(patch: pytest.MonkeyPatch) -> None:
    real = settle._by_product

    def moved(*args):
        number, stays = real(*args)
        return number.nan_to_num(0.0), stays & False

    patch.setattr(settle, "_by_product", moved)


def _two_slices(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(slices, "_slices", lambda f, axis, beta, most, real=slices._slices: real(f, axis, beta, most)[:2])


def _wide_slices(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(slices, "_width", lambda length, real=slices._width: real(length) + 8)


def _no_interval(patch: pytest.MonkeyPatch) -> None:
    def empty(own, delta, dtype):
        low = candidates._order(own, dtype.itemsize)
        return low, low - 1

    patch.setattr(candidates, "_interval", empty)


def _interval_moved(patch: pytest.MonkeyPatch) -> None:
    real = candidates._interval
    patch.setattr(candidates, "_interval", lambda *args: tuple(end + 1 for end in real(*args)))


def _no_patches(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(residue, "_patches", lambda own, wrong, ranks: (0, ranks))


def _naive_inverse(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(candidates._EXPONENTS, torch.bfloat16, 0)
    patch.setitem(candidates._EXPONENTS, torch.float32, 0)


def _no_digest(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(residue.xxhash, "xxh3_64_intdigest", lambda data: 7)


def _bits_reversed(patch: pytest.MonkeyPatch) -> None:
    real = packing.np.packbits
    patch.setattr(packing.np, "packbits", lambda bits, bitorder: real(bits, bitorder="big"))


MUTANTS: dict[str, tuple[Patch, Callable[[], None]]] = {
    "the error of products is forgotten": (_no_error, decided_by_bounds),
    "nothing is undecided": (_no_filter, decided_by_bounds),
    "every product is taken to be exact": (_always_exact, decided_by_bounds),
    "rounding happens twice": (_cast_twice, exact_ties),
    "sums are rounded to nearest before": (_not_odd, exact_ties),
    "zeros and NaN of W are computed": (_nothing_stays, zeros),
    "two slices are enough": (_two_slices, exact_slices),
    "slices are eight bits too wide": (_wide_slices, full_slices),
    "no candidates are counted": (_no_interval, small),
    "candidates are off by one": (_interval_moved, small),
    "nothing is patched": (_no_patches, small),
    "W' - delta is W": (_naive_inverse, small),
    "no checksum": (_no_digest, other_tensors),
    "bits are packed the other way round": (_bits_reversed, packed),
}


@pytest.fixture(scope="module", autouse=True)
def arithmetic() -> Iterator[None]:
    """The mistakes are made in the plain forms; `test_exact_compiled` has those of the compiled loops."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "_compiled", lambda: None)
        yield


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_a_mutant_dies(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, check = MUTANTS[name]
    check()
    with monkeypatch.context() as inside:
        patch(inside)
        with pytest.raises((Exception, pytest.fail.Exception)):
            check()
    check()
