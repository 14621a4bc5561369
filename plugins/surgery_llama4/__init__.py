"""Llama 4: experts stored (fan_in, fan_out) beside one MLP, in all layers or some; a vision tower may stand beside."""

from surgery import Architecture, Slice, hookimpl


def _half(start: int) -> Slice:
    return Slice("*.feed_forward.experts.gate_up_proj", view=(2, -1), start=start, axis=2)


_LAYER: dict[str, str | Slice] = {
    "norm.attention.pre": "*.input_layernorm",
    **{f"attention.{role}": f"*.self_attn.{role[0]}_proj" for role in ("query", "key", "value", "output")},
    "norm.mlp.pre": "*.post_attention_layernorm",
    **{f"mlp.{role}": f"*.feed_forward.{role}_proj" for role in ("gate", "up", "down")},
    "moe.router": "*.feed_forward.router",
    "moe.experts.gate": _half(0),
    "moe.experts.up": _half(1),
    "moe.experts.down": "*.feed_forward.experts.down_proj",
    **{f"moe.shared.{role}": f"*.feed_forward.shared_expert.{role}_proj" for role in ("gate", "up", "down")},
}

LLAMA_4 = Architecture(
    types=("llama4_text",),
    base="model",
    stacks={"decoder": "layers"},
    roles={"embedding.token": "embed_tokens", **_LAYER, "norm.final": "norm"},
    heads={"head.lm": "lm_head"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
    uncalled=("*.feed_forward.router",),
    transposed_experts=True,
)

LLAMA_4_VISION = Architecture(
    types=("llama4",),
    base="",
    stacks={"vision": "vision_model.model.layers", "decoder": "language_model.model.layers"},
    roles={
        **_LAYER,
        "embedding.patch": "vision_model.patch_embedding.linear",
        "embedding.class": "vision_model.class_embedding",
        "embedding.position": "vision_model.positional_embedding_vlm",
        "norm.embedding": "vision_model.layernorm_pre",
        "mlp.up": ("*.feed_forward.up_proj", "*.mlp.fc1"),
        "mlp.down": ("*.feed_forward.down_proj", "*.mlp.fc2"),
        "embedding.projection": (
            *(f"vision_model.vision_adapter.mlp.{name}" for name in ("fc1", "fc2")),
            "multi_modal_projector.linear_1",
        ),
        "embedding.token": "language_model.model.embed_tokens",
        "norm.final": ("vision_model.layernorm_post", "language_model.model.norm"),
        "head.lm": "language_model.lm_head",
    },
    ties={"language_model.lm_head.weight": "language_model.model.embed_tokens.weight"},
    uncalled=("*.feed_forward.router",),
    transposed_experts=True,
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [LLAMA_4, LLAMA_4_VISION]
