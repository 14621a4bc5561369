"""Loading a pretrained model: stock classes, safetensors only, and a record of what the checkpoint did not hold."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import nn

from surgery.errors import CheckpointError, nearest
from surgery.registry import Registry
from surgery.spec import ModelRef
from surgery.training.heads import draw_heads
from surgery.training.hub import is_offline
from surgery.training.seeds import preserved_randomness

__all__ = ["LoadedModel", "load_model", "resolve"]

_BIN_HINT = (
    "pickled weights can run code when they are read; convert them once, in a place you trust, with "
    "AutoModel.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(NEW_FOLDER)"
)


@dataclass(frozen=True)
class LoadedModel:
    """A plain model, ready to evaluate.

    Attributes:
        model, tokenizer: as transformers made them, on the CPU.
        new_parameters: names of the parameters that the checkpoint does not hold, in model order.
        source: the folder or hub name it was loaded from.
        notes: what was decided on the way, for the user to read.
    """

    model: Any
    tokenizer: Any
    new_parameters: tuple[str, ...]
    source: str
    notes: tuple[str, ...] = ()


def resolve(ref: str, registry: Registry) -> Path | str:
    """Return the folder or hub name that `ref` means.

    Raises:
        CheckpointError: no installed source of models knows it.
    """
    found = registry.resolve_model(ref)
    if found is None:
        raise CheckpointError(f"unknown model {ref!r}", hint=_model_hint(ref, registry))
    return found


def load_model(  # noqa: PLR0913 - everything after the star is optional or named
    ref: ModelRef | str,
    auto_class: str,
    registry: Registry,
    *,
    seed: int,
    labels: Sequence[str] = (),
    outputs: int | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load `ref` as `auto_class`, with one output for each of `labels` where there are any, else `outputs` of them.

    Parameters that the checkpoint does not hold are drawn from generators named by (seed, parameter), so every run
    with that seed begins with the same head, whatever else it adapts.

    Raises:
        CheckpointError: no such model, no safetensors, or weights that belong to another model.
    """
    ref = _reference(ref) if isinstance(ref, str) else ref
    source = resolve(ref.ref, registry)
    _refuse_pickles(source)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if ref.revision is not None:
        options["revision"] = ref.revision
    with preserved_randomness(), _Quiet():
        model, info = _load_weights(ref, source, auto_class, registry, {**options, **_label_options(labels, outputs)})
        tokenizer = _load_tokenizer(ref, source, registry, options)
    new = _new_parameters(model, info, str(source))
    draw_heads(model, new, seed)
    notes = _pad_token(model, tokenizer)
    model.eval()
    return LoadedModel(model, tokenizer, new, str(source), notes)


def _reference(ref: str) -> ModelRef:
    try:
        return ModelRef.model_validate({"ref": ref})
    except ValidationError as error:
        hint = "give a folder, or a model's name"
        raise CheckpointError(f"this cannot name a model: {error.errors()[0]['msg']}", ref[:80], hint) from None


def _label_options(labels: Sequence[str], outputs: int | None) -> dict[str, Any]:
    if not labels:
        return {} if outputs is None else {"num_labels": outputs}
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def _load_weights(
    ref: ModelRef, source: Path | str, auto_class: str, registry: Registry, options: Mapping[str, Any]
) -> tuple[Any, Mapping[str, Any]]:
    import transformers

    auto = getattr(transformers, auto_class, None)
    if auto is None:
        raise CheckpointError(f"transformers has no {auto_class!r}", hint="the task's plugin names it")
    dtype = ref.dtype if ref.dtype == "auto" else getattr(torch, ref.dtype)
    try:
        loaded: tuple[Any, Mapping[str, Any]] = auto.from_pretrained(
            str(source),
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            # A head of another size is drawn anew; any other weight of another size is refused below.
            ignore_mismatched_sizes=True,
            **options,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _unknown_type(ref.ref, source, auto_class) or _cannot_load("model", ref.ref, registry, error) from error
    return loaded


def _load_tokenizer(ref: ModelRef, source: Path | str, registry: Registry, options: Mapping[str, Any]) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), **options)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _cannot_load("tokenizer", ref.ref, registry, error) from error
    # Where its files are missing, transformers makes a tokenizer that knows no word but its special tokens.
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
        hint = "put tokenizer.json beside config.json"
        raise CheckpointError("the tokenizer cannot be loaded: its vocabulary is missing", ref.ref, hint)
    return tokenizer


