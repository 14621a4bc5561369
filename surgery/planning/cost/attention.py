"""Scaled dot-product attention on the tape: as one fused kernel, or written out as two products and a softmax."""

from __future__ import annotations

from dataclasses import dataclass

from surgery.planning.cost.tape import STATISTIC_BYTES, Tape, Value

__all__ = ["Attention"]


@dataclass(frozen=True)
class Attention:
    """What every attention of a model has in common.

    Attributes:
        batch, length: examples, and tokens of each.
        heads, groups, width: heads of queries, heads of keys and values, numbers of one head.
        dropout: probability of a dropout on the attention's weights.
        fused: one kernel computes it and keeps no matrix of length x length.
        mask: padding is masked with a (batch, length, length) table, which is kept; None where there is none.
    """

    batch: int
    length: int
    heads: int
    groups: int
    width: int
    dropout: float
    fused: bool
    mask: Value | None

    def __call__(self, tape: Tape, query: Value, key: Value, value: Value) -> Value:
        """Return softmax(query key^T / sqrt(width)) value, (batch * length, heads * width)."""
        if self.groups < self.heads and (self.mask is not None or not self.fused):
            # Groups are repeated for every head of theirs: copies of full width.
            key, value = (each.like(width=self.heads * self.width) for each in (key, value))
        return self._fused(tape, query, key, value) if self.fused else self._written_out(tape, query, key, value)

    def _product(self, tape: Tape, *, left: bool, right: bool) -> None:
        tape.product(self.batch * self.heads * self.length, self.width, self.length, left=left, right=right)

    def _fused(self, tape: Tape, query: Value, key: Value, value: Value) -> Value:
        output = query.like(key, value)
        self._product(tape, left=False, right=False)
        self._product(tape, left=False, right=False)
        if output.grad:
            # The kernel gives all gradients or none: the scores once more, then two products for each product.
            tape.backward[tape.part] += 5 * 2 * self.batch * self.heads * self.length**2 * self.width
            for each in (query, key, value, output):
                tape.keep(each)
            if self.mask is not None:
                tape.keep(self.mask)
            tape.saved[tape.part] += STATISTIC_BYTES * self.batch * self.heads * self.length
        return output

    def _written_out(self, tape: Tape, query: Value, key: Value, value: Value) -> Value:
        # Query and key are scaled first, and values are laid out anew: copies of their own.
        query, key, value = query.like(), key.like(), value.like()
        if key.grad:
            tape.keep(query)
        if query.grad:
            tape.keep(key)
        self._product(tape, left=query.grad, right=key.grad)
        weights = Value(self.batch * self.heads * self.length, self.length, query.size, query.grad or key.grad)
        if weights.grad:
            tape.keep(weights)
        dropped = tape.dropout(weights, self.dropout)
        if value.grad:
            tape.keep(dropped)
        if weights.grad:
            tape.keep(value)
        self._product(tape, left=weights.grad, right=value.grad)
        return Value(query.rows, query.width, query.size, weights.grad or value.grad)
