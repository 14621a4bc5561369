"""GPT-NeoX: query, key and value stand side by side head by head in one fused weight."""

from surgery import Architecture, Slice, hookimpl


def _of_each_head(start: int) -> Slice:
    return Slice("*.attention.query_key_value", view=("num_attention_heads", 3, -1), dim=1, start=start)


GPT_NEOX = Architecture(
    types=("gpt_neox",),
    base="gpt_neox",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_in",
        "norm.attention.pre": "*.input_layernorm",
        "attention.query": _of_each_head(0),
        "attention.key": _of_each_head(1),
        "attention.value": _of_each_head(2),
        "attention.output": "*.attention.dense",
        "norm.mlp.pre": "*.post_attention_layernorm",
        "mlp.up": "*.mlp.dense_h_to_4h",
        "mlp.down": "*.mlp.dense_4h_to_h",
        "norm.final": "final_layer_norm",
    },
    # Files call the head embed_out.
    heads={"head.lm": ("lm_head", "embed_out"), "head.classifier": ("score", "classifier", "qa_outputs")},
    ties={"lm_head.weight": "gpt_neox.embed_in.weight"},
    files={"lm_head": "^embed_out"},
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [GPT_NEOX]
