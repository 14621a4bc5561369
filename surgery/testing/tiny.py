"""Tiny models of a type that transformers knows, with every task head, and batches that they can be called with."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from surgery.errors import PluginError
from surgery.registry import load_registry

__all__ = ["Tiny", "classes_of", "tiny_config", "tiny_model"]

_MOST = 20_000_000
"""Numbers of a model that is built to be checked; a tiny one has some ten thousand."""

_WIDTH, _HEADS, _INNER, _WORDS, _LENGTH = 32, 4, 48, 41, 7

_SIZES: dict[str, int] = {
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "num_encoder_layers",
         "encoder_layers", "decoder_layers", "depth"), 2),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "word_embed_proj_dim"), _WIDTH),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "d_ff", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size",
         "moe_intermediate_size", "shared_expert_intermediate_size"), _INNER),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads"),
        _HEADS),
    **dict.fromkeys(("head_dim", "d_kv", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), _WIDTH // _HEADS),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "projection_dim"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("num_experts_per_tok",), 2),
    "num_key_value_heads": 2, "rotary_dim": 8, "vocab_size": _WORDS, "image_size": 32, "patch_size": 8,
    "num_mel_bins": 8, "max_source_positions": 16, "state_size": 4, "n_groups": 1,
    "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
}  # fmt: skip
"""What makes a model tiny, by the names that configurations have for it; groups of heads stay groups."""

_HEADS_OF_ALL = ("num_attention_heads", "n_head", "n_heads", "num_heads", "head_dim", "num_key_value_heads")


@dataclass(frozen=True)
class Tiny:
    """A model in evaluation mode and a batch for it.

    Attributes:
        name: what it is called in findings: its class.
        model: random weights, biases and norms included.
        args, batch: what it can be called with.
        bare: the same model on the meta device, as its configuration builds it; None where there is only `model`.
    """

    name: str
    model: nn.Module
    args: tuple[Any, ...]
    batch: Mapping[str, Any]
    bare: nn.Module | None = None


def tiny_config(model_type: str) -> Any:
    """Return a small configuration of a type that transformers knows.

    Raises:
        PluginError: transformers does not know the type, or no model can be built from what was tried.
    """
    from transformers import CONFIG_MAPPING

    auto: Any = importlib.import_module("transformers").AutoModel
    if model_type not in CONFIG_MAPPING:
        raise PluginError(
            f"transformers knows no model of type {model_type!r}",
            model_type,
            "pass --factory MODULE:FUNCTION: a function without arguments that returns (model, inputs), inputs being a "
            "mapping of keyword arguments or a tuple",
        )
    cls, why = CONFIG_MAPPING[model_type], ""
    for leave_out in ((), _HEADS_OF_ALL, tuple(name for name in _SIZES if name not in _ALWAYS)):
        try:
            with _silence(), torch.device("meta"):
                config = cls(**_shrunken(cls, leave_out))
                if _size(auto.from_config(config)) <= _MOST:
                    return config
            why = f"more than {_MOST:,} parameters"
        except Exception as error:  # a model's own code, on sizes that it may not like
            why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
    small = _of_a_twin(model_type)
    if small is not None:
        return small
    raise PluginError(f"no tiny model of type {model_type!r} can be built: {why}", model_type, "pass --config FILE")


def _of_a_twin(model_type: str) -> Any:
    """Return the configuration of a model that is built to be measured; its sizes are known by more names."""
    from transformers import CONFIG_MAPPING

    for source in load_registry().models.values():
        with contextlib.suppress(Exception):  # a type whose own defaults do not hold
            twins = source.value.twins(CONFIG_MAPPING[model_type](), "")
            if twins is not None:
                return twins.models[0].model.config
    return None


_ALWAYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "vocab_size")


def _shrunken(cls: Any, leave_out: Sequence[str]) -> dict[str, Any]:
    default = cls()
    known = default.to_dict()
    chosen: dict[str, Any] = {
        name: size
        for name, size in _SIZES.items()
        if name not in leave_out and (_is_size(known.get(name)) or (name == "num_experts_per_tok" and name in known))
    }
    if "attention_types" in known:  # GPT-Neo's kinds of attention, with how often they come
        chosen["attention_types"] = [[["global", "local"], 1]]
    if "expand" in known and {"num_heads", "head_dim"} <= set(chosen):  # Mamba 2 has heads of the expanded width
        chosen["num_heads"] = known["expand"] * _WIDTH // chosen["head_dim"]
    heads = known.get("num_attention_heads")
    groups = known.get("num_key_value_heads")
    if "num_key_value_heads" in chosen and groups in (1, heads):  # one for all heads, or one for each, by a choice
        chosen["num_key_value_heads"] = 1 if groups == 1 else _HEADS
    words = chosen.get("vocab_size", known.get("vocab_size"))
    for name, value in known.items():
        if name.endswith("_token_id") and isinstance(value, int) and isinstance(words, int) and value >= words:
            chosen[name] = 2
    if "vocab_size" in known and known.get("pad_token_id") is None:
        chosen["pad_token_id"] = 0
    for name, inner in (getattr(cls, "sub_configs", None) or {}).items():
        if name in known and hasattr(inner, "model_type") and inner is not cls:
            with contextlib.suppress(Exception):  # a part of any type has no sizes of its own
                chosen[name] = _shrunken(inner, leave_out)
    return chosen


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def classes_of(model_type: str) -> tuple[str, ...]:
    """Return the model classes of a type: the bare model and those with a head, as transformers' Auto classes list."""
    from transformers.models.auto import modeling_auto

    found: dict[str, None] = {}
    for name in sorted(vars(modeling_auto)):
        if name.startswith("MODEL_") and name.endswith("_MAPPING_NAMES") and "BACKBONE" not in name:
            classes = getattr(modeling_auto, name).get(model_type, ())
            found.update(dict.fromkeys((classes,) if isinstance(classes, str) else classes))
    return tuple(sorted(found))


