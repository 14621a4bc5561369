"""What a model's configuration says that shapes of weights do not: heads, dropouts, the function of its MLP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from surgery.planning.cost.unknown import Unknown
from surgery.planning.inventory import Inventory

__all__ = ["FUNCTIONS", "Function", "Settings", "settings_of"]


@dataclass(frozen=True, slots=True)
class Function:
    """How an elementwise function is differentiated: how many tensors of its input's size it keeps, and its result."""

    inputs: int
    outputs: int = 0


FUNCTIONS: Mapping[str, Function] = {
    **dict.fromkeys(("gelu", "gelu_pytorch_tanh", "silu", "swish"), Function(1)),
    **dict.fromkeys(("relu", "tanh", "sigmoid"), Function(0, 1)),
    "quick_gelu": Function(2),  # x and sigmoid(1.702 x)
    "gelu_new": Function(4),  # written out: x, 0.5 x, tanh, 1 + tanh
    "gelu_fast": Function(7),  # written out, in more steps
    "linear": Function(0),
}
"""As transformers computes them, by the names that configurations use."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Numbers of one model.

    Attributes:
        class_name: of the model; tells which positions a head reads.
        size: bytes of one number of its matrices.
        layers: how many are computed, where it is said.
        heads, groups, head_width: heads of queries, of keys and values, and the numbers of one, where it is said.
        function: of the MLP.
        embedding_dropout, attention_dropout, residual_dropout, head_dropout: probabilities.
        rotary: whether queries and keys are turned by position.
        parallel: whether attention and MLP read the same state, each through a norm of its own.
        plain_norms: whether norms without a bias are layer norms all the same.
        written_out: whether attention is not left to one kernel.
    """

    class_name: str
    size: int
    layers: int | None

    heads: int
    groups: int
    head_width: int | None
    function: Function
    embedding_dropout: float
    attention_dropout: float
    residual_dropout: float
    head_dropout: float
    rotary: bool
    parallel: bool
    plain_norms: bool
    written_out: bool


def settings_of(found: Inventory, size: int) -> Settings:
    """Return what the configuration of `found` says; `size` is the bytes of one number.

    Raises:
        Unknown: there is no configuration, or it lacks a number or names a function that is not known.
    """
    table = _table(found)
    heads = _count(table, "num_attention_heads", "n_head", "n_heads", "num_heads")
    if heads is None:
        raise Unknown("the configuration does not say how many heads there are")
    name = _first(table, "hidden_act", "activation_function", "hidden_activation", "activation")
    if name not in FUNCTIONS:
        raise Unknown(f"what the activation function {name!r} keeps is not known")
    hidden = _share(table, "hidden_dropout_prob", "resid_pdrop", "hidden_dropout", "resid_dropout", "dropout")
    head = _first(table, "classifier_dropout", "summary_first_dropout", "seq_classif_dropout")
    return Settings(
        class_name=found.class_name,
        size=size,
        layers=_count(table, "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        heads=heads,
        groups=_count(table, "num_key_value_heads") or heads,
        head_width=_count(table, "head_dim"),
        function=FUNCTIONS[name],
        embedding_dropout=_share(table, "embd_pdrop", "embedding_dropout", "embed_dropout", default=hidden),
        attention_dropout=_share(table, "attention_probs_dropout_prob", "attn_pdrop", "attention_dropout"),
        residual_dropout=hidden,
        head_dropout=hidden if head is None else float(head),
        rotary=any(table.get(name) is not None for name in ("rope_parameters", "rope_theta", "rotary_dim")),
        parallel=any(table.get(name) is True for name in ("use_parallel_residual", "parallel_attn")),
        plain_norms=table.get("norm_bias") is False,
        written_out=_first(table, "_attn_implementation", "_attn_implementation_internal") == "eager",
    )


def _table(found: Inventory) -> Mapping[str, Any]:
    config = found.config
    if config is None:
        raise Unknown("there is no configuration beside the weights")
    return config if isinstance(config, Mapping) else vars(config)


def _first(table: Mapping[str, Any], *names: str) -> Any:
    return next((table[name] for name in names if table.get(name) is not None), None)


def _count(table: Mapping[str, Any], *names: str) -> int | None:
    value = _first(table, *names)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _share(table: Mapping[str, Any], *names: str, default: float = 0.0) -> float:
    value = _first(table, *names)
    return float(value) if isinstance(value, int | float) else default
