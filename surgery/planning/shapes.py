"""Whether shapes agree with what names suggest: attention, MLPs, experts, and the fused weights of latent attention."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from surgery.architecture import Slice
from surgery.planning.inventory import ParameterEntry

__all__ = ["LATENT_ROLES", "Weight", "checked", "is_latent", "latent_parts"]

LATENT_ROLES = ("attention.key", "attention.value", "attention.kv_down", "attention.key_rope")
_STATE = re.compile(
    r"(?:A_log|decay|slope|[a-z_]*conv1d?|b_proj|beta_proj|dt_bias|forget_gate.*|output_gate|f_[ab]_proj|receptance)(?:\..*)?"
)
"""Names inside of an attention that keeps a state."""
_LATENT = re.compile(r"self_attn\.(kv_a_proj_with_mqa|kv_b_proj)")


@dataclass(frozen=True, slots=True)
class Weight:
    """One matrix, or weight of experts, of one layer, and what its name suggests."""

    entry: ParameterEntry
    inside: str
    role: str

    @property
    def block(self) -> str:
        """The path of the attention or MLP that it belongs to."""
        parts = self.inside.split(".")
        return ".".join(parts[: -2 if parts[-1] == "dense" and len(parts) > 1 else -1])

    @property
    def out(self) -> int:
        return self.entry.shape[1 if self.entry.host == "conv1d" else 0]

    @property
    def inp(self) -> int:
        return self.entry.shape[0 if self.entry.host == "conv1d" else 1]


def checked(weights: Sequence[Weight], siblings: frozenset[str], experts: int) -> Iterator[tuple[Weight, str]]:
    """Yield every weight of a layer with the reason why its shape refutes its name, or "".

    Args:
        weights: what is named like a matrix with a role.
        siblings: paths of all modules and parameters in the layer.
        experts: how many experts the layer's 3-D weights hold; 0 where there are none.
    """
    blocks: dict[tuple[str, str], list[Weight]] = defaultdict(list)
    for weight in weights:
        family = weight.role.rpartition(".")[0]
        blocks[family, weight.block if "attention" in family or family == "moe.shared" else ""].append(weight)
    for (family, block), group in blocks.items():
        if family == "moe":
            for weight in group:
                is_router = weight.role == "moe.router"
                yield weight, "it has no row for each expert" if is_router and weight.out != experts else ""
        elif family == "attention" and _is_linear(block, siblings):
            yield from ((replace(weight, role=f"linear_{weight.role}"), "") for weight in group)
        else:
            reason = _misfit(family, group)
            yield from ((weight, reason) for weight in group)


def _is_linear(block: str, siblings: frozenset[str]) -> bool:
    """Whether an attention keeps a decaying state: linear attention is often called `self_attn` as well."""
    return any(_STATE.fullmatch(path.removeprefix(f"{block}.")) for path in siblings if path.startswith(f"{block}."))


def _misfit(family: str, group: Sequence[Weight]) -> str:
    by_role: dict[str, list[Weight]] = defaultdict(list)
    for weight in group:
        by_role[weight.role.rpartition(".")[2]].append(weight)
    if family in ("attention", "cross_attention"):
        return _misfit_of_attention(by_role)
    if family in ("mlp", "moe.shared"):
        return _misfit_of_mlp(by_role)
    return ""


def _misfit_of_attention(by_role: Mapping[str, Sequence[Weight]]) -> str:
    if any(len(weights) > 1 for weights in by_role.values()):
        return "two weights of one attention would have the same role"
    one = {role: weights[0] for role, weights in by_role.items()}
    if "key" in one and not one.keys() & {"query", "query_down"}:
        return "there is a key and no query"
    # In latent attention the sizes of query and output are independent; elsewhere a part may be fused, or shared with
    # another layer.
    if "query_down" in one or not {"query", "key", "value", "output"} <= set(one):
        return ""
    query, key, value, output = (one[role] for role in ("query", "key", "value", "output"))
    if query.out * value.out != output.inp * key.out or (query.out != output.inp and key.out == value.out):
        return "the query is wider than the output's input: it may hold a gate as well"
    return "the heads of query and key do not go together" if query.out % key.out else ""


def _misfit_of_mlp(by_role: Mapping[str, Sequence[Weight]]) -> str:
    downs, ups = by_role.get("down", ()), by_role.get("up", ())
    if not downs or not ups:
        return "an MLP needs a way up and a way down"
    widths = {weight.inp for weight in downs}
    if any(weight.out not in widths for weight in (*ups, *by_role.get("gate", ()))):
        return "its width is not the one that the way down takes: it may hold a gate as well"
    return ""


def is_latent(inside: str) -> bool:
    """Return whether a name is that of a fused weight of latent attention (DeepSeek-V2, arXiv 2405.04434)."""
    return _LATENT.fullmatch(inside) is not None


def latent_parts(inside: str, entry: ParameterEntry, settings: Mapping[str, Any]) -> dict[str, Slice]:
    """Return role -> part of a fused weight of latent attention, which has one layout wherever it occurs.

    The result is empty where the configuration's sizes do not add up to the weight's.
    """
    names = ("kv_lora_rank", "qk_rope_head_dim", "num_attention_heads", "qk_nope_head_dim", "v_head_dim")
    sizes = [settings.get(name) for name in names]
    if not all(type(size) is int and size > 0 for size in sizes):
        return {}
    rank, rope, heads, nope, value = (int(size or 0) for size in sizes)
    path, rows = f"*.{inside}", entry.shape[0]
    if inside.endswith("kv_b_proj"):
        if rows != heads * (nope + value):
            return {}
        heads_of = ("num_attention_heads", "qk_nope_head_dim + v_head_dim")
        return {
            "attention.key": Slice(path, heads_of, 1, 0, "qk_nope_head_dim"),
            "attention.value": Slice(path, heads_of, 1, "qk_nope_head_dim", "v_head_dim"),
        }
    if rows != rank + rope:
        return {}
    whole = ("kv_lora_rank + qk_rope_head_dim",)
    return {
        "attention.kv_down": Slice(path, whole, 0, 0, "kv_lora_rank"),
        "attention.key_rope": Slice(path, whole, 0, "kv_lora_rank", "qk_rope_head_dim"),
    }
