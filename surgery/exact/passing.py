"""Merging a block and all that is asked of it, in one compiled pass: rounding, sums of a report, a residue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from surgery.exact.candidates import Candidates, patterns
from surgery.exact.coded import Strays
from surgery.exact.delta import Delta
from surgery.exact.filter import rule_for
from surgery.exact.loops import compiled_for, unsigned
from surgery.exact.residue import encode_known
from surgery.exact.rounding import format_of
from surgery.exact.scratch import scratch
from surgery.exact.settle import refuse, settle

__all__ = ["Passage", "passage"]

Ints = npt.NDArray[Any]

_WIDE = 128
"""Columns from which on a row is worth a call."""


@dataclass(frozen=True)
class Passage:
    """What came of a block.

    Attributes:
        sums: squares of the base, of the delta, and of what storing lost; elements that were to move, and that did not.
        residue: what `encode` gives, if it was asked for.
    """

    sums: tuple[float, ...]
    residue: bytes | None


@torch.no_grad()
def passage(
    weight: torch.Tensor, delta: Delta, start: int, *, correct: bool, out: torch.Tensor, with_residue: bool
) -> Passage | None:
    """Do to rows start..start+n what `merge_block`, `Delta.block` and `encode` do, to the bit; None where it does not.

    Args:
        weight, delta, start, correct, out: as of `merge_block`; `out` is not `weight`.
        with_residue: whether there is to be a residue.

    Raises:
        StateError: a finite weight would not be finite any more.
    """
    is_wide = weight.dtype == torch.float32
    loops = compiled_for(weight, "pass")
    if loops is None or weight.shape[1] < _WIDE or (is_wide and not correct) or not delta.products:
        return None
    weight = weight.detach().contiguous()
    size, form = weight.numel(), format_of(weight.dtype)
    own, result = unsigned(weight), unsigned(out)
    where, places, first, counts, wrong = scratch("pass", (5, size), torch.int64).numpy()
    guess = unsigned(scratch("guess", (size if with_residue else 0,), weight.dtype))
    rule = *rule_for(delta, slice(start, start + len(weight)), weight.dtype), correct
    counted, sums, found = np.zeros(4, np.int64), np.zeros(5), []
    tiles, is_rounded = np.arange(0, len(weight), loops.TILE), False
    while len(tiles):
        loops.whole_pass(
            own, start, delta.joined(correct=is_wide), delta.approximation.dots, rule, tiles, is_rounded, result,
            where, (guess, places, first, counts, wrong), counted, sums,
        )  # fmt: skip
        open_, several, stray, lost = counted.tolist()
        found.append([*(one[:several] for one in (places, first, counts)), wrong[:stray], np.array([lost])])
        left = where[:open_]
        tiles, is_rounded = np.unique(left // weight.shape[1] // loops.TILE) * loops.TILE, True
        if not open_:
            break
        # Few elements, if any, but there is one that needs more than float64, in this block or the next, of all.
        found[0] = [one.copy() for one in found[0]]
        if not correct:
            refuse(int(left[0]), start, weight.shape[1], form)
        settle(weight, delta.approximation, start, form, out, torch.from_numpy(left.copy()))
    if not with_residue:
        return Passage(tuple(sums.tolist()), None)
    places, first, counts, wrong, there = _joined(found)
    known = Candidates(guess.view(patterns(weight).dtype), places, first, counts)
    return Passage(tuple(sums.tolist()), encode_known(weight, known, Strays(wrong, int(there.sum()))))


def _joined(found: list[list[Ints]]) -> list[Ints]:
    """Return lists of one or two passes over rows of their own as one, in the order of places."""
    if len(found) == 1:
        return found[0]
    places, first, counts, wrong, there = (np.concatenate(several) for several in zip(*found, strict=True))
    order = np.argsort(places, kind="stable")
    return [places[order], first[order], counts[order], np.sort(wrong, kind="stable"), there]
