"""Qwen with experts: some layers stay dense, and the second generation has an expert that every token passes."""

from surgery import Architecture, Slice, hookimpl

_FILES = {
    "mlp.experts.gate_up_proj": ("mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"),
    "mlp.experts.down_proj": ("mlp.experts.*.down_proj.weight",),
}


def _half(start: int) -> Slice:
    return Slice("*.mlp.experts.gate_up_proj", view=(2, -1), start=start, axis=1)


QWEN_MOE = Architecture(
    types=("qwen2_moe", "qwen3_moe"),
    base=("model", "transformer"),  # question answering says transformer
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        "norm.attention.pre": "*.input_layernorm",
        **{f"attention.{role}": f"*.self_attn.{role[0]}_proj" for role in ("query", "key", "value", "output")},
        "norm.query": "*.self_attn.q_norm",
        "norm.key": "*.self_attn.k_norm",
        "norm.mlp.pre": "*.post_attention_layernorm",
        **{f"mlp.{role}": f"*.mlp.{role}_proj" for role in ("gate", "up", "down")},
        "moe.router": "*.mlp.gate",
        "moe.experts.gate": _half(0),
        "moe.experts.up": _half(1),
        "moe.experts.down": "*.mlp.experts.down_proj",
        **{f"moe.shared.{role}": f"*.mlp.shared_expert.{role}_proj" for role in ("gate", "up", "down")},
        "moe.shared_gate": "*.mlp.shared_expert_gate",
        "norm.final": "norm",
    },
    heads={"head.lm": "lm_head", "head.classifier": ("score", "qa_outputs")},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
    uncalled=("*.mlp.gate",),
    files=_FILES,
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [QWEN_MOE]
