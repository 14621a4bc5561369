"""The Llama shape: grouped-query attention, a gated MLP, RMSNorm, and for some types norms of queries and keys."""

from surgery import Architecture, hookimpl

LLAMA = Architecture(
    types=("llama", "mistral", "granite", "qwen2", "qwen3", "smollm3", "gemma", "olmo"),
    base=("model", "transformer"),  # some classes for question answering say transformer
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        "norm.attention.pre": "*.input_layernorm",
        "attention.query": "*.self_attn.q_proj",
        "norm.query": "*.self_attn.q_norm",
        "attention.key": "*.self_attn.k_proj",
        "norm.key": "*.self_attn.k_norm",
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
