"""An adapter out of a full fine-tune: the best low-rank approximation of what changed in every matrix."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from surgery.errors import CheckpointError, PlanError, SpecError
from surgery.operation.store import adapter_files, write_folder
from surgery.planning import Edit, Plan, decide
from surgery.registry import Registry, load_registry, load_spec
from surgery.spec import Rule, Spec, compile_pattern
from surgery.spectra.extracted import Extraction
from surgery.spectra.filled import filled_tensors, replaces
from surgery.spectra.gather import Found, Wanted, gather
from surgery.spectra.pair import CheckpointPair
from surgery.spectra.ranked_spec import ranked_spec

__all__ = ["ENERGY", "REPORT_FILE", "SPEC_FILE", "extract"]

ENERGY = 0.9
SPEC_FILE = "spec.yaml"
REPORT_FILE = "extraction.json"
_ADAPTER = "lora"
_LEFT_OUT = r"(embedding|head)\..*"
"""Tables and heads are not what low-rank updates are for; `roles` that name them take them in."""

Progress = Callable[[int, int, str], None]


@torch.no_grad()
def extract(  # noqa: PLR0913 - everything after the star is optional or named
    base: str | Path,
    tuned: str | Path,
    out: str | Path,
    *,
    energy: float | None = None,
    rank: int | None = None,
    roles: str | None = None,
    spec: Spec | str | Path | None = None,
    seed: int = 0,
    registry: Registry | None = None,
    progress: Progress | None = None,
) -> Extraction:
    """Make an adapter folder of what a full fine-tune changed, and a spec that says each matrix's rank.

    dW of every matched matrix (part of a fused weight, expert) is cut off after the singular values that hold `energy`
    of |dW|^2; no matrix of that rank is nearer to dW (Eckart and Young 1936). Checkpoints are read tensor by tensor;
    the adapter alone is held in memory.

    Args:
        base, tuned: checkpoint folders (safetensors) of one architecture.
        out: the new adapter folder; `spec.yaml` and `extraction.json` lie beside the adapter's own files.
        energy: share of |dW|^2 to be kept in each matrix; 0.9 where neither it nor `rank` nor `spec` is given.
        rank: the same rank for all instead.
        roles: regular expression for the roles to be taken; without, all matrices but embeddings and heads.
        spec: takes the place of `roles`: what its rules match, with their adapters and, where neither `energy` nor
            `rank` is given, their ranks. A replaced parameter (full tuning, biases) is taken over as it is.
        seed: of the new spec, and of the random sketches that large matrices are decomposed by.
        registry: the installed plugins; None loads them.
        progress: told parameters done, all of them, and which.

    Raises:
        CheckpointError: other architectures or shapes, no difference, nothing to be extracted, or `out` is taken.
        StateError: NaN or inf in a weight that is to be covered.
        PlanError: rules that match nothing, or an adapter that is no low-rank update and no replacement.
        SpecError: `energy` with `rank`, `roles` with `spec`, or values that mean nothing.
    """
    _refuse_settings(energy, rank, roles, spec)
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError("the folder exists and is not empty", str(folder), "choose another, or remove it")
    registry = registry or load_registry()
    template = _template(roles, spec, seed, registry)
    if energy is None and rank is None and spec is None:
        energy = ENERGY
    with CheckpointPair(base, tuned, registry) as pair:
        plan = decide(template, pair.inventory, pair.described, registry)
        _refuse_untied(plan)
        pair.refuse_unequal({site.name for edit in plan.edits for site in edit.sites})
        by_rule: dict[int, bool] = {}

        def is_replaced(edit: Edit) -> bool:
            if edit.rule not in by_rule:
                by_rule[edit.rule] = replaces(edit, plan, pair, registry)
            return by_rule[edit.rule]

        found = gather(pair, plan, is_replaced, Wanted(energy, rank, seed), progress)
        _refuse_nothing(found, pair, tuned)
        final, is_rounded = _final_plan(found, template, pair, registry, _name(folder))
        tensors = dict(filled_tensors(final, found.fills, pair, registry))
        files = adapter_files(final, registry, tensors, _fingerprint(found, final))
        report = _report(found, final, pair, folder, is_rounded)
    told = json.dumps(report.to_dict(), sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    write_folder(folder, {**files, SPEC_FILE: _yaml(final.spec, energy).encode(), REPORT_FILE: told.encode()})
    return report


def _refuse_settings(energy: float | None, rank: int | None, roles: str | None, spec: object) -> None:
    if energy is not None and rank is not None:
        raise SpecError("energy and rank are given, and each says the ranks", hint="give one of them")
    if roles is not None and spec is not None:
        raise SpecError("roles and a spec are given, and each says what is taken", hint="give one of them")
    if energy is not None and not 0 < energy <= 1:
        raise SpecError(f"the share of energy is {energy}", hint="give a number above 0 and at most 1, such as 0.9")
    if rank is not None and rank < 1:
        raise SpecError(f"the rank is {rank}", hint="give 1 or more")
    if roles is not None:
        compile_pattern(roles)


def _template(roles: str | None, spec: Spec | str | Path | None, seed: int, registry: Registry) -> Spec:
    if isinstance(spec, Spec):
        return spec
    if spec is not None:
        return load_spec(spec, registry)
    exclude = {"exclude": {"role": _LEFT_OUT}} if roles is None else {}
    # The rank stands for those that are found.
    rule = Rule(role=roles or ".*", adapter=_ADAPTER, rank=1, tied="share", allow_oversized=True, **exclude)
    return Spec(name="extract", seed=seed, rules=[rule])


def _refuse_untied(plan: Plan) -> None:
    for edit in plan.edits:
        if edit.tied == "untie":
            what = "a rule cuts a name off its tie, which a checkpoint of the tied model cannot have been tuned to"
            raise PlanError(what, edit.site.key, "say `tied: share`")


def _refuse_nothing(found: Found, pair: CheckpointPair, tuned: str | Path) -> None:
    if found.fills:
        return
    if not found.uncovered:
        hint = "name a checkpoint that was tuned from the base"
        what = "there is no difference: every tensor that both hold is the same, bit for bit"
        raise CheckpointError(what, f"{pair.folder} and {tuned}", hint)
    kinds = sorted({one.kind for one in found.uncovered})
    what = f"nothing that was asked for differs; what does ({len(found.uncovered)}): {', '.join(kinds)}"
    hint = f"such as {found.uncovered[0].name}; take it in by roles or a spec"
    raise CheckpointError(what, f"{pair.folder} and {tuned}", hint)


def _final_plan(found: Found, template: Spec, pair: CheckpointPair, registry: Registry, name: str) -> tuple[Plan, bool]:
    """Return the plan of the new spec, and whether its ranks are larger than those that were found."""
    spec, ranked = ranked_spec(
        found.ranked, template, pair.sites, lambda adapter, site: registry.adapter(adapter).claims(site), name
    )
    plan = decide(spec, pair.inventory, pair.described, registry)
    wanted = {one.edit.site.key: one.rank for one in ranked}
    made = {edit.site.key: _rank_of(edit, wanted.get(edit.site.key)) for edit in plan.edits}
    if made != wanted:
        raise PlanError("the rules made for the ranks do not say what was found", hint="please report this")
    return plan, any(one.rank != other.rank for one, other in zip(ranked, found.ranked, strict=True))


def _rank_of(edit: Edit, wanted: int | None) -> int | None:
    return None if wanted is None else int(getattr(edit.options, "rank", 0))


def _fingerprint(found: Found, plan: Plan) -> Mapping[str, Mapping[str, object]]:
    table = dict(found.fingerprint)
    for edit in plan.edits:
        for site in edit.sites:
            if found.fills[edit.site.key].value is not None and site.slice is None:
                for key in {site.name, *(site.tied if edit.tied == "share" else ())} & table.keys():
                    table[key] = {**table[key], "sha256": None}
    return table


def _report(found: Found, plan: Plan, pair: CheckpointPair, folder: Path, is_rounded: bool) -> Extraction:
    covered = []
    for edit in plan.edits:
        one = found.covered[edit.site.key]
        rank = None if one.rank is None else int(getattr(edit.options, "rank", 0))
        covered.append(one.with_rank(rank, edit.parameters))
    return Extraction(
        folder=folder,
        covered=tuple(covered),
        unchanged=tuple(found.unchanged),
        uncovered=tuple(found.uncovered),
        only_base=pair.lacking,
        only_tuned=pair.added,
        reshaped=pair.reshaped,
        parameters=plan.parameters,
        model_parameters=plan.model_parameters,
        are_ranks_rounded=is_rounded,
    )


def _name(folder: Path) -> str:
    """Return a spec's name that is like the folder's."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).lstrip("._-")[:64].strip("-")
    return name or "extracted"


def _yaml(spec: Spec, energy: float | None) -> str:
    what = (
        f"Ranks that keep {energy:.0%} of what a full fine-tune changed in each weight."
        if energy
        else "Ranks as asked for."
    )
    return f"# {what} Written by `surgery extract`.\n{spec.to_yaml()}"
