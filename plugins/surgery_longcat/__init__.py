"""LongCat Flash: two times latent attention and an MLP in each layer, and experts from the first to past the second."""

from surgery import Architecture, Slice, hookimpl

_FILES = {
    "mlp.experts.gate_up_proj": ("mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"),
    "mlp.experts.down_proj": ("mlp.experts.*.down_proj.weight",),
}
_WIDTHS = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}


def _half(start: int) -> Slice:
    return Slice("*.mlp.experts.gate_up_proj", view=(2, -1), start=start, axis=1)


def _down(start: int | str, length: str) -> Slice:
    return Slice("*.self_attn.*.kv_a_proj_with_mqa", ("kv_lora_rank + qk_rope_head_dim",), 0, start, length)


def _of_each_head(start: int | str, length: str) -> Slice:
    return Slice("*.self_attn.*.kv_b_proj", (-1, "qk_nope_head_dim + v_head_dim"), 1, start, length)


LONGCAT = Architecture(
    types=("longcat_flash",),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        "norm.attention.pre": "*.input_layernorm.*",
        "attention.query_down": "*.self_attn.*.q_a_proj",
        "norm.query": "*.self_attn.*.q_a_layernorm",
        "attention.query": "*.self_attn.*.q_b_proj",
        "attention.kv_down": _down(0, "kv_lora_rank"),
        "attention.key_rope": _down("kv_lora_rank", "qk_rope_head_dim"),
        "norm.key": "*.self_attn.*.kv_a_layernorm",
        "attention.key": _of_each_head(0, "qk_nope_head_dim"),
        "attention.value": _of_each_head("qk_nope_head_dim", "v_head_dim"),
        "attention.output": "*.self_attn.*.o_proj",
        "norm.mlp.pre": "*.post_attention_layernorm.*",
        **{f"mlp.{role}": f"*.mlps.*.{role}_proj" for role in ("gate", "up", "down")},
        "moe.router": "*.mlp.router.classifier",
        "moe.experts.gate": _half(0),
        "moe.experts.up": _half(1),
        "moe.experts.down": "*.mlp.experts.down_proj",
        "norm.final": "norm",
    },
    heads={"head.lm": "lm_head"}, ties={"lm_head.weight": "model.embed_tokens.weight"},
    uncalled=("*.mlp.router.classifier",),
    defaults=_WIDTHS, files=_FILES, ignored=("mlp.router.e_score_correction_bias", "^model.mtp"),
)  # fmt: skip


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [LONGCAT]
