"""Adapter checkpoints: a folder of safetensors and JSON, canonical, complete or absent, and checked when read."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialise

from surgery.architecture import Site
from surgery.errors import CheckpointError, PluginError, Problem, SurgeryError, nearest
from surgery.operation.body import Body
from surgery.operation.fingerprint import compare_fingerprints, fingerprint
from surgery.operation.ledger import Ledger
from surgery.operation.untie import FLAG
from surgery.planning import Plan
from surgery.planning.headers import read_header
from surgery.planning.plan import INFERRED
from surgery.registry import Registry
from surgery.spec import Spec, parse_spec

__all__ = [
    "CONFIG_FILE",
    "TENSOR_FILE",
    "adapter_files",
    "load_tensors",
    "read_config",
    "refuse_missing_plugins",
    "save_adapter",
]

CONFIG_FILE = "adapter.json"
TENSOR_FILE = "adapter.safetensors"
_FORMAT = 1
_CHANGES = "config_changes"
"""Path of a module -> what its configuration says while the adapter is on: there where the adapter cuts ties."""
_ARCHITECTURE = re.compile(r"(.+) \((.+)\)")
"""A plan's architecture as it is recorded: `bert (model-surgery 0.1.0)`."""
_MAX_CONFIG = 64 * 1024 * 1024


def save_adapter(body: Body, registry: Registry, folder: Path, name: str, *, overwrite: bool = False) -> Path:
    """Write the adapter `name` to `folder`, which must not exist or be empty. Equal content gives equal bytes.

    With `overwrite` the folder may hold an adapter, and nothing else; it is there until the new one is complete.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        is_adapter = folder.is_dir() and _holds_an_adapter(folder)
        if not is_adapter and overwrite:
            what = "the folder holds something else than an adapter, which would be lost"
            raise CheckpointError(what, str(folder), "choose another")
        if not overwrite:
            hint = "choose another, or say overwrite=True" if is_adapter else "choose another, or remove it"
            raise CheckpointError("the folder exists and is not empty", str(folder), hint)
    tensors = {_key(site, local): tensor for site, local, tensor in _tensors(body, name)}
    changes = None
    plan = body.plans[name]
    if any(edit.tied == "untie" for edit in plan.edits) and body.loosened:
        changes = {one.path: {FLAG: False} for one in body.loosened}
    write_folder(folder, adapter_files(plan, registry, tensors, fingerprint(body, name), changes))
    return folder


def adapter_files(
    plan: Plan,
    registry: Registry,
    tensors: Mapping[str, torch.Tensor],
    base: Mapping[str, Mapping[str, Any]],
    changes: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    """Return name -> bytes of the files that make up an adapter folder.

    Args:
        plan: what the adapter is of.
        registry: whose plugins made it.
        tensors: `site/local name` -> tensor.
        base: fingerprint of the base.
        changes: what the configuration says while the adapter is on.
    """
    used = {edit.adapter for edit in plan.edits}
    config: dict[str, Any] = {
        "format": _FORMAT,
        "spec": json.loads(plan.spec.canonical_json()),
        "plan_hash": plan.hash,
        "plugins": {
            adapter: {
                "distribution": registry.adapters[adapter].provenance.distribution,
                "version": registry.adapters[adapter].provenance.version,
            }
            for adapter in sorted(used)
        },
        "architecture": plan.architecture,
        "base": base,
    }
    if changes is not None:
        config[_CHANGES] = changes
    contiguous = {key: tensor.detach().to("cpu").contiguous() for key, tensor in sorted(tensors.items())}
    data = serialise(contiguous, metadata={"format": "pt"})
    config["tensors_sha256"] = hashlib.sha256(data).hexdigest()
    text = json.dumps(config, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    return {CONFIG_FILE: text.encode(), TENSOR_FILE: data}


def _holds_an_adapter(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()}
    return CONFIG_FILE in names and names <= {CONFIG_FILE, TENSOR_FILE}


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of files so that it appears complete, by one rename, or not at all.

    What is there already is put aside just before that rename, comes back where it fails, and is then let go.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise CheckpointError(f"cannot write here: {error.strerror}", str(folder.parent)) from error
    is_there, old = False, staging.with_name(f"{staging.name}.old")
    try:
        for name, data in files.items():
            with (staging / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        staging.chmod(0o777 & ~mask)  # mkdtemp makes folders that only the owner can read
        _sync(staging)
        if folder.exists():
            folder.rename(old)
        staging.rename(folder)
        is_there = True
        _sync(folder.parent)
    except OSError as error:
        if is_there:  # complete, but perhaps not after a power cut: what is reported as failed must not be there
            shutil.rmtree(folder, ignore_errors=True)
        raise CheckpointError(
            f"cannot write the folder: {error.strerror}", str(folder), "nothing was left behind; free some space"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def read_config(folder: Path) -> tuple[dict[str, Any], Spec]:
    """Return the checked configuration of an adapter folder, and the spec in it."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        what = "no such folder" if not folder.exists() else f"no {CONFIG_FILE} here"
        raise CheckpointError(what, str(folder), _adapter_hint(folder))
    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise CheckpointError("the file is too large", str(path))
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot be read: {error}", str(path)) from error
    _check_config(config, path)
    try:
        spec = parse_spec(json.dumps(config["spec"]), name=str(path))
    except SurgeryError as error:
        raise CheckpointError.of(
            [
                Problem(f"the spec in it is not valid: {problem.what}", str(path), problem.hint)
                for problem in error.problems
            ]
        ) from error
    return config, spec


