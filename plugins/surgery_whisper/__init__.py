"""Whisper: an encoder of spectrograms, whose first two modules are convolutions over time, and a decoder of text."""

from surgery import Architecture, hookimpl

WHISPER = Architecture(
    types=("whisper",),
    base="model",
    stacks={"encoder": "encoder.layers", "decoder": "decoder.layers"},
    roles={
        "embedding.patch": ("encoder.conv1", "encoder.conv2"),
        "embedding.token": "decoder.embed_tokens",
        "embedding.position": ("encoder.embed_positions", "decoder.embed_positions"),
        "norm.attention.pre": "*.self_attn_layer_norm",
        "attention.query": "*.self_attn.q_proj",
        "attention.key": "*.self_attn.k_proj",
        "attention.value": "*.self_attn.v_proj",
        "attention.output": "*.self_attn.out_proj",
        "norm.cross_attention.pre": "*.encoder_attn_layer_norm",
        "cross_attention.query": "*.encoder_attn.q_proj",
        "cross_attention.key": "*.encoder_attn.k_proj",
        "cross_attention.value": "*.encoder_attn.v_proj",
        "cross_attention.output": "*.encoder_attn.out_proj",
        "norm.mlp.pre": "*.final_layer_norm",
        "mlp.up": "*.fc1",
        "mlp.down": "*.fc2",
        "norm.final": ("encoder.layer_norm", "decoder.layer_norm"),
    },
    heads={"head.lm": "proj_out", "head.projection": "projector", "head.classifier": "classifier"},
    ties={"proj_out.weight": "model.decoder.embed_tokens.weight"},
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [WHISPER]
