"""The closed vocabulary of roles: one name for one function, whatever a model calls its modules.

`mlp.gate` is the operand that passes the activation, `mlp.up` the linear operand (or the only input projection),
`mlp.down` the projection back. `norm.X.pre` feeds X; `norm.X.post` normalises X's output.
"""

from __future__ import annotations

__all__ = ["OTHER", "ROLES", "is_role"]

OTHER = "other."
"""Prefix of the role of a parameter that no architecture names: `other.<module path>`."""

_FAMILIES: dict[str, str] = {
    "attention": "query key value output query_down kv_down key_rope",
    "cross_attention": "query key value output",
    "mlp": "gate up down",
    "moe": "router experts.gate experts.up experts.down shared.gate shared.up shared.down shared_gate",
    "ssm": "input gate B C dt x conv output",
    "linear_attention": "query key value beta decay conv output gate",
    "embedding": "token position token_type projection relative patch class",
    "head": "lm transform classifier projection",
    "norm": "embedding final query key head",
}
_NORMALISED = ("attention", "mlp", "cross_attention", "mixer")

ROLES: frozenset[str] = frozenset(
    [f"{family}.{name}" for family, names in _FAMILIES.items() for name in names.split()]
    + [f"norm.{block}.{place}" for block in _NORMALISED for place in ("pre", "post")]
)


def is_role(role: str) -> bool:
    """Return whether `role` belongs to the vocabulary (`other.<path>` included)."""
    return role in ROLES or role.startswith(OTHER)
