"""A parameter that the checkpoint does not hold is noise until it is trained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from surgery.architecture import Site
from surgery.architecture.roles import OTHER
from surgery.errors import Problem, SurgeryError, TrainingError
from surgery.planning import Plan
from surgery.planning import sites as sites_of
from surgery.planning.headers import read_checkpoint_headers
from surgery.registry import Registry

__all__ = ["perhaps_untrained", "refuse_untrained", "rule_for"]

_SHOWN = 5
_HEAD = "head."
_PRETRAINED = "head.lm"


def refuse_untrained(new_parameters: Sequence[str], plan: Plan, registry: Registry, model: Any) -> None:
    """Raise TrainingError when a newly initialised parameter of `model` is touched by no edit of `plan`."""
    touched = _touched(plan)
    untrained = [name for name in new_parameters if name not in touched]
    if not untrained:
        return
    rule = rule_for([site for site in sites_of(model, registry) if site.name in set(untrained)], registry)
    what = f"the checkpoint does not hold {_shown(untrained)}, and no rule trains "
    what += "it" if len(untrained) == 1 else "them"
    raise TrainingError.of([Problem(what, f"spec {plan.spec.name}: rules", f"add the rule  - {rule}")])


def perhaps_untrained(plan: Plan, model: str, auto_class: str, registry: Registry) -> str:
    """Return a note on what `refuse_untrained` may refuse, before any weight is read; empty if there is none.

    Args:
        plan: the plan, made from the configuration of `model`.
        model: a folder, a `config.json`, or a name.
        auto_class: the class with the task's head.
        registry: the installed plugins.
    """
    resolved = Path(registry.resolve_model(model) or model)
    if plan.class_name in _saved_classes(resolved):
        return ""
    held = _held(resolved)
    touched = _touched(plan)
    missing = [
        site
        for site in sites_of(model, registry, auto_class=auto_class)
        if site.role.startswith(_HEAD)
        and not site.tied
        and site.name not in touched
        and not _is_in(site.name, held)
        # What pretraining predicts with comes with the weights, as far as anybody can know who has not seen them.
        and (held or site.role != _PRETRAINED)
    ]
    if not missing:
        return ""
    roles = " and ".join(dict.fromkeys(site.role for site in missing))
    names = _shown([site.name for site in missing])
    return f"no rule trains {roles} ({names}), which the checkpoint may not hold; add  - {rule_for(missing, registry)}"


def rule_for(sites: Sequence[Site], registry: Registry) -> str:
    """Return the rule that trains `sites` as wholes, by role where an architecture names them all."""
    adapter = _whole_adapter(registry) or "NAME"
    roles = list(dict.fromkeys(site.role for site in sites))
    if any(role.startswith(OTHER) for role in roles):
        target = "|".join(re.escape(path) for path in sorted({site.path for site in sites}))
        return f"{{target: '{target}', adapter: {adapter}}}"
    parts = [role.removeprefix(_HEAD) for role in roles]
    if len(parts) > 1 and all(role.startswith(_HEAD) for role in roles):
        pattern = rf"head\.({'|'.join(map(re.escape, parts))})"
    else:
        pattern = "|".join(map(re.escape, roles))
    return f"{{role: {pattern}, adapter: {adapter}}}"


def _touched(plan: Plan) -> set[str]:
    return {name for edit in plan.edits for site in edit.sites for name in (site.name, *site.tied)}


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _saved_classes(path: Path) -> tuple[str, ...]:
    """Return the classes that the weights beside `path` were saved from, as their configuration says."""
    file = path if path.suffix == ".json" else path / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("architectures")
    except (OSError, ValueError, AttributeError, RecursionError):
        return ()
    return tuple(map(str, found)) if isinstance(found, list) else ()


def _held(folder: Path) -> frozenset[str]:
    """Return the names of the tensors in a local checkpoint; empty where there is none to read."""
    if not folder.is_dir() or not any(folder.glob("*.safetensors")):
        return frozenset()
    try:
        return frozenset(read_checkpoint_headers(folder))
    except SurgeryError:  # told where the weights are read
        return frozenset()


def _is_in(name: str, held: Iterable[str]) -> bool:
    """Whether a checkpoint holds `name`, perhaps without the prefix of the base model."""
    return any(name == other or name.endswith(f".{other}") for other in held)


def _whole_adapter(registry: Registry) -> str:
    """Return the name of an adapter that trains every number of a parameter, whatever the parameter is."""
    samples = [
        Site("head.classifier", "", None, "head", "weight", (3, 5), "float32", "linear"),
        Site("head.classifier", "", None, "head", "bias", (3,), "float32", "linear"),
    ]
    for name in registry.adapter_names():
        adapter = registry.adapter(name)
        try:
            options = adapter.options.model_validate({**adapter.defaults()})
            if all(adapter.claims(site) and adapter.parameters(site, options) == site.size for site in samples):
                return name
        except Exception:  # noqa: S112 - a hint must not fail because a stranger's plugin cannot answer
            continue
    return ""
