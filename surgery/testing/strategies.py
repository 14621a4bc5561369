"""Hypothesis strategies: weights of every bit pattern, and models filled with them."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st
from torch import nn

__all__ = ["DTYPES", "fill", "filled_toy_models", "tensors"]

from surgery.testing.toy import ToyModel

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_SPECIALS = {
    torch.float32: (0x00000000, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFC12345, 1, 0x80000001),
    torch.bfloat16: (0x0000, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFC1, 1, 0x8001),
    torch.float16: (0x0000, 0x8000, 0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFE12, 1, 0x8001),
}
"""Bit patterns that arithmetic loses: both zeros, infinities, NaNs with payloads, subnormals."""

_INTEGERS = {4: torch.int32, 2: torch.int16}


def tensors(shape: tuple[int, ...], dtype: torch.dtype) -> st.SearchStrategy[torch.Tensor]:
    """Tensors of `shape` and `dtype`: any bits at all, special patterns, or Gaussians over many binades."""
    size = math.prod(shape)
    width = torch.empty((), dtype=dtype).element_size()
    raw = st.binary(min_size=size * width, max_size=size * width)
    special = st.lists(st.sampled_from(_SPECIALS[dtype]), min_size=size, max_size=size).map(
        lambda values: b"".join(value.to_bytes(width, "little") for value in values)
    )
    gaussian = st.tuples(st.integers(0, 2**32), st.integers(-30, 30)).map(
        lambda drawn: _gaussian(size, dtype, drawn[0], drawn[1])
    )
    return st.one_of(gaussian, special, raw).map(
        lambda data: torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape).clone()
    )


def _gaussian(size: int, dtype: torch.dtype, seed: int, binade: int) -> bytes:
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2.0**binade
    flat = values.to(dtype)
    return bytes(flat.view(_INTEGERS[flat.element_size()]).numpy().tobytes())


@torch.no_grad()
def fill(model: nn.Module, draw: st.DrawFn) -> None:
    """Fill every parameter of a small model with drawn bits, without changing a Parameter's identity."""
    for _, parameter in sorted(model.named_parameters()):
        drawn = draw(tensors(tuple(parameter.shape), parameter.dtype))
        view = _INTEGERS[parameter.element_size()]
        # Copied as integers: a float copy may quieten signalling NaNs.
        parameter.data.view(view).copy_(drawn.view(view))


@st.composite
def filled_toy_models(draw: st.DrawFn, dtype: torch.dtype | None = None) -> ToyModel:
    """Toy models (one layer) whose every parameter holds drawn bits."""
    model = ToyModel(layers=1, dtype=dtype or draw(st.sampled_from(DTYPES)))
    fill(model, draw)
    return model
