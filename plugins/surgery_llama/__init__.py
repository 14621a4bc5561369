"""Llama: grouped-query attention, a gated MLP, RMSNorm."""

from surgery import Architecture, hookimpl

LLAMA = Architecture(
    types=("llama",),
    base=("model", "transformer"),  # LlamaForQuestionAnswering says transformer
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        "norm.attention.pre": "*.input_layernorm",
        "attention.query": "*.self_attn.q_proj",
        "attention.key": "*.self_attn.k_proj",
        "attention.value": "*.self_attn.v_proj",
        "attention.output": "*.self_attn.o_proj",
        "norm.mlp.pre": "*.post_attention_layernorm",
        "mlp.gate": "*.mlp.gate_proj",
        "mlp.up": "*.mlp.up_proj",
        "mlp.down": "*.mlp.down_proj",
        "norm.final": "norm",
    },
    heads={"head.lm": "lm_head", "head.classifier": ("score", "qa_outputs")},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [LLAMA]
