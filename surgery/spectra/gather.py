"""One pass over two checkpoints: what changed, and how each site of a plan would say it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from surgery.architecture import Site
from surgery.operation.bits import same_bits, sha256
from surgery.operation.fold import canonical_view
from surgery.planning import Edit, Plan
from surgery.spectra.decomposition import EXACT_UP_TO, Decomposition, decompose, leading
from surgery.spectra.extracted import MatrixExtract, Uncovered, kind_of
from surgery.spectra.matrix import Matrix, cut
from surgery.spectra.pair import CheckpointPair
from surgery.spectra.ranked_spec import Ranked
from surgery.spectra.ranks import numerical_rank, rank_for_energy

__all__ = ["Fill", "Found", "Wanted", "gather"]

_ELEMENTS = 1 << 20
_GAP = 1e-9
"""Share of a parameter's change outside of all its sites that is no rounding."""


@dataclass(frozen=True)
class Wanted:
    """How ranks are chosen: by a share of the energy, or one for all; without either, as the plan's options say."""

    energy: float | None = None
    rank: int | None = None
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Fill:
    """What an adapter is to hold: factors with up @ down = dW, about; or the tuned parameter, as it is stored.

    Attributes:
        up: one for each expert or a single one, (fan_out, k).
        down: (k, fan_in).
        value: instead of both.
    """

    up: Sequence[torch.Tensor] = ()
    down: Sequence[torch.Tensor] = ()
    value: torch.Tensor | None = None


@dataclass
class Found:
    """What the pass found.

    Attributes:
        fills, covered, ranked: for each site that changed, by its key.
        unchanged: keys of sites of the plan that did not.
        uncovered: what changed and is in no edit of the plan.
        fingerprint: first name of a parameter -> what a base is recognised by.
    """

    fills: dict[str, Fill] = field(default_factory=dict)
    covered: dict[str, MatrixExtract] = field(default_factory=dict)
    ranked: list[Ranked] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    uncovered: list[Uncovered] = field(default_factory=list)
    fingerprint: dict[str, dict[str, object]] = field(default_factory=dict)


def gather(
    pair: CheckpointPair,
    plan: Plan,
    replaces: Callable[[Edit], bool],
    wanted: Wanted,
    progress: Callable[[int, int, str], None] | None = None,
) -> Found:
    """Read every parameter of both checkpoints once.

    Args:
        pair: the checkpoints, open.
        plan: what is to be covered.
        replaces: whether the adapter of an edit takes the parameter's place.
        wanted: how ranks are chosen.
        progress: told parameters done, all of them, and which.

    Raises:
        StateError: NaN or inf in what is to be covered.
    """
    edits: dict[str, list[Edit]] = defaultdict(list)
    sites: dict[str, list[Site]] = defaultdict(list)
    for edit in plan.edits:
        edits[pair.inventory.canonical(edit.site.name)].append(edit)
    for site in pair.sites:
        sites[site.name].append(site)
    found, left_out = Found(), {*pair.lacking, *pair.reshaped}
    for number, entry in enumerate(pair.parameters):
        name = entry.name
        if progress is not None:
            progress(number, len(pair.parameters), name)
        base = pair.base(name)
        found.fingerprint[name] = {
            "shape": list(base.shape), "dtype": str(base.dtype).removeprefix("torch."), "sha256": sha256(base),
        }  # fmt: skip
        if name in left_out:
            continue
        tuned, own = pair.tuned(name), edits[pair.inventory.canonical(name)]
        if _is_same(base, tuned):
            found.unchanged += [edit.site.key for edit in own]
            continue
        for edit in own:
            _cover(edit, base, tuned, replaces(edit), wanted, found)
        found.uncovered += _uncovered(sites[name], own, base, tuned)
    if progress is not None:
        progress(len(pair.parameters), len(pair.parameters), "done")
    return found


def _cover(
    edit: Edit, base: torch.Tensor, tuned: torch.Tensor, is_replaced: bool, wanted: Wanted, found: Found
) -> None:
    site = edit.site
    if is_replaced:
        view, other = (canonical_view(one, site) for one in (base, tuned))
        told = _difference(view, other)
        if not told.changed:
            found.unchanged.append(site.key)
            return
        value = other.mT if site.is_transposed else other
        found.fills[site.key] = Fill(value=value.clone(memory_format=torch.contiguous_format))
        found.ranked.append(Ranked(edit, None))
        found.covered[site.key] = _extract_of(site, told.energy, told.base, 0.0, None)
        return
    ups, downs, ranks = [], [], []
    energy = weight = missed = 0.0
    for matrix in cut(site, base, tuned):
        up, down, rank, lost = _factors(matrix, wanted, edit)
        ups.append(up)
        downs.append(down)
        ranks.append(rank)
        energy += float(torch.linalg.vector_norm(matrix.change)) ** 2
        weight += float(torch.linalg.vector_norm(matrix.base)) ** 2
        missed += lost
    if not any(ranks):
        found.unchanged.append(site.key)
        return
    found.fills[site.key] = Fill(ups, downs)
    found.ranked.append(Ranked(edit, max(ranks)))
    found.covered[site.key] = _extract_of(site, energy, weight, missed, max(ranks))