def _adapter_hint(folder: Path) -> str:
    inside = folder / "adapter"
    if (inside / CONFIG_FILE).is_file():
        return f"this is a folder of `surgery train`; its adapter is {inside}"
    if (folder / "config.json").is_file():
        return "this is a checkpoint, no adapter; `surgery merge` takes the base first, then adapters"
    return "name the folder that op.save() wrote, or the folder adapter in that of a finished `surgery train`"


def refuse_missing_plugins(config: Mapping[str, Any], registry: Registry, folder: Path) -> None:
    """Raise PluginError naming the distribution of what the checkpoint needs and is not installed."""
    missing: list[tuple[str, str]] = []
    for adapter, source in config["plugins"].items():
        if adapter not in registry.adapters:
            known = source if isinstance(source, dict) else {}
            origin = f"{known.get('distribution', '')} {known.get('version', '')}".strip()
            missing.append((f"the adapter type {adapter!r}", origin))
    # Without its roles the plan would be another one, of which nobody could tell what is missing.
    described = _ARCHITECTURE.fullmatch(config["architecture"])
    is_declared = described is not None and not described[2].startswith(INFERRED)
    if described and is_declared and described[1] not in registry.architectures:
        missing.append((f"the architecture {described[1]!r}", described[2]))
    if missing:
        raise PluginError.of(
            [
                Problem(
                    f"{what} is not installed; it came from {origin or 'an unknown distribution'}",
                    str(folder),
                    f"install {origin or 'its distribution'}, or name its plugin with --plugin where loading is "
                    "switched off",
                )
                for what, origin in missing
            ]
        )


def refuse_other_plan(config: Mapping[str, Any], plan: Plan, folder: Path) -> None:
    """Raise CheckpointError when the folder was not written by `plan`: checked before anything is built."""
    if config["plan_hash"] != plan.hash:
        for site in (site for edit in plan.edits for site in edit.sites):
            _refuse_other_shape(config["base"], site, folder)
        raise CheckpointError(
            f"it was made by plan {config['plan_hash'][:12]}, and this model's plan is {plan.hash[:12]}",
            str(folder),
            "another spec, another model, or another version of a plugin",
        )


def _refuse_other_shape(base: Mapping[str, Any], site: Site, folder: Path) -> None:
    saved = next((base[name]["shape"] for name in (site.name, *site.tied) if name in base), None)
    shape = list(site.shape)
    if site.slice is not None:
        shape[site.slice.axis] = math.prod(site.slice.view)
    if saved is None or saved == shape:
        return
    here, there = ("x".join(map(str, extents)) for extents in (shape, saved))
    hint = "load the model with the sizes that the adapter was trained with"
    if site.role.startswith("head."):
        hint += f"; for a head of other labels: num_labels={saved[0]}"
    raise CheckpointError(f"{site.name} is {here} here and {there} in the adapter", str(folder), hint)


