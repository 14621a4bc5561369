"""Merging a block against rational arithmetic: every dtype, any bits, ties, and factors of any range."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import VIEWS, OverflowingError, delta_at, merged

from surgery.errors import StateError
from surgery.exact import Delta, Product, merge_block, round_once, same_bits

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64]
FACTORS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@st.composite
def factors(draw: st.DrawFn, shape: tuple[int, int]) -> torch.Tensor:
    kind = draw(st.sampled_from(["gauss", "dyadic", "zero", "wide", "tiny"]))
    dtype = draw(st.sampled_from(FACTORS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    count = shape[0] * shape[1]
    if kind == "zero":
        flat = torch.zeros(count, dtype=torch.float64)
    elif kind == "dyadic":
        flat = torch.tensor(
            [draw(st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0**-9, -3.0, 2.0**-12])) for _ in range(count)]
        )
    else:
        flat = torch.randn(count, generator=generator, dtype=torch.float64)
        if kind == "wide":
            span = 90 if dtype in (torch.float64, torch.float32, torch.bfloat16) else 12
            powers = torch.randint(-span, span // 2, (count,), generator=generator)
            flat = torch.where(torch.rand(count, generator=generator) < 0.3, torch.zeros(()), flat) * 2.0**powers
        elif kind == "tiny":
            flat = flat * 1e-5
    return flat.double().to(dtype).view(shape)


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor, float]]]:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    size = torch.empty(0, dtype=dtype).element_size()
    if draw(st.booleans()):
        raw = draw(st.binary(min_size=size * shape[0] * shape[1], max_size=size * shape[0] * shape[1]))
        weight = torch.frombuffer(bytearray(raw), dtype=dtype).view(shape).clone()
    else:
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
        weight = (torch.randn(shape, generator=generator) * 10.0 ** draw(st.integers(-6, 2))).to(dtype)
    products = []
    for _ in range(draw(st.integers(1, 3))):
        rank = draw(st.integers(0, 5))
        scale = draw(st.sampled_from([1.0, 2.0, 1 / 3, -0.1, 0.0, 1e-8, 1e20]))
        products.append((draw(factors((shape[0], rank))), draw(factors((rank, shape[1]))), scale))
    return weight, products


def _delta(weight: torch.Tensor, products: list[tuple[torch.Tensor, torch.Tensor, float]]) -> Delta:
    return Delta([Product(*product) for product in products], tuple(weight.shape))


@settings(max_examples=400, deadline=None)
@given(cases())
def test_every_element_is_the_correct_rounding(case) -> None:
    weight, products = case
    delta = _delta(weight, products)
    before = weight.clone()
    try:
        expected = merged(weight, products)
    except OverflowingError:
        with pytest.raises(StateError, match="NaN or inf"):
            merge_block(weight, delta, 0)
    else:
        got = merge_block(weight, delta, 0)
        assert same_bits(got, expected).all(), (got, expected)
        rows = torch.cat([merge_block(weight[i : i + 1], delta, i) for i in range(len(weight))])
        assert same_bits(rows, expected).all()
        added = torch.full(weight.shape, torch.nan, dtype=torch.float64)
        assert same_bits(merge_block(weight, delta, 0, added=added), expected).all()
        assert same_bits(added, delta.block(0, len(weight), correct=weight.element_size() > 2)).all()
        own = weight.clone()
        assert merge_block(own, delta, 0, out=own) is own
        assert same_bits(own, expected).all()
    assert same_bits(weight, before).all()


def test_a_row_of_huge_and_small_numbers_loses_nothing() -> None:
    """Two slices of 24 bits would miss the second term."""
    for weight in (torch.zeros(1, 1), torch.full((1, 1), 0.5)):
        delta = Delta([Product(torch.tensor([[1e20, 1.0]]), torch.tensor([[0.0], [1.5]]))], (1, 1))
        assert float(merge_block(weight, delta, 0)) == float(weight) + 1.5
        assert float(delta.block(0, 1)) == 1.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_near_ties_round_to_the_nearer_side(dtype: torch.dtype) -> None:
    """W + delta is a midpoint, or off by much less than float32 (or float64) can tell: double rounding goes wrong."""
    half = torch.finfo(dtype).eps / 2
    for offset in (0.0, 2.0**-60, -(2.0**-60), 2.0**-30, -(2.0**-30)):
        up, down = (
            torch.tensor([[half, 1.0]], dtype=torch.float64),
            torch.tensor([[1.0], [offset]], dtype=torch.float64),
        )
        for base in (1.0, 1.0 + 2 * half, -1.0):
            weight = torch.tensor([[base]], dtype=dtype)
            products = [(up, down, 1.0)]
            assert same_bits(merge_block(weight, _delta(weight, products), 0), merged(weight, products)).all()


@pytest.mark.parametrize("is_correct", [True, False])
@pytest.mark.parametrize("dtype", DTYPES[:5], ids=str)
def test_zeros_nans_and_infinities_of_the_weight_keep_their_bits(dtype: torch.dtype, is_correct: bool) -> None:
    patterns = {
        torch.float32: [-(2**31), 0x7FC00001, 0x7F800000, -0x800000, 0],
        torch.bfloat16: [-(2**15), 0x7FC1, 0x7F80, -0x80, 0],
        torch.float16: [-(2**15), 0x7E01, 0x7C00, -0x400, 0],
        torch.float8_e4m3fn: [0x80, 0x7F, 0xFF, 0x7F, 0],
        torch.float8_e5m2: [0x80, 0x7D, 0x7C, 0xFC, 0],
    }[dtype]
    weight = torch.tensor([patterns], dtype=VIEWS[dtype.itemsize]).view(dtype)
    nothing = _delta(weight, [(torch.zeros(1, 1), torch.ones(1, 5), 1.0)])
    assert same_bits(merge_block(weight, nothing, 0, is_correct), weight).all()
    partly = _delta(weight, [(torch.ones(1, 1), torch.tensor([[0.0, 1.0, 1.0, -1.0, 1.0]]), 1.0)])
    got = merge_block(weight, partly, 0, is_correct)
    assert same_bits(got[:, :4], weight[:, :4]).all()
    assert float(got[0, 4]) == 1.0


@pytest.mark.parametrize("is_correct", [True, False])
@pytest.mark.parametrize(
    ("dtype", "largest", "most"),
    [
        (torch.float16, 65504.0, 65519.99),
        (torch.float32, 3.4028234663852886e38, None),
        (torch.bfloat16, 3.3895313892515355e38, None),
        (torch.float8_e4m3fn, 448.0, 464.0),
        (torch.float8_e5m2, 57344.0, 61439.0),
    ],
    ids=str,
)
def test_overflow_is_refused_with_its_place(
    dtype: torch.dtype, largest: float, most: float | None, is_correct: bool
) -> None:
    weight = torch.zeros(4, 3, dtype=dtype)
    weight[2, 1] = largest
    down = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    if most is not None:
        fits = _delta(weight, [(torch.full((4, 1), most - largest, dtype=torch.float64), down, 1.0)])
        assert float(merge_block(weight, fits, 0)[2, 1]) == largest
    up = torch.full((4, 1), largest / 2, dtype=torch.float64)
    for start, block in ((0, weight), (2, weight[2:3])):
        with pytest.raises(StateError, match="NaN or inf") as caught:
            merge_block(block, _delta(weight, [(up, down, 1.0)]), start, is_correct)
        assert caught.value.where == "row 2, column 1"
        assert caught.value.hint


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("factor", FACTORS[:2], ids=str)
def test_large_blocks_are_right_and_the_quick_way_is_seldom_wrong(dtype: torch.dtype, factor: torch.dtype) -> None:
    """Against float64 with TwoSum, on 400,000 elements in blocks of several sizes."""
    generator = torch.Generator().manual_seed(1)
    weight = (torch.randn(700, 600, generator=generator) * 0.02).to(dtype)
    up = (torch.randn(700, 16, generator=generator) * 1e-4).to(factor)
    down = torch.randn(16, 600, generator=generator).to(factor)
    delta = _delta(weight, [(up, down, 0.5)])
    got = merge_block(weight, delta, 0)
    for rows in (1, 13, 350):
        blocks = [merge_block(weight[i : i + rows], delta, i) for i in range(0, 700, rows)]
        assert same_bits(torch.cat(blocks), got).all()
    plain = round_once(weight.double() + 0.5 * (up.double() @ down.double()), dtype)
    assert int((~same_bits(got, plain)).sum()) <= (4 if factor == torch.float32 else 0)
    quick = merge_block(weight, delta, 0, correct=False)
    assert int((~same_bits(got, quick)).sum()) < weight.numel() // (20 if dtype == torch.float32 else 4000)


def test_threads_blocks_and_libraries_do_not_matter() -> None:
    import numpy as np

    generator = torch.Generator().manual_seed(2)
    up, down = torch.randn(96, 24, generator=generator), torch.randn(24, 80, generator=generator)
    delta = Delta([Product(up, down, 1 / 3), Product(up.bfloat16(), down, 2.0)], (96, 80))
    for is_correct in (True, False):
        whole = delta.block(0, 96, is_correct)
        for rows in (1, 7, 64):
            parts = torch.cat([delta.block(i, min(i + rows, 96), is_correct) for i in range(0, 96, rows)])
            assert same_bits(parts, whole).all()
        torch.set_num_threads(2)
        assert same_bits(delta.block(0, 96, is_correct), whole).all()
        torch.set_num_threads(1)
    for left, right in delta._all_slices[0].groups:
        expected = left @ right
        order = torch.randperm(left.shape[1], generator=generator)
        assert same_bits(left[:, order] @ right[order], expected).all()
        steps = torch.zeros_like(expected)
        for index in range(left.shape[1]):
            steps += torch.outer(left[:, index], right[index])
        assert same_bits(steps, expected).all()
        assert np.array_equal(np.einsum("ij,jk->ik", left.numpy(), right.numpy()), expected.numpy())


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_slices_add_up_exactly(data: st.DataObject) -> None:
    from fractions import Fraction

    from surgery.exact.slices import sliced

    shape = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    up, down = data.draw(factors(shape[:2])).double(), data.draw(factors(shape[1:])).double()
    total = [[Fraction(0)] * shape[2] for _ in range(shape[0])]
    for left, right in sliced(up, down).groups:
        product = left @ right
        for row in range(shape[0]):
            for column in range(shape[2]):
                exact = delta_at([(left, right, 1.0)], row, column)
                assert exact == Fraction(float(product[row, column]))
                total[row][column] += exact
    for row in range(shape[0]):
        for column in range(shape[2]):
            assert total[row][column] == delta_at([(up, down, 1.0)], row, column)


def test_a_program_that_allows_less_than_float32_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(64, 64, generator=generator).bfloat16()
    products = [(torch.randn(64, 8, generator=generator), torch.randn(8, 64, generator=generator), 0.1)]
    expected = merge_block(weight, _delta(weight, products), 0)
    torch.set_float32_matmul_precision("medium")
    try:
        assert same_bits(merge_block(weight, _delta(weight, products), 0), expected).all()
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_ties_below_the_normal_range_of_float32(precision: str) -> None:
    """There bfloat16 has as small numbers as float32, and a number just beside a tie is one in float32."""
    unit = 2.0**-133
    weight = (torch.arange(64).view(8, 8) * unit).bfloat16()
    torch.set_float32_matmul_precision(precision)
    try:
        for beside in (0.0, 2.0**-160, -(2.0**-160)):
            up = torch.full((8, 2), 2.0**-60, dtype=torch.float64)
            down = torch.tensor([unit / 2, beside], dtype=torch.float64)[:, None].expand(2, 8) * 2.0**60
            products = [(up, down, 1.0)]
            assert same_bits(merge_block(weight, _delta(weight, products), 0), merged(weight, products)).all()
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("up", "down", "scale", "what"),
    [
        (torch.tensor([[1.0], [float("nan")]]), torch.ones(1, 2), 1.0, "NaN or inf"),
        (torch.ones(2, 1), torch.tensor([[1.0, float("inf")]]), 1.0, "NaN or inf"),
        (torch.ones(2, 1), torch.ones(2, 2), 1.0, "no product"),
        (torch.ones(2, 1), torch.ones(1, 2), float("nan"), "scale"),
        (torch.ones(2, 1), torch.ones(1, 2), 1e200, "scale"),
        (torch.ones(2, 1, dtype=torch.float64) * 1e70, torch.ones(1, 2), 1.0, "beyond"),
        (torch.ones(2, 1, dtype=torch.int64), torch.ones(1, 2), 1.0, "int64"),
        (torch.ones(3, 1), torch.ones(1, 2), 1.0, "does not fit"),
    ],
)
def test_bad_adapters_are_refused(up: torch.Tensor, down: torch.Tensor, scale: float, what: str) -> None:
    with pytest.raises(StateError, match=what) as caught:
        Delta([Product(up, down, scale)], (2, 2))
    assert caught.value.hint


def test_no_products_no_rows_and_unknown_dtypes() -> None:
    weight = torch.full((2, 2), -0.0)
    assert same_bits(merge_block(weight, Delta([], (2, 2)), 0), weight).all()
    assert merge_block(weight[:0], Delta([], (2, 2)), 0).shape == (0, 2)
    assert float(Delta([], (2, 2)).block(0, 2).sum()) == 0.0
    with pytest.raises(StateError, match="int64"):
        merge_block(weight.long(), Delta([], (2, 2)), 0)
