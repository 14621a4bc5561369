"""Mixtral and OLMoE: a router and experts in place of the MLP, all experts' weights in one tensor, gate above up."""

from dataclasses import replace

from surgery import Architecture, Slice, hookimpl


def _half(start: int) -> Slice:
    return Slice("*.mlp.experts.gate_up_proj", view=(2, -1), start=start, axis=1)


MIXTRAL = Architecture(
    types=("mixtral",),
    base=("model", "transformer"),  # MixtralForQuestionAnswering says transformer
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        "norm.attention.pre": "*.input_layernorm",
        "attention.query": "*.self_attn.q_proj",
        "attention.key": "*.self_attn.k_proj",
        "attention.value": "*.self_attn.v_proj",
        "attention.output": "*.self_attn.o_proj",
        "norm.query": "*.self_attn.q_norm",  # OLMoE only, over the full width
        "norm.key": "*.self_attn.k_norm",
        "norm.mlp.pre": "*.post_attention_layernorm",
        "moe.router": "*.mlp.gate",
        "moe.experts.gate": _half(0),
        "moe.experts.up": _half(1),
        "moe.experts.down": "*.mlp.experts.down_proj",
        "norm.final": "norm",
    },
    heads={"head.lm": "lm_head", "head.classifier": ("score", "qa_outputs")},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
    uncalled=("*.mlp.gate",),
    files={
        "mlp": "block_sparse_moe",
        "experts.gate_up_proj": ("experts.*.w1.weight", "experts.*.w3.weight"),
        "experts.down_proj": ("experts.*.w2.weight",),
    },
)

OLMOE = replace(
    MIXTRAL,
    types=("olmoe",),
    files={
        "experts.gate_up_proj": ("experts.*.gate_proj.weight", "experts.*.up_proj.weight"),
        "experts.down_proj": ("experts.*.down_proj.weight",),
    },
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [MIXTRAL, OLMOE]
