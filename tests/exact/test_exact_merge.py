"""Merging a block against rational arithmetic: every dtype, any bits, ties, and factors of any range."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracle import VIEWS, Overflow, delta_at, merged

from surgery.errors import StateError
from surgery.exact import Delta, Product, merge_block, same_bits

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
    except Overflow:
        with pytest.raises(StateError, match="NaN or inf"):
            merge_block(weight, delta, 0)
    else:
        got = merge_block(weight, delta, 0)
        assert same_bits(got, expected).all(), (got, expected)
        rows = torch.cat([merge_block(weight[i : i + 1], delta, i) for i in range(len(weight))])
        assert same_bits(rows, expected).all()
        own = weight.clone()
        assert merge_block(own, delta, 0, out=own) is own
        assert same_bits(own, expected).all()
    assert same_bits(weight, before).all()
