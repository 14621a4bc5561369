"""A model without weights: the class its configuration names, built on the meta device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig

from surgery.errors import CheckpointError, nearest

__all__ = ["meta_model"]


def meta_model(config_or_folder: Any, auto_class: str | None = None) -> torch.nn.Module:
    """Build a model on `torch.device("meta")`; nothing but the configuration is read.

    Args:
        config_or_folder: a `PretrainedConfig`, a folder, the path of a `config.json`, or a hub name.
        auto_class: an Auto class such as `AutoModelForCausalLM`; None means `config.architectures[0]`, or the base
            model where the configuration names no class of transformers.

    Raises:
        CheckpointError: the configuration cannot be read, or transformers knows no such model.
    """
    config = _config(config_or_folder)
    builder = _builder(config, auto_class)
    # torch.device("meta") keeps tied weights tied, which accelerate's init_empty_weights does not.
    with torch.device("meta"):
        try:
            return cast("torch.nn.Module", builder(config))
        except ValueError as error:
            raise CheckpointError(
                f"{auto_class or 'AutoModel'} cannot be built for model type {config.model_type!r}",
                _where(config_or_folder),
                str(error).splitlines()[0][:200],
            ) from error


def _config(config_or_folder: Any) -> PretrainedConfig:
    if isinstance(config_or_folder, PretrainedConfig):
        return config_or_folder
    path = Path(str(config_or_folder)).expanduser()
    try:
        if path.suffix == ".json" and path.is_file():
            path = path.parent
        name = str(path) if path.exists() else config_or_folder
        return cast("PretrainedConfig", AutoConfig.from_pretrained(name, trust_remote_code=False))
    except (OSError, ValueError, KeyError) as error:
        if kind := _unknown_type(path):
            raise CheckpointError(
                f"transformers knows no model of type {kind!r}",
                _where(config_or_folder),
                "put model.safetensors beside config.json, or build the model in skeleton() of a plugin's ModelSource",
            ) from error
        raise CheckpointError(
            f"no configuration can be read: {str(error).strip().splitlines()[0][:200]}",
            _where(config_or_folder),
            "give a folder with config.json, or a model's name on the hub while online",
        ) from error


def _unknown_type(path: Path) -> str:
    """The `model_type` of a folder's configuration, where that is what transformers stumbles over."""
    try:
        config = json.loads((path / "config.json").read_text("utf-8"))
        kind = config.get("model_type")
    except (OSError, ValueError, AttributeError):
        return ""
    return kind if isinstance(kind, str) and kind not in transformers.CONFIG_MAPPING else ""


def _builder(config: PretrainedConfig, auto_class: str | None) -> Any:
    if auto_class is not None:
        auto = getattr(transformers, auto_class, None)
        if auto is None:
            known = [name for name in dir(transformers) if name.startswith("AutoModel")]
            raise CheckpointError(f"transformers has no {auto_class!r}", hint=nearest(auto_class, known))
        return lambda config: auto.from_config(config, trust_remote_code=False)
    named = getattr(transformers, (config.architectures or [""])[0], None)
    if named is not None and hasattr(named, "_from_config"):
        return named._from_config
    # Looked up only here: importing the Auto models costs more than building a model on the meta device.
    base: Any = transformers.AutoModel
    return lambda config: base.from_config(config, trust_remote_code=False)


def _where(config_or_folder: Any) -> str:
    return "" if isinstance(config_or_folder, PretrainedConfig) else str(config_or_folder)
