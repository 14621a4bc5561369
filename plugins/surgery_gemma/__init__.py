"""Gemma 2 and 3: norms on both sides of attention and MLP. Gemma 3 may have a vision tower beside the text model."""

from surgery import Architecture, When, hookimpl

_LAYER = {
    "norm.attention.pre": "*.input_layernorm",
    "attention.query": "*.self_attn.q_proj",
    "norm.query": "*.self_attn.q_norm",
    "attention.key": "*.self_attn.k_proj",
    "norm.key": "*.self_attn.k_norm",
    "attention.value": "*.self_attn.v_proj",
    "attention.output": "*.self_attn.o_proj",
    "norm.attention.post": "*.post_attention_layernorm",
    "norm.mlp.pre": "*.pre_feedforward_layernorm",
    "mlp.gate": "*.mlp.gate_proj",
    "mlp.up": "*.mlp.up_proj",
    "mlp.down": "*.mlp.down_proj",
    "norm.mlp.post": "*.post_feedforward_layernorm",
}

_OLD_NAMES: dict[str, str | When] = {
    "lm_head": "^language_model.lm_head",
    "vision_tower": "vision_tower.vision_model",
    "model.vision_tower": When("^vision_tower", beside="^language_model.model"),
    "model.multi_modal_projector": When("^multi_modal_projector", beside="^language_model.model"),
    "model.language_model": "^language_model.model",
}

GEMMA = Architecture(
    types=("gemma2", "gemma3_text"),
    base="model",
    stacks={"decoder": "layers"},
    roles={"embedding.token": "embed_tokens", **_LAYER, "norm.final": "norm"},
    heads={"head.lm": "lm_head", "head.classifier": "score"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
)

GEMMA3 = Architecture(
    types=("gemma3",),
    base="model",
    stacks={"vision": "vision_tower.encoder.layers", "decoder": "language_model.layers"},
    roles={
        **_LAYER,  # query, key and value are called the same in both stacks
        "embedding.patch": "vision_tower.embeddings.patch_embedding",
        "embedding.position": "vision_tower.embeddings.position_embedding",
        "norm.attention.pre": (_LAYER["norm.attention.pre"], "*.layer_norm1"),
        "attention.output": (_LAYER["attention.output"], "*.self_attn.out_proj"),
        "norm.mlp.pre": (_LAYER["norm.mlp.pre"], "*.layer_norm2"),
        "mlp.up": (_LAYER["mlp.up"], "*.mlp.fc1"),
        "mlp.down": (_LAYER["mlp.down"], "*.mlp.fc2"),
        "norm.final": ("vision_tower.post_layernorm", "language_model.norm"),
        "norm.embedding": "multi_modal_projector.mm_soft_emb_norm",
        "embedding.projection": "multi_modal_projector.mm_input_projection_weight",
        "embedding.token": "language_model.embed_tokens",
    },
    heads={"head.lm": "lm_head", "head.classifier": "score"},
    ties={"lm_head.weight": "model.language_model.embed_tokens.weight"},
    files=_OLD_NAMES,
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [GEMMA, GEMMA3]
