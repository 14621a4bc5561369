"""Starting an operation: from a plan, or from a saved adapter."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from surgery.errors import StateError
from surgery.operation.add import add_plan
from surgery.operation.body import Body
from surgery.operation.operation import Operation
from surgery.operation.originals import Keeper
from surgery.operation.store import read_config, refuse_missing_plugins, refuse_other_plan
from surgery.planning import Plan, plan
from surgery.registry import Registry, load_registry

__all__ = ["load_adapter", "operate"]


def operate(
    model: nn.Module,
    plan: Plan,
    *,
    name: str = "default",
    keep: str = "ram",
    base: str | Path | None = None,
    registry: Registry | None = None,
) -> Operation:
    """Put the adapters of `plan` on `model`. Every base parameter is frozen until the operation is undone.

    Args:
        model: a plain model: not compiled, wrapped, sharded or quantised. Operate first, then do those.
        plan: what `surgery.plan(spec, model)` decided.
        name: name of the adapter; more can be added with `op.add(plan, name)`.
        keep: where originals are while a merge is live: `ram`, `disk` (re-read from `base`, checked),
            `residue` (worked out from the merged weights and what they do not tell), or `none`.
        base: folder of the base checkpoint, for `keep="disk"`; by default where transformers loaded the model from.
        registry: the installed plugins; None loads them.

    Raises:
        StateError: the model cannot be operated; it says what to do instead. The model is unchanged.
        PluginError: an adapter type failed. The model is unchanged.
    """
    if not isinstance(plan, Plan):
        hint = "surgery.operate(model, surgery.plan(spec, model))"
        raise StateError(f"this is a {type(plan).__name__}, not a plan", hint=hint)
    if base is None and keep == "disk":
        loaded_from = getattr(model, "name_or_path", "")
        base = loaded_from if loaded_from and Path(loaded_from).exists() else None
    body = Body(model, Keeper(keep, Path(base) if base is not None else None))
    found = registry or load_registry()
    operation = Operation(body, found)
    try:
        add_plan(body, plan, name, found, is_first=True)
        return operation
    except BaseException:  # Ctrl-C at the very end: nobody has the handle yet
        body.ledger.undo()
        raise


def load_adapter(
    model: nn.Module | Operation,
    folder: str | Path,
    *,
    name: str = "default",
    keep: str = "ram",
    base: str | Path | None = None,
    registry: Registry | None = None,
) -> Operation:
    """Put a saved adapter on `model`, or beside the adapters of a running operation: same bits, same logits.

    Raises:
        CheckpointError: the folder is damaged, or the model is not the base that the adapter was trained on.
    """
    config, spec = read_config(Path(folder))
    found = model.registry if isinstance(model, Operation) else registry or load_registry()
    refuse_missing_plugins(config, found, Path(folder))
    if isinstance(model, Operation):
        decided = plan(spec, model.model, model.registry)
        refuse_other_plan(config, decided, Path(folder))
        with model.body.ledger.all_or_nothing():
            model.add(decided, name)
            model.load(folder, name)
        return model
    decided = plan(spec, model, found)
    refuse_other_plan(config, decided, Path(folder))
    operation = operate(model, decided, name=name, keep=keep, base=base, registry=found)
    try:
        operation.load(folder, name)
    except BaseException:
        operation.undo()
        raise
    return operation