def _unknown_type(ref: str, source: Path | str, auto_class: str) -> CheckpointError | None:
    """Return the error of a folder whose model type transformers has no class for, or None where that is not why."""
    import transformers
    from transformers import PreTrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    folder = Path(source)
    if not (folder / "config.json").is_file():
        return None
    try:
        settings, _ = PreTrainedConfig.get_config_dict(str(folder), local_files_only=True)
    except (OSError, ValueError):
        return None
    kind = settings.get("model_type")
    if not isinstance(kind, str):
        return None
    is_known = kind in CONFIG_MAPPING
    if is_known and CONFIG_MAPPING[kind] in getattr(transformers, auto_class)._model_mapping:
        return None
    what = f"transformers has no {auto_class} for" if is_known else "transformers does not know"
    hint = (
        f"register its classes, AutoConfig.register({kind!r}, CONFIG) and {auto_class}.register(CONFIG, MODEL), in "
        "`resolve` of a plugin's ModelSource, or in Python before surgery.train"
    )
    return CheckpointError(f"the model cannot be loaded: {what} models of type {kind!r}", ref, hint)


def _cannot_load(what: str, ref: str, registry: Registry, error: Exception) -> CheckpointError:
    cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    if "safetensors" in cause and "no file named" in cause:
        return CheckpointError("the model has no safetensors weights", ref, _BIN_HINT)
    state = ", and this process is offline" if is_offline() else ""
    return CheckpointError(f"the {what} cannot be loaded{state}: {cause}", ref, _model_hint(ref, registry))


def _refuse_pickles(source: Path | str) -> None:
    folder = Path(source)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(f"the weights are pickled ({pickles[0]}), not safetensors", str(folder), _BIN_HINT)
    raise CheckpointError(
        "the folder holds no weights", str(folder), "a model needs model.safetensors beside config.json"
    )


def _new_parameters(model: nn.Module, info: Mapping[str, Any], source: str) -> tuple[str, ...]:
    """Return the names that the checkpoint lacks, or raise when it is plainly not this model's."""
    mismatched = {str(entry[0]) for entry in info.get("mismatched_keys", ())}
    absent = {str(key) for key in info.get("missing_keys", ())} | mismatched
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    new = tuple(name for name in sizes if name in absent)
    prefix = getattr(model, "base_model_prefix", "") + "."
    wrong = [name for name in new if name in mismatched and name.startswith(prefix)]
    if wrong:
        hint = "the configuration and the weights are of different models"
        raise CheckpointError(f"{wrong[0]!r} has another shape in the checkpoint", source, hint)
    if sum(sizes[name] for name in new) > sum(sizes.values()) / 2:
        what = f"the checkpoint lacks most of the model: {len(new)} of {len(sizes)} parameters, such as {new[0]!r}"
        raise CheckpointError(what, source, "the configuration and the weights are of different models")
    return new


def _pad_token(model: Any, tokenizer: Any) -> tuple[str, ...]:
    notes: tuple[str, ...] = ()
    if tokenizer.pad_token_id is None:
        token = tokenizer.eos_token or tokenizer.unk_token
        if token is None:
            raise CheckpointError("the tokenizer has no padding, end or unknown token", hint="add one to its files")
        tokenizer.pad_token = token
        notes = (f"the tokenizer has no padding token: {token!r} takes its place, without a loss",)
    # Classifiers without a padding token in their configuration cannot find the last token of a padded text.
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return notes


def _model_hint(ref: str, registry: Registry) -> str:
    folders = _model_folders(ref)
    near = nearest(ref, folders) if folders else ""
    parts = [near, "give a folder with config.json and model.safetensors"]
    parts.append("unset HF_HUB_OFFLINE to ask the hub" if is_offline() else "or a model's name on the hub")
    if ":" in ref:
        parts.append(f"installed sources of models: {', '.join(sorted(registry.models))}")
    return "; ".join(part for part in parts if part)


def _model_folders(ref: str) -> list[str]:
    """Return the model folders beside the one that was meant, as the user would type them."""
    meant = Path(ref)
    found: list[str] = []
    for parent in dict.fromkeys((meant.parent, Path())):
        if not parent.is_dir():
            continue
        for entry in sorted(os.scandir(parent), key=lambda entry: entry.name)[:1000]:
            with contextlib.suppress(OSError):  # a link that leads nowhere, a folder of somebody else
                if entry.is_dir() and (Path(entry.path) / "config.json").is_file():
                    found.append(str(Path(entry.path)))
    return found


class _Quiet:
    """Keep transformers from printing what is reported here in better words."""

    def __enter__(self) -> None:
        logging = _transformers_logging()
        self._verbosity = logging.get_verbosity()
        self._bars = logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        logging = _transformers_logging()
        logging.set_verbosity(self._verbosity)
        if self._bars:
            logging.enable_progress_bar()


def _transformers_logging() -> Any:
    from transformers.utils import logging

    return logging
