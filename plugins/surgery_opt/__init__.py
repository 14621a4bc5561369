"""OPT: norms before or after their block by configuration; a word embedding that may be narrower than the model."""

from surgery import Architecture, When, hookimpl

_BEFORE, _AFTER = {"do_layer_norm_before": True}, {"do_layer_norm_before": False}

OPT = Architecture(
    types=("opt",),
    base="model",
    stacks={"decoder": "decoder.layers"},
    roles={
        "embedding.token": "decoder.embed_tokens",
        "embedding.position": "decoder.embed_positions",
        "embedding.projection": "decoder.project_in",
        "norm.attention.pre": When("*.self_attn_layer_norm", _BEFORE),
        "attention.query": "*.self_attn.q_proj",
        "attention.key": "*.self_attn.k_proj",
        "attention.value": "*.self_attn.v_proj",
        "attention.output": "*.self_attn.out_proj",
        "norm.attention.post": When("*.self_attn_layer_norm", _AFTER),
        "norm.mlp.pre": When("*.final_layer_norm", _BEFORE),
        "mlp.up": "*.fc1",
        "mlp.down": "*.fc2",
        "norm.mlp.post": When("*.final_layer_norm", _AFTER),
        "norm.final": "decoder.final_layer_norm",
        "head.projection": "decoder.project_out",
    },
    heads={"head.lm": "lm_head", "head.classifier": ("score", "qa_outputs")},
    ties={"lm_head.weight": "model.decoder.embed_tokens.weight"},
    defaults={"do_layer_norm_before": True},
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [OPT]
