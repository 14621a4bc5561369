"""A tape without numbers: operations on shapes, what they compute and what they keep for the backward pass.

Each operation follows what PyTorch's autograd does for it: a gradient is computed, and a tensor kept, only where
something that is trained lies upstream. The rules are stated beside the operations.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["MASKS", "STATISTIC_BYTES", "Tape", "Value"]

MASKS = "dropout masks"
"""The part of all masks, wherever the dropout is."""

STATISTIC_BYTES = 4
"""Means, reciprocal deviations and log-sums are kept in float32."""


@dataclass(eq=False)
class Value:
    """An intermediate result of `rows` x `width` numbers.

    Attributes:
        rows, width: its shape, all axes but the last as one.
        size: bytes of one number.
        grad: whether a gradient flows into it.
        base: the value whose memory it is a view of; None where it has its own.
    """

    rows: int
    width: int
    size: int
    grad: bool
    base: Value | None = None

    @property
    def bytes(self) -> int:
        return self.rows * self.width * self.size

    def like(self, *others: Value, width: int | None = None) -> Value:
        """Return a new result computed from this value and `others`."""
        grad = self.grad or any(other.grad for other in others)
        return Value(self.rows, self.width if width is None else width, self.size, grad)


@dataclass
class Tape:
    """Counts while a model is walked through.

    Attributes:
        fused_dropout: dropout keeps a mask of one byte for each number (CUDA); else one number for each (CPU).
        part: the name under which operations are counted.
        forward, backward: floating-point operations of matrix products by part, two for a multiplication and addition.
        saved: bytes kept for the backward pass by part, each tensor's memory once, under the part that kept it first.
    """

    fused_dropout: bool = False
    part: str = ""
    forward: Counter[str] = field(default_factory=Counter)
    backward: Counter[str] = field(default_factory=Counter)
    saved: Counter[str] = field(default_factory=Counter)
    _kept: set[Value] = field(default_factory=set)

    def keep(self, value: Value) -> None:
        """Keep a value for the backward pass; a view keeps all that it is a view of."""
        owner = value.base or value
        if owner not in self._kept:
            self._kept.add(owner)
            self.saved[self.part] += owner.bytes

    def product(self, rows: int, inner: int, columns: int, *, left: bool, right: bool) -> None:
        """Count (rows, inner) @ (inner, columns), and the gradients of its left and right factor where wanted."""
        work = 2 * rows * inner * columns
        self.forward[self.part] += work
        self.backward[self.part] += work * (left + right)

    def linear(self, x: Value, columns: int, *, weight: bool, bias: bool) -> Value:
        """X W^T + b. The input is kept for W's gradient only; W itself is no activation. b's gradient is a sum."""
        self.product(x.rows, x.width, columns, left=x.grad, right=weight)
        if weight:
            self.keep(x)
        return Value(x.rows, columns, x.size, x.grad or weight or bias)

    def low_rank(self, x: Value, output: Value, rank: int, dropout: float) -> Value:
        """Output + scale * (dropout(x) down^T) up^T, both factors trained and kept in float32 at least."""
        inputs = x
        if x.size < STATISTIC_BYTES:
            inputs = Value(x.rows, x.width, STATISTIC_BYTES, x.grad)
        inputs = self.dropout(inputs, dropout)
        self.keep(inputs)
        self.product(x.rows, x.width, rank, left=x.grad, right=True)
        low = Value(x.rows, rank, inputs.size, grad=True)
        self.keep(low)
        self.product(x.rows, rank, output.width, left=True, right=True)
        return Value(output.rows, output.width, output.size, grad=True)

    def dropout(self, x: Value, probability: float) -> Value:
        """X * mask. The mask is kept where x has a gradient."""
        if not probability:
            return x
        if x.grad:
            self.saved[MASKS] += x.rows * x.width * (1 if self.fused_dropout else x.size)
        return x.like()

    def layer_norm(self, x: Value, *, trained: bool) -> Value:
        """(x - mean) / deviation * w + b: one kernel, which keeps x, the means and the reciprocal deviations."""
        if x.grad or trained:
            self.keep(x)
            self.saved[self.part] += 2 * STATISTIC_BYTES * x.rows
        return Value(x.rows, x.width, x.size, x.grad or trained)

    def rms_norm(self, x: Value, *, trained: bool) -> Value:
        """W * (x / rms(x)), written out: x in float32 and 1/rms for x's gradient, the quotient for w's."""
        if x.grad:
            wide = x if x.size >= STATISTIC_BYTES else Value(x.rows, x.width, STATISTIC_BYTES, x.grad)
            self.keep(wide)
            self.saved[self.part] += STATISTIC_BYTES * x.rows
        if trained:
            self.keep(x.like())
        return Value(x.rows, x.width, x.size, x.grad or trained)

    def activation(self, x: Value, inputs: int, outputs: int) -> Value:
        """An elementwise function that keeps `inputs` tensors of x's size (x first), and its result if `outputs`."""
        result = x.like()
        if x.grad:
            for index in range(inputs):
                self.keep(x if index == 0 else x.like())
            if outputs:
                self.keep(result)
        return result

    def times(self, a: Value, b: Value) -> Value:
        """A * b: each factor is kept for the other's gradient."""
        if b.grad:
            self.keep(a)
        if a.grad:
            self.keep(b)
        return a.like(b)

    def add(self, *terms: Value) -> Value:
        """Keep nothing, and add."""
        return terms[0].like(*terms[1:])
