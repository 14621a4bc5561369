"""xLSTM: linear attention whose input gate says how much is written and whose forget gate how fast the state fades."""

from surgery import Architecture, hookimpl

_LINEAR = tuple(f"linear_attention.{name}" for name in ("query", "key", "value", "gate", "beta", "decay"))

XLSTM = Architecture(
    types=("xlstm",),
    base="backbone",
    stacks={"decoder": "blocks"},
    roles={
        "embedding.token": "embeddings",
        "norm.mixer.pre": "*.norm_mlstm",
        "linear_attention.query": "*.mlstm_layer.q",
        "linear_attention.key": "*.mlstm_layer.k",
        "linear_attention.value": "*.mlstm_layer.v",
        "linear_attention.gate": "*.mlstm_layer.ogate_preact",
        "linear_attention.beta": "*.mlstm_layer.igate_preact",
        "linear_attention.decay": "*.mlstm_layer.fgate_preact",
        "linear_attention.output": "*.mlstm_layer.out_proj",
        "norm.mlp.pre": "*.norm_ffn",
        "mlp.gate": "*.ffn.proj_up_gate",
        "mlp.up": "*.ffn.proj_up",
        "mlp.down": "*.ffn.proj_down",
        "norm.final": "out_norm",
    },
    heads={"head.lm": "lm_head"},
    ties={"lm_head.weight": "backbone.embeddings.weight"},
    open={  # of `weight_mode: fused`, which transformers 5.23 cannot build
        "*.mlstm_layer.qkv_opreact": _LINEAR[:4],
        "*.mlstm_layer.ifgate_preact": _LINEAR[4:],
        "*.ffn.proj_up_gate_z": ("mlp.gate", "mlp.up"),
    },
    plain=("*.mlstm_layer.multihead_norm",),  # of what the state answers
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [XLSTM]