def tiny_model(class_name: str, config: Any) -> Tiny | str:
    """Return the class with this configuration, or in words why it cannot be built and called here."""
    import transformers

    try:
        with _silence(), torch.random.fork_rng(devices=[]):
            cls: Any = getattr(transformers, class_name)
            with torch.device("meta"):
                bare = cls(_copy(config))
            size = _size(bare)
            if size > _MOST:
                return f"it has {size:,} parameters, and at most {_MOST:,} are built: pass a smaller --config"
            torch.manual_seed(0)
            model = cls(_copy(config)).eval()
            with torch.no_grad():  # biases and norms of a fresh model are all zeros and ones
                for parameter in model.parameters():
                    parameter.add_(torch.randn(parameter.shape) * 0.05)
            batch = dict(_batch(model))
            with torch.no_grad():
                model(**batch)
    except Exception as error:
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200]
    return Tiny(class_name, model, (), batch, bare)


def _copy(config: Any) -> Any:
    """Models write to their configurations."""
    made = copy.deepcopy(config)
    with contextlib.suppress(Exception):
        made._attn_implementation = "eager"
    return made


def _batch(model: Any) -> Iterator[tuple[str, Any]]:
    names = set(inspect.signature(model.forward).parameters)
    config = model.config
    main = getattr(model, "main_input_name", "input_ids")
    words = getattr(_part(config, "text"), "vocab_size", None)
    if "input_ids" in names and isinstance(words, int) and (main == "input_ids" or "pixel_values" in names):
        ids = _ids(_part(config, "text"), words)
        if "MultipleChoice" in type(model).__name__:
            ids = torch.stack((ids, ids.flip(0)), 1)
        yield "input_ids", ids
        beside = {
            "attention_mask": torch.ones_like(ids),
            "bbox": torch.arange(1, 5).expand(*ids.shape, 4),  # each word in the same box
            "lang_ids": torch.zeros(len(ids), dtype=torch.long),
        }
        yield from ((name, tensor) for name, tensor in beside.items() if name in names)
    if "decoder_input_ids" in names and getattr(config, "is_encoder_decoder", False) and isinstance(words, int):
        yield "decoder_input_ids", _ids(config, words)
    vision = _part(config, "vision")
    if "pixel_values" in names and hasattr(vision, "image_size"):
        size = vision.image_size
        extents = tuple(size) if isinstance(size, list | tuple) else (size, size)
        yield "pixel_values", torch.rand(2, getattr(vision, "num_channels", 3), *extents)
    if "input_features" in names and hasattr(config, "num_mel_bins"):
        yield "input_features", torch.rand(2, config.num_mel_bins, 2 * getattr(config, "max_source_positions", 16))
    if "input_values" in names and main == "input_values":
        yield "input_values", torch.rand(2, 4000)


def _part(config: Any, name: str) -> Any:
    part = getattr(config, f"{name}_config", None)
    return config if part is None else part


def _ids(config: Any, words: int) -> torch.Tensor:
    """Words of no special meaning, but for the last one, which ends each row as classifiers of some types ask."""
    special = {value for name, value in vars(config).items() if name.endswith("_token_id") and isinstance(value, int)}
    plain = [word for word in range(words) if word not in special][: _LENGTH * 2]
    rows = torch.tensor([plain[:_LENGTH], plain[-_LENGTH:]])
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < words:
        rows[:, -1] = end
    return rows


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Much that transformers warns of is meant here: odd sizes, missing padding, heads that are no decoders."""
    from transformers.utils import logging as module

    logging: Any = module
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
