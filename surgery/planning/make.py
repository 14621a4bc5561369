"""Making plans: from a live model, a configuration, or a checkpoint's headers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from surgery.architecture import Architecture, Site
from surgery.errors import CheckpointError, PlanError, nearest
from surgery.planning.checkpoint import inventory_of_checkpoint
from surgery.planning.draft import Draft, draft_of
from surgery.planning.headers import read_config
from surgery.planning.infer import Inference
from surgery.planning.inventory import Inventory
from surgery.planning.live import inventory_of_module
from surgery.planning.measured import inferred
from surgery.planning.plan import INFERRED, Plan
from surgery.planning.resolve import resolve
from surgery.planning.sites import sites_of
from surgery.registry import Registered, Registry, load_registry, load_spec
from surgery.spec import Spec

__all__ = ["Anatomy", "Draft", "anatomy", "decide", "draft_architecture", "inventory", "plan", "sites"]


def plan(
    spec: Spec | str | Path, subject: Any, registry: Registry | None = None, *, auto_class: str | None = None
) -> Plan:
    """Decide what `spec` does to `subject`, touching nothing.

    Args:
        spec: the validated spec, or its file.
        subject: an `nn.Module`; a transformers configuration; the path of a checkpoint folder, of a `.safetensors`
            file or of a `config.json`; or a model's name. No weights are read.
        registry: the installed plugins; None loads them.
        auto_class: the transformers Auto class to build from a configuration, for the head of a task.

    Raises:
        PlanError: the spec does not fit the model; every reason at once.
    """
    registry = registry or load_registry()
    spec = load_spec(spec, registry) if isinstance(spec, str | Path) else spec
    found = inventory(subject, registry, auto_class=auto_class)
    return decide(spec, found, anatomy(found, registry), registry)


def decide(spec: Spec, found: Inventory, described: Anatomy, registry: Registry) -> Plan:
    """Decide what `spec` does to a model whose inventory and anatomy are known already.

    Raises:
        PlanError: as `plan`.
    """
    told = sites_of(found, described.architecture)
    edits, outcomes = resolve(spec.rules, told, found, registry, is_inferred=described.inference is not None)
    return Plan(
        spec=spec,
        model_type=found.model_type or "",
        class_name=found.class_name,
        origin=found.origin,
        architecture=described.provenance,
        edits=edits,
        outcomes=outcomes,
        model_parameters=found.parameters,
        model_bytes=found.bytes,
    )


def sites(subject: Any, registry: Registry | None = None, *, auto_class: str | None = None) -> tuple[Site, ...]:
    """Return every site of `subject` (see `plan`), in module order."""
    registry = registry or load_registry()
    found = inventory(subject, registry, auto_class=auto_class)
    return sites_of(found, anatomy(found, registry).architecture)


@dataclass(frozen=True, slots=True)
class Anatomy:
    """What is known of a model's weights, and from whom.

    Attributes:
        architecture: declared by a plugin, or inferred; None where names say nothing.
        provenance: `bert (model-surgery 0.1.0)`, `inferred from names`, or "".
        inference: how the roles were inferred, where no plugin declares them.
    """

    architecture: Architecture | None
    provenance: str
    inference: Inference | None = None


def anatomy(found: Inventory, registry: Registry) -> Anatomy:
    """Return the architecture that a plugin declares for this type of model, else what can be inferred."""
    declared = registry.architecture(found.model_type)
    if declared is not None:
        return Anatomy(declared.value, f"{found.model_type} ({declared.provenance})")
    inference = inferred(found, registry)
    if not inference.sources and not inference.open:
        return Anatomy(None, "")
    how = " and ".join(sorted(set(inference.sources.values()))) or "names"  # names alone say what is open
    return Anatomy(inference.architecture, f"{found.model_type or 'layers'} ({INFERRED} from {how})", inference)


def inventory(subject: Any, registry: Registry, *, auto_class: str | None = None) -> Inventory:
    """Take the inventory of whatever `subject` is (see `plan`)."""
    found = _inventory(subject, registry, auto_class)
    architecture = _value(registry.architecture(found.model_type))
    # Some models keep their head before the base model, which says nothing about what a tied tensor is.
    return replace(found, aliases=frozenset(architecture.ties)) if architecture else found


def _inventory(subject: Any, registry: Registry, auto_class: str | None) -> Inventory:
    if hasattr(subject, "named_modules"):
        return inventory_of_module(subject)
    if isinstance(subject, (str, Path)):
        return _of_reference(str(subject), registry, auto_class)
    if getattr(subject, "model_type", None):
        return _of_skeleton(subject, registry, auto_class)
    raise PlanError(
        f"cannot take the inventory of {type(subject).__name__}",
        hint="give an nn.Module, a configuration, a checkpoint folder, or a model's name",
    )


def _of_reference(ref: str, registry: Registry, auto_class: str | None) -> Inventory:
    resolved = registry.resolve_model(ref) or ref
    path = Path(resolved)
    if path.exists() and auto_class is None and _has_weights(path):
        config = read_config(path)
        model_type = str(config.get("model_type") or "") or None
        return inventory_of_checkpoint(path, _value(registry.architecture(model_type)), config)
    return _of_skeleton(str(resolved), registry, auto_class)


def _has_weights(path: Path) -> bool:
    if path.suffix == ".json":
        return False
    return path.suffix == ".safetensors" or any(path.glob("*.safetensors")) or not (path / "config.json").is_file()


def _of_skeleton(ref_or_config: Any, registry: Registry, auto_class: str | None) -> Inventory:
    refused: CheckpointError | None = None
    for source in registry.models.values():
        try:
            model = source.value.skeleton(ref_or_config, auto_class)
        except CheckpointError as error:  # of a source that thinks itself responsible; another one may know better
            refused = refused or error
            continue
        if model is not None:
            return inventory_of_module(model, origin="config")
    if refused is not None:
        raise refused
    raise PlanError(
        f"no installed plugin can build {ref_or_config!r} without its weights", hint=nearest("", registry.models)
    )


def _value(described: Registered[Architecture] | None) -> Architecture | None:
    return described.value if described else None


def draft_architecture(subject: Any, registry: Registry, *, auto_class: str | None = None) -> Draft:
    """Draft an architecture for whatever `subject` is (see `plan`) from what can be inferred, declared or not."""
    found = inventory(subject, registry, auto_class=auto_class)
    declared = registry.architecture(found.model_type)
    return draft_of(found, inferred(found, registry), str(declared.provenance) if declared else "")
