"""Small models of transformers' classes with random weights, to be measured in place of a large one."""

from __future__ import annotations

import inspect
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig

from surgery import Twin, Twins
from surgery_transformers.shrink import SIZES, Size, names_of_sizes, shrunken
from surgery_transformers.skeleton import check_size

__all__ = ["twins_of"]

_LENGTH = 6
_DROPPED = ("architectures", "transformers_version", "_name_or_path", "dtype", "torch_dtype", "quantization_config",
            "id2label", "label2id", "num_labels")  # fmt: skip
_MOST_PARAMETERS = 20_000_000


def twins_of(config: Any, class_name: str) -> Twins | None:
    """Return two small models of a configuration's class, or None where it builds none.

    Args:
        config: a `PretrainedConfig`, or what `config.json` holds. Code of a checkpoint is never run.
        class_name: the class of transformers to build; "" means the one that the configuration names, or the base.
    """
    try:
        config = config if isinstance(config, PretrainedConfig) else _configuration(config)
        with warnings.catch_warnings(), _quiet(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            models = tuple(_twin(config, class_name, size) for size in SIZES)
    except MemoryError:
        raise
    except Exception:  # whatever a model's code makes of sizes that nobody has tried: there is no twin then
        return None
    table = config.get_text_config().to_dict()
    names = names_of_sizes(table)
    return Twins(models, names, _sizes(table))


def _configuration(table: Mapping[str, Any]) -> PretrainedConfig:
    check_size(table, "")
    return transformers.CONFIG_MAPPING[table["model_type"]].from_dict(dict(table))


def _twin(config: PretrainedConfig, class_name: str, size: Size) -> Twin:
    table = {key: value for key, value in config.to_dict().items() if key not in _DROPPED}
    small = type(config).from_dict(shrunken(table, size))
    for part in (small, small.get_text_config()):
        if getattr(part, "pad_token_id", None) is None:
            part.pad_token_id = 0  # classifiers look for the end of a text by it; no batch is padded
    classes = [class_name, *(config.architectures or ())]
    cls = next((found for name in classes if (found := getattr(transformers, str(name), None)) is not None), None)
    options = {"attn_implementation": "eager", "dtype": torch.float64}
    with torch.device("meta"):
        skeleton = _built(cls, small, options)
    if sum(parameter.numel() for parameter in skeleton.parameters()) > _MOST_PARAMETERS:
        raise ValueError("a size is not known, and stays large")
    model = _built(cls, small, options)
    for part in (model.config, *(getattr(model.config, name, None) for name in model.config.sub_configs)):
        if part is not None:
            part._experts_implementation = "eager"
    _randomise(model.double().eval())
    model.requires_grad_(False)
    return Twin(model, _batches(model), _sizes(small.get_text_config().to_dict()))


def _built(cls: Any, config: PretrainedConfig, options: Mapping[str, Any]) -> Any:
    if hasattr(cls, "_from_config"):
        return cls._from_config(config, **options)
    base: Any = transformers.AutoModel
    return base.from_config(config, trust_remote_code=False, **options)


def _randomise(model: nn.Module) -> None:
    """Give every parameter values of a spread that neither dies out nor saturates a softmax."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.dim() > 1:
                parameter.copy_(noise / math.sqrt(parameter.shape[-1]))
            else:  # a norm's weight stays about 1, a bias about 0, and nothing stays exactly 0
                parameter.add_(noise / 10)


def _batches(model: nn.Module) -> Callable[[int, int], Mapping[str, Any]]:
    accepted = inspect.signature(model.forward).parameters
    # Classifiers make the decoder's words of the encoder's, and read the result where the text ends.
    is_classifier = type(model).__name__.endswith("SequenceClassification")
    lengths = {"input_ids": _LENGTH + 2, **({} if is_classifier else {"decoder_input_ids": _LENGTH})}
    end = getattr(model.config, "eos_token_id", None)

    def batch(seed: int, size: int) -> dict[str, Tensor | bool]:
        generator = torch.Generator().manual_seed(seed)
        given: dict[str, Tensor | bool] = {}
        for name, length in lengths.items():
            if name in accepted:
                words = torch.randint(5, 60, (1, length), generator=generator)
                words[0, -1] = end if isinstance(end, int) else words[0, -1]
                given[name] = words.repeat(size, 1)
        if "bbox" in accepted:
            given["bbox"] = torch.arange(1, 5).repeat(size, lengths["input_ids"], 1)
        if "lang_ids" in accepted:
            given["lang_ids"] = torch.zeros(size, dtype=torch.long)
        if "use_cache" in accepted:
            given["use_cache"] = False
        return given

    return batch


def _sizes(table: Mapping[str, Any]) -> dict[str, int]:
    return {key: value for key, value in table.items() if type(value) is int and value > 0}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from remarking on configurations that nobody chose."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
