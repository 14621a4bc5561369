"""Singular values and vectors of one matrix: all of them where it is small, the leading ones where it is large."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from surgery.errors import StateError

__all__ = ["EXACT_UP_TO", "Decomposition", "decompose", "decompose_product", "leading"]

EXACT_UP_TO = 1024
"""Matrices whose shorter side is at most this are decomposed exactly: about half a second of one core."""
_OVERSAMPLE = 10
_POWERS = 2
_PROBES = 10
_FIRST_SKETCH = 64


@dataclass(frozen=True, eq=False)
class Decomposition:
    """The leading singular triplets of a matrix M (m, n): M is left * values @ right, or about that.

    Attributes:
        left: (m, k), orthonormal columns; float64, or float32 for a sketch of a float32 matrix.
        values: (k), descending.
        right: (k, n), orthonormal rows.
        energy: |M|^2 (Frobenius), of the whole of M.
        is_exact: whether no triplet was left out.
        spectral_error: how large M - left * values @ right may be in the spectral norm, see `decompose`; 0 for exact.
    """

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor
    energy: float
    is_exact: bool = True
    spectral_error: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of M."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def norm(self) -> float:
        """|M| (Frobenius)."""
        return math.sqrt(self.energy)

    @property
    def missed(self) -> float:
        """Share of |M|^2 outside of the triplets: an exact number, the projection being orthogonal."""
        if self.is_exact or not self.energy:
            return 0.0
        return max(0.0, 1.0 - float(self.values.square().sum()) / self.energy)

    def cut(self, rank: int) -> Decomposition:
        """Return the first `rank` triplets, with the same `energy`."""
        if rank >= len(self.values):
            return self
        beyond = max(float(self.values[rank]), self.spectral_error)
        cut = self.left[:, :rank], self.values[:rank], self.right[:rank]
        return Decomposition(*cut, self.energy, is_exact=False, spectral_error=beyond)


@torch.no_grad()
def decompose(
    matrix: torch.Tensor,
    *,
    rank: int | None = None,
    energy: float | None = None,
    seed: int = 0,
    exact_up_to: int = EXACT_UP_TO,
    vectors: bool = True,
) -> Decomposition:
    """Decompose a matrix: exactly (`torch.linalg.svd`) up to a size, else by a randomised range finder.

    The randomised one is Halko, Martinsson and Tropp 2011 (arXiv 0909.4061), algorithms 4.4 (two power iterations,
    orthonormalised in between) and 5.1. Its spectral error is bounded by their equation 4.3 with ten probes, which
    fails with probability 1e-10; its Frobenius error (`missed`) is exact.

    Args:
        matrix: (m, n), finite, floating point.
        rank: how many triplets are wanted; None for 64, or what `energy` needs.
        energy: the sketch is doubled until it holds this share of |M|^2; a matrix that needs more than half of its
            triplets is decomposed exactly.
        seed: of the sketch; the process's own random state is neither read nor changed.
        exact_up_to: the largest shorter side of what is decomposed exactly.
        vectors: False leaves the vectors of an exact decomposition out, (m, 0) and (0, n): a third of the time.

    Raises:
        StateError: no matrix, or NaN or inf in it.
    """
    matrix, total = _checked(matrix, exact_up_to)
    shorter = min(matrix.shape)
    sketch = (rank or _FIRST_SKETCH) + _OVERSAMPLE
    if not total:
        return _zero(matrix)
    while shorter > exact_up_to and sketch <= shorter // 2:
        found = _sketched(matrix, total, sketch, seed)
        if energy is None or 1.0 - found.missed >= energy:
            return found
        sketch *= 2
    # Scaled: squares of tiny weights must not vanish, nor those of huge ones overflow.
    largest = float(matrix.abs().amax())
    if not vectors:
        values = torch.linalg.svdvals(matrix.double() / largest)
        return Decomposition(matrix[:, :0], values * largest, matrix[:0], total)
    left, values, right = torch.linalg.svd(matrix.double() / largest, full_matrices=False)
    return Decomposition(left, values * largest, right, total)


@torch.no_grad()
def leading(matrix: torch.Tensor, count: int, *, seed: int = 0, exact_up_to: int = EXACT_UP_TO) -> Decomposition:
    """Return the first `count` triplets without the others, for what asks for the strongest directions alone.

    Small matrices go through the eigenvectors of M M^T or M^T M, which loses half of the digits of values that are
    small beside the largest, and none that matter of leading ones. Large ones are sketched as in `decompose`.

    Raises:
        StateError: as `decompose`.
    """
    matrix, total = _checked(matrix, exact_up_to)
    if not total or min(matrix.shape) > exact_up_to:
        return decompose(matrix, rank=count, seed=seed, exact_up_to=exact_up_to).cut(count)
    is_tall = matrix.shape[0] > matrix.shape[1]
    scaled = matrix / float(matrix.abs().amax())
    scaled = scaled.mT if is_tall else scaled
    left = torch.linalg.eigh(scaled @ scaled.mT)[1].flip(1)[:, :count]
    right = left.mT @ (matrix.mT if is_tall else matrix)
    values = torch.linalg.vector_norm(right, dim=1)
    right /= values.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    pair = (right.mT, left.mT) if is_tall else (left, right)
    return Decomposition(pair[0], values, pair[1], total, is_exact=count >= min(matrix.shape))


def _checked(matrix: torch.Tensor, exact_up_to: int) -> tuple[torch.Tensor, float]:
    """Return the matrix in the dtype that it is looked at in, and |M|^2."""
    if matrix.dim() != 2 or not matrix.is_floating_point():
        raise StateError(f"a {matrix.dtype} tensor of shape {list(matrix.shape)} has no singular values")
    matrix = matrix.detach().cpu()
    matrix = matrix if matrix.dtype == torch.float32 and min(matrix.shape) > exact_up_to else matrix.double()
    if not bool(torch.isfinite(matrix).all()):
        raise StateError("the matrix holds NaN or inf", hint="look at it with surgery diff")
    return matrix, float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2


@torch.no_grad()
def decompose_product(up: torch.Tensor, down: torch.Tensor, scale: float = 1.0) -> Decomposition:
    """Decompose scale * up @ down, (m, r) by (r, n), from its factors: exact, in O((m + n) r^2), no (m, n) tensor.

    With up = Q1 R1 and down^T = Q2 R2, the singular values are those of the small R1 R2^T.
    """
    up, down = up.detach().cpu().double(), down.detach().cpu().double()
    if not bool(torch.isfinite(up).all() and torch.isfinite(down).all()):
        raise StateError("the factors hold NaN or inf")
    (first, one), (second, other) = torch.linalg.qr(up), torch.linalg.qr(down.mT)
    core = decompose(scale * (one @ other.mT))
    return replace(core, left=first @ core.left, right=core.right @ second.mT)


def _sketched(matrix: torch.Tensor, total: float, size: int, seed: int) -> Decomposition:
    generator = torch.Generator().manual_seed(seed)
    basis = _orthonormal(matrix @ torch.randn(matrix.shape[1], size, generator=generator, dtype=matrix.dtype))
    for _ in range(_POWERS):
        basis = _orthonormal(matrix @ _orthonormal(matrix.mT @ basis))
    small = basis.mT @ matrix
    inner, values, right = torch.linalg.svd(small, full_matrices=False)
    probes = matrix @ torch.randn(matrix.shape[1], _PROBES, generator=generator, dtype=matrix.dtype)
    left_over = probes - basis @ (basis.mT @ probes)
    bound = 10.0 * math.sqrt(2.0 / math.pi) * float(torch.linalg.vector_norm(left_over, dim=0).amax())
    return Decomposition(basis @ inner, values, right, total, is_exact=False, spectral_error=bound)


def _orthonormal(matrix: torch.Tensor) -> torch.Tensor:
    basis: torch.Tensor = torch.linalg.qr(matrix)[0]
    return basis


def _zero(matrix: torch.Tensor) -> Decomposition:
    rows, columns = matrix.shape
    shorter = min(rows, columns)
    eye = torch.eye(max(rows, columns), dtype=torch.float64)
    return Decomposition(eye[:rows, :shorter], torch.zeros(shorter, dtype=torch.float64), eye[:shorter, :columns], 0.0)
