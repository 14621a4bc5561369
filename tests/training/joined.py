"""One process of several: makes the jobs that a file lists, one after the other, and writes what it saw of each."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
from small import sentences

from surgery.errors import SurgeryError
from surgery.operation import operate
from surgery.operation.fingerprint import fingerprint
from surgery.registry import Registry, load_registry
from surgery.spec import Spec
from surgery.training import prepare, train
from surgery.training.fit import fit
from surgery.training.shards import whole
from surgery.training.world import join, launcher_aside, rank


def train_job(registry: Registry, spec: Spec, out: str, data: str, resume: bool = False) -> dict[str, Any]:
    train(spec, out, registry=registry, data=data, resume=resume)
    return {}


def other_data_job(registry: Registry, spec: Spec) -> dict[str, Any]:
    """The second process reads other rows."""
    train_rows = sentences(60, start=rank())
    session = prepare(spec, registry, data={"train": train_rows, "validation": sentences(9, 100)})
    with operate(session.model, session.plan, registry=registry) as operation:
        fit(session, operation, spec.training, seed=0)  # type: ignore[arg-type]
    return {}


def memory_job(registry: Registry, spec: Spec, data: str) -> dict[str, Any]:
    """The operation stays whole while its copy is trained: merging and back in every process, bit for bit."""
    session = prepare(spec, registry, data=data)
    before = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    with operate(session.model, session.plan, registry=registry) as operation:
        start = {name: tensor.detach().clone() for name, tensor in operation.trainable().items()}
        result = fit(session, operation, spec.training, seed=0)  # type: ignore[arg-type]
        moved = [not torch.equal(tensor, start[name]) for name, tensor in operation.trainable().items()]
        operation.merge()
        merged = {name: entry["sha256"] for name, entry in fingerprint(operation.body, "default").items()}
        changed = sum(not torch.equal(tensor, before[name]) for name, tensor in _base(session.model))
        live = {name: tensor.double().sum().item() for name, tensor in _base(session.model)}
        operation.unmerge()
        differ = [name for name, tensor in _base(session.model) if not torch.equal(tensor, before[name])]
    return {
        "start": {name: tensor.double().abs().sum().item() for name, tensor in start.items()},
        "memory": dict(result.memory), "moved": all(moved), "changed": changed, "differ": differ, "live": live,
        "pristine": merged,
    }  # fmt: skip


def by_hand_job(registry: Registry, spec: Spec, data: str) -> dict[str, Any]:
    """A loop of one's own that shares out the operated model itself, and one that shares out a copy, as documented."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with launcher_aside():
        session = prepare(spec, registry, data=data)
    join(torch.device("cpu"))
    batch = {key: value for key, value in session.collator(session.examples["train"][:4]).items() if key != "labels"}
    mesh = init_device_mesh("cpu", (2,))
    found: dict[str, Any] = {"refused": {}}
    operation = operate(session.model, session.plan, registry=registry)
    _shake(operation)
    with torch.no_grad():
        expected = session.model(**batch).logits
        twin = fully_shard(copy.deepcopy(operation.model), mesh=mesh)
        found["copy"] = torch.equal(twin(**batch).logits, expected)
        twin.reshard()
    held = dict(twin.named_parameters(remove_duplicate=False))
    base = {name: tensor.clone() for name, tensor in _base(session.model)}
    found["base"] = all(torch.equal(whole(held[name]), tensor) for name, tensor in base.items() if name in held)
    parts = {name: held[name] for name in operation.trainable()}
    optimizer = torch.optim.AdamW(parts.values(), lr=1e-2)
    twin(**batch).logits.square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        for name, tensor in operation.trainable().items():
            tensor.copy_(parts[name].full_tensor())
        twin.reshard()
        operation.merge()
        found["merged"] = float((session.model(**batch).logits - twin(**batch).logits).abs().max())
        operation.unmerge()
        expected = session.model(**batch).logits
    fully_shard(session.model, mesh=mesh)
    with torch.no_grad():
        found["itself"] = torch.equal(session.model(**batch).logits, expected)
    for act in ("merge", "unmerge", "finalize", "undo"):
        found["refused"][act] = _refusal(getattr(operation, act))
    found["refused"]["save"] = _refusal(lambda: operation.save("nowhere"))
    found["refused"]["operate"] = _refusal(lambda: operate(twin, session.plan, registry=registry))
    return found


def _base(model: Any) -> list[tuple[str, torch.Tensor]]:
    return [(name, tensor) for name, tensor in model.state_dict().items() if ".surgery." not in name]


def _shake(operation: Any) -> None:
    """Let adapters that begin as nothing do something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in operation.trainable().values():
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)


def _refusal(act: Any) -> list[str]:
    try:
        act()
    except SurgeryError as error:
        return [type(error).__name__, error.what, error.hint]
    return ["nothing was refused"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    registry = load_registry()
    results = []
    for job in json.loads(Path(sys.argv[1]).read_text()):
        kind = globals()[f"{job.pop('job')}_job"]
        try:
            results.append(kind(registry, Spec.model_validate(job.pop("spec")), **job))
        except SurgeryError as error:
            results.append({"error": [type(error).__name__, error.what, error.hint]})
    Path(f"{sys.argv[1]}.{rank()}").write_text(json.dumps(results))