def load_tensors(body: Body, folder: Path, name: str) -> None:
    """Load saved tensors into the running adapter `name`: same plan, same base, nothing missing, nothing extra."""
    config, _ = read_config(folder)
    refuse_other_plan(config, body.plans[name], folder)
    compare_fingerprints(config["base"], fingerprint(body, name), str(folder))
    _refuse_other_changes(config.get(_CHANGES, {}), body, folder)
    targets = {_key(site, local): tensor for site, local, tensor in _tensors(body, name)}
    loaded = _read_tensors(folder / TENSOR_FILE, targets, config["tensors_sha256"])
    before = {key: target.detach().clone() for key, target in targets.items()}

    def put(tensors: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for key, target in targets.items():
                target.copy_(tensors[key])

    undo = Ledger()
    with undo.all_or_nothing():
        undo.act(lambda: put(loaded), lambda: put(before))


def _refuse_other_changes(saved: Mapping[str, Any], body: Body, folder: Path) -> None:
    """The adapter was trained where the configuration said something else of ties than it does here."""
    missing = sorted(set(saved) - {one.path for one in body.loosened})
    if missing:
        where = f"the configuration of {missing[0] or 'the model'}"
        raise CheckpointError(
            f"the adapter cuts a tie that {where} does not make", str(folder), "load the base as it was trained on"
        )


def _read_tensors(path: Path, targets: Mapping[str, torch.Tensor], digest: str) -> dict[str, torch.Tensor]:
    headers = read_header(path)
    problems = [Problem(f"the tensor {key!r} is missing", str(path)) for key in sorted(set(targets) - set(headers))]
    problems += [Problem(f"the tensor {key!r} is extra", str(path)) for key in sorted(set(headers) - set(targets))]
    for key in sorted(set(targets) & set(headers)):
        header, target = headers[key], targets[key]
        if header.shape != tuple(target.shape) or f"torch.{header.dtype}" != str(target.dtype):
            problems.append(
                Problem(
                    f"the tensor {key!r} is {header.dtype} {list(header.shape)}, not {target.dtype} "
                    f"{list(target.shape)}",
                    str(path),
                )
            )
    if problems:
        raise CheckpointError.of(problems)
    from safetensors.torch import load

    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(
            f"the tensors are not those that {CONFIG_FILE} was written with", str(path), "get the folder anew"
        )
    try:
        loaded: dict[str, torch.Tensor] = load(data)
    except Exception as error:  # safetensors raises its own type for every malformed file
        raise CheckpointError(f"cannot be read: {error}", str(path)) from error
    return loaded


def _tensors(body: Body, name: str) -> list[tuple[str, str, torch.nn.Parameter]]:
    return [
        (built.edit.site.key, local, parameter)
        for built in body.built[name]
        for local, parameter in built.adapter.named_parameters()
    ]


def _key(site: str, local: str) -> str:
    return f"{site}/{local}"


def _check_config(config: Any, path: Path) -> None:
    if not isinstance(config, dict):
        raise CheckpointError("it is no JSON object", str(path))
    if type(config.get("format")) is not int or config["format"] != _FORMAT:
        raise CheckpointError(
            f"format {config.get('format')!r} is not known here", str(path), f"this is format {_FORMAT}"
        )
    kinds = {
        "spec": dict, "plan_hash": str, "plugins": dict, "architecture": str, "base": dict, "tensors_sha256": str,
    }  # fmt: skip
    unknown = sorted(set(config) - set(kinds) - {"format", _CHANGES})
    if unknown:
        raise CheckpointError(f"unknown key {unknown[0]!r}", str(path), nearest(unknown[0], kinds))
    for key, kind in kinds.items():
        if not isinstance(config.get(key), kind):
            raise CheckpointError(f"{key!r} is missing or no {kind.__name__}", str(path))
    changes = config.get(_CHANGES, {})
    if not isinstance(changes, dict) or any(value != {FLAG: False} for value in changes.values()):
        raise CheckpointError(f"{_CHANGES!r} can only say {FLAG}: false", str(path), "get the folder anew")
    for name, entry in config["base"].items():
        if not _is_entry(entry):
            raise CheckpointError(f"the fingerprint of {name!r} is damaged", str(path))


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or set(entry) != {"shape", "dtype", "sha256"}:
        return False
    kinds = isinstance(entry["dtype"], str) and isinstance(entry["sha256"], str | None)
    return kinds and isinstance(entry["shape"], list) and all(type(extent) is int for extent in entry["shape"])


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
