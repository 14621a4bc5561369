"""A parameter that the checkpoint does not hold is noise until it is trained."""

from __future__ import annotations

import re
from collections.abc import Sequence

from surgery.architecture import Site
from surgery.errors import Problem, TrainingError
from surgery.planning import Plan
from surgery.registry import Registry

__all__ = ["refuse_untrained"]

_SHOWN = 5


def refuse_untrained(new_parameters: Sequence[str], plan: Plan, registry: Registry) -> None:
    """Raise TrainingError when a newly initialised parameter is touched by no edit of `plan`."""
    touched = {name for edit in plan.edits for site in edit.sites for name in (site.name, *site.tied)}
    untrained = [name for name in new_parameters if name not in touched]
    if not untrained:
        return
    shown = ", ".join(untrained[:_SHOWN]) + (f" and {len(untrained) - _SHOWN} more" if len(untrained) > _SHOWN else "")
    paths = sorted({name.rpartition(".")[0] for name in untrained})
    target = "|".join(re.escape(path) for path in paths)
    rule = f"{{target: '{target}', adapter: {_whole_adapter(registry) or 'NAME'}}}"
    what = f"the checkpoint does not hold {shown}, and no rule trains {'it' if len(untrained) == 1 else 'them'}"
    raise TrainingError.of([Problem(what, f"spec {plan.spec.name}: rules", f"add the rule  - {rule}")])


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