def _factors(matrix: Matrix, wanted: Wanted, edit: Edit) -> tuple[torch.Tensor, torch.Tensor, int, float]:
    """Return up, down, the rank that they are to have, and |dW - up @ down|^2 as they are stored."""
    delta = matrix.change
    rank = wanted.rank if wanted.energy is None else None
    if rank is None and wanted.energy is None:
        rank = int(getattr(edit.options, "rank", 0)) or None
    rank = None if rank is None else min(rank, *matrix.shape)
    if not bool(delta.any()):
        return delta[:, :0], delta[:0], 0, 0.0
    if min(matrix.shape) <= EXACT_UP_TO:
        whole = leading(delta, min(matrix.shape))
    else:
        whole = decompose(delta, rank=rank, energy=wanted.energy if rank is None else None, seed=wanted.seed)
    chosen = rank_for_energy(whole, wanted.energy or 1.0) if rank is None else rank
    kept: Decomposition = whole.cut(min(chosen, numerical_rank(whole)))
    # Balanced: training that goes on from here moves both factors alike.
    roots, dtype = kept.values.sqrt(), getattr(torch, edit.dtype)
    up, down = (kept.left * roots).to(dtype), (roots[:, None] * kept.right).to(dtype)
    lost = delta - up.to(delta.dtype) @ down.to(delta.dtype)
    return up, down, chosen, float(torch.linalg.vector_norm(lost, dtype=torch.float64)) ** 2


def _extract_of(site: Site, energy: float, weight: float, missed: float, rank: int | None) -> MatrixExtract:
    return MatrixExtract(
        name=site.key,
        role=site.role,
        stack=site.stack,
        layer=site.layer,
        experts=site.experts,
        shape=(site.fan_out, site.fan_in),
        relative_norm=math.sqrt(energy / weight) if weight else math.inf,
        rank=rank,
        full_rank=min(site.fan_out, site.fan_in),
        kept=1.0 - missed / energy if energy else 1.0,
        error=math.sqrt(missed / energy) if energy else 0.0,
        energy=energy,
        parameters=site.size,
        size=site.size,
    )


def _uncovered(
    sites: Sequence[Site], edits: Sequence[Edit], base: torch.Tensor, tuned: torch.Tensor
) -> Iterator[Uncovered]:
    """Yield the sites of one parameter that changed and are no edit's."""
    if any(edit.site.slice is None for edit in edits):
        return
    covered = {edit.site.role for edit in edits}
    told = {site.key: (site, _difference(*(canonical_view(one, site) for one in (base, tuned)))) for site in sites}
    for site, difference in told.values():
        if difference.changed and site.role not in covered:
            yield Uncovered(site.key, site.role, kind_of(site), difference.relative, difference.energy)
    whole = _difference(base, tuned)
    rest = whole.energy - math.fsum(difference.energy for _, difference in told.values())
    if rest > _GAP * whole.energy:
        yield Uncovered(sites[0].name, "", "other", math.sqrt(rest / whole.base) if whole.base else math.inf, rest)


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether bits are the same, or numbers where dtypes are not."""
    return bool(same_bits(one, other).all()) if one.dtype == other.dtype else torch.equal(one.double(), other.double())


@dataclass(frozen=True)
class _Difference:
    changed: bool
    energy: float
    base: float

    @property
    def relative(self) -> float:
        return math.sqrt(self.energy / self.base) if self.base else math.inf


def _difference(base: torch.Tensor, tuned: torch.Tensor) -> _Difference:
    """Compare two tensors in pieces: their bits, and the norms of what is finite."""
    energy = weight = 0.0
    changed = False
    rows = base.shape[0] if base.dim() else 1
    step = max(1, _ELEMENTS * rows // max(base.numel(), 1))
    for start in range(0, rows, step):
        old, new = (one[start : start + step] if one.dim() else one for one in (base, tuned))
        changed |= not _is_same(old, new)
        wide, moved = old.double(), new.double() - old.double()
        for tensor, is_base in ((wide, True), (moved, False)):
            square = float(torch.where(torch.isfinite(tensor), tensor, 0.0).square().sum())
            weight, energy = (weight + square, energy) if is_base else (weight, energy + square)
    return _Difference(changed, energy, weight)
