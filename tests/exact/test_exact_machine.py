"""The start-up canary sees modes in which nothing would be exact, and the check of products sees one wrong bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.errors import StateError
from surgery.exact import check_machine, check_product
from surgery.exact.slices import sliced


@pytest.fixture
def flushing() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormal numbers")
    yield
    torch.set_flush_denormal(False)


def test_this_machine_is_exact() -> None:
    check_machine()


@pytest.mark.usefixtures("flushing")
def test_flushing_subnormal_numbers_is_refused() -> None:
    with pytest.raises(StateError, match="subnormal") as caught:
        check_machine()
    assert "set_flush_denormal" in caught.value.hint


def test_products_of_less_than_float64_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.Tensor.__matmul__

    def emulated(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        # As tensor cores do it: 45 bits of a product that needs 53.
        exact = real(left, right)
        return exact - exact % 256.0

    monkeypatch.setattr(torch.Tensor, "__matmul__", emulated)
    with pytest.raises(StateError, match="float64 products"):
        check_machine()


def test_casts_that_cut_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.Tensor.to

    def cutting(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if tensor.dtype == torch.float32 and dtype == torch.bfloat16:
            return real(tensor.view(torch.int32) >> 16, torch.int16).view(torch.bfloat16)
        return real(tensor, dtype)

    monkeypatch.setattr(torch.Tensor, "to", cutting)
    with pytest.raises(StateError, match="ties"):
        check_machine()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 9), st.integers(1, 20), st.integers(1, 9), st.data())
def test_one_wrong_bit_of_a_product_is_seen(seed: int, rows: int, rank: int, columns: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(rows, rank, generator=generator).double() * 2.0 ** data.draw(st.integers(-40, 40))
    down = torch.randn(rank, columns, generator=generator).double()
    for left, right in sliced(up, down).groups:
        product = left @ right
        check_product(left, right, product, generator)
        place = data.draw(st.integers(0, product.numel() - 1))
        for bit in (0, 1, 30, 51, 52):
            wrong = product.clone()
            wrong.view(torch.int64).view(-1)[place] ^= 1 << bit
            with pytest.raises(StateError, match="not what its factors make"):
                check_product(left, right, wrong, generator)


def test_zeros_are_a_product() -> None:
    zeros = torch.zeros(3, 4, dtype=torch.float64)
    check_product(torch.zeros(3, 2).double(), torch.zeros(2, 4).double(), zeros, torch.Generator())
    with pytest.raises(StateError):
        check_product(torch.zeros(3, 2).double(), torch.zeros(2, 4).double(), zeros + 1.0, torch.Generator())
