"""A model without weights: the class its configuration names, built on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig

from surgery import read_config
from surgery.errors import CheckpointError, nearest

__all__ = ["check_size", "meta_model"]

_MOST_LAYERS = 10_000
_MOST_LABELS = 1_000_000
_LAYERS = (
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "n_layers",
    "num_encoder_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
    "depth",
)


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
    # torch.device("meta") keeps tied weights tied, which accelerate's init_empty_weights does not.
    with torch.device("meta"):
        try:
            check_size(config.to_dict(), _where(config_or_folder))
            model = cast("torch.nn.Module", _builder(config, auto_class)(config))
        except (MemoryError, CheckpointError):
            raise
        except Exception as error:  # a model's own code, on numbers and names that nobody has checked
            raise CheckpointError(
                f"{auto_class or 'AutoModel'} cannot be built for model type {config.model_type!r}",
                _where(config_or_folder),
                _first_line(error),
            ) from error
    if next(model.parameters(), None) is None:  # a class that others are made from, such as PreTrainedModel
        raise CheckpointError(
            f"{type(model).__name__}, which `architectures` names, is no model: it has no parameters",
            _where(config_or_folder),
            _real_class(config.model_type),
        )
    return model


def _real_class(model_type: str) -> str:
    """Return a hint that names classes of a type which are models."""
    from transformers.models.auto import modeling_auto

    tables = ("MODEL_MAPPING_NAMES", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_MASKED_LM_MAPPING_NAMES")
    named = (getattr(modeling_auto, table).get(model_type) for table in tables)
    classes = dict.fromkeys(name if isinstance(name, str) else name[0] for name in named if name)
    listed = " or ".join(f'"architectures": ["{name}"]' for name in classes)
    return f"say {listed} in config.json" if classes else "name the model's class in config.json: `architectures`"


def _config(config_or_folder: Any) -> PretrainedConfig:
    if isinstance(config_or_folder, PretrainedConfig):
        return config_or_folder
    path = Path(str(config_or_folder)).expanduser()
    where = _where(config_or_folder)
    raw: Mapping[str, Any] = {}
    try:
        if path.suffix == ".json" and path.is_file():
            path = path.parent
        if path.is_dir():
            raw = read_config(path)
        # Before transformers reads it: it makes a name for every label that is only counted.
        check_size(raw, where)
        name = str(path) if path.exists() else config_or_folder
        return cast("PretrainedConfig", AutoConfig.from_pretrained(name, trust_remote_code=False))
    except (MemoryError, CheckpointError):
        raise
    except Exception as error:  # whatever a bad value sets off, in transformers or in its validators
        if kind := _unknown_type(raw):
            raise CheckpointError(
                f"transformers knows no model of type {kind!r}",
                where,
                "put model.safetensors beside config.json, or build the model in skeleton() of a plugin's ModelSource",
            ) from error
        raise CheckpointError(
            f"no configuration can be read: {_first_line(error)}",
            where,
            "give a folder with config.json, or a model's name on the hub while online",
        ) from error


def check_size(settings: Mapping[str, Any], where: str) -> None:
    """Refuse what would be built for minutes: layers and labels cost time for each one, on the meta device too."""
    waiting: list[Mapping[str, Any]] = [settings]
    while waiting:
        table = waiting.pop()
        waiting.extend(value for value in table.values() if isinstance(value, dict))
        for key in _LAYERS:
            if _is_more(table.get(key), _MOST_LAYERS):
                raise CheckpointError(f"{key} is more than {_MOST_LAYERS:,}, which no model has", where)
        named = table.get("id2label")
        if _is_more(table.get("num_labels"), _MOST_LABELS) or (isinstance(named, dict) and len(named) > _MOST_LABELS):
            raise CheckpointError(f"there are more than {_MOST_LABELS:,} labels", where)


def _is_more(value: Any, most: int) -> bool:
    return isinstance(value, int | float) and value > most


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A KeyError or a ZeroDivisionError says little without its own name, and a validator's first line is a heading.
    text = " ".join(lines[:2]) if lines and lines[0].endswith(":") else (lines or [""])[0]
    return (text if isinstance(error, OSError | ValueError) and text else f"{type(error).__name__}: {text}")[:200]


def _unknown_type(config: Mapping[str, Any]) -> str:
    """The `model_type` of a folder's configuration, where that is what transformers stumbles over."""
    kind = config.get("model_type")
    return kind if isinstance(kind, str) and kind not in transformers.CONFIG_MAPPING else ""


def _builder(config: PretrainedConfig, auto_class: str | None) -> Any:
    if auto_class is not None:
        auto = getattr(transformers, auto_class, None)
        if auto is None:
            known = [name for name in dir(transformers) if name.startswith("AutoModel")]
            raise CheckpointError(f"transformers has no {auto_class!r}", hint=nearest(auto_class, known))
        return lambda config: auto.from_config(config, trust_remote_code=False)
    classes = config.architectures
    first = classes[0] if isinstance(classes, list) and classes else ""
    named = getattr(transformers, first, None) if isinstance(first, str) else None
    if named is not None and hasattr(named, "_from_config"):
        return named._from_config
    # Looked up only here: importing the Auto models costs more than building a model on the meta device.
    base: Any = transformers.AutoModel
    return lambda config: base.from_config(config, trust_remote_code=False)


def _where(config_or_folder: Any) -> str:
    return "" if isinstance(config_or_folder, PretrainedConfig) else str(config_or_folder)
