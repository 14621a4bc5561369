"""BLT: bytes are put together to patches by cross attention, which a Llama reads, and taken apart in the same way."""

from surgery import Architecture, hookimpl

_STACKS = {
    "encoder": "local_encoder.layers",
    "encoder_cross": "local_encoder.cross_attn_layers",
    "global": "global_transformer.layers",
    "decoder": "local_decoder.layers",
    "decoder_cross": "local_decoder.cross_attn_layers",
    "patcher": "patcher.layers",  # a model of its own, which says where a patch ends
}

BLT = Architecture(
    types=("blt",),
    base="model",
    stacks=_STACKS,
    roles={
        "embedding.token": (
            *("local_encoder.embed_tokens", "patcher.embed_tokens"),
            "encoder_hash_tok_embedding",  # of the bytes before, by their hashes
        ),
        "embedding.projection": (
            *(f"local_{part}.patch_embedding_projection" for part in ("encoder", "decoder")),
            "global_transformer.token_embedding_projection",
        ),
        "norm.attention.pre": "*.input_layernorm",
        **{f"attention.{role}": f"*.self_attn.{role[0]}_proj" for role in ("query", "key", "value", "output")},
        "norm.cross_attention.pre": ("*.q_norm", "*.k_norm"),  # of what asks, and of the other sequence
        **{f"cross_attention.{role}": f"*.{role[0]}_proj" for role in ("query", "key", "value", "output")},
        "norm.mlp.pre": "*.post_attention_layernorm",
        **{f"mlp.{role}": f"*.mlp.{role}_proj" for role in ("gate", "up", "down")},
        "norm.final": ("local_decoder.norm", "patcher.norm"),
        "head.lm": "patcher.lm_head",
    },
    heads={"head.lm": "lm_head"},
    ties={"model.local_encoder.embed_tokens.weight": "lm_head.weight"},
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [BLT]
