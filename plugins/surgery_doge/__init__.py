"""Doge: the Llama shape with scaled residuals, and attention that chooses its keys by a step made of their values."""

from surgery import Architecture, When, hookimpl

_IS_MOE = {"is_moe": True}
_PLAIN = (  # how long a key is kept, made of its value, and how much of the residual
    *("*.self_attn.A", "*.self_attn.dt_proj", "*.input_residual", "*.post_attention_residual"),
)


def _inner(role: str) -> When:
    return When(f"*.mlp.{role}_proj", {"is_moe": False})


def _shared(role: str) -> When:
    return When(f"*.mlp.{role}_proj", _IS_MOE)


DOGE = Architecture(
    types=("doge",),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        "norm.attention.pre": "*.input_layernorm",
        **{f"attention.{role}": f"*.self_attn.{role[0]}_proj" for role in ("query", "key", "value", "output")},
        "norm.query": "*.self_attn.q_norm",
        "norm.key": "*.self_attn.k_norm",
        "norm.mlp.pre": "*.post_attention_layernorm",
        **{f"mlp.{role}": _inner(role) for role in ("gate", "up", "down")},
        **{f"moe.shared.{role}": _shared(role) for role in ("gate", "up", "down")},
        "moe.router": "*.mlp.router_gate",  # scores of rows and of columns of a square of experts
        "moe.experts.up": "*.mlp.down_embed",  # an expert is a row here, which is multiplied with a token's vector,
        "moe.experts.down": "*.mlp.up_embed",  # and one here, which that number scales
        "norm.final": "norm",
    },
    heads={"head.lm": "lm_head", "head.classifier": "score"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
    plain=_PLAIN,
    defaults={"is_moe": False},
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [DOGE]
