"""ViT: patches, a class token and positions, which are parameters of the embedding module itself."""

from surgery import Architecture, hookimpl

VIT = Architecture(
    types=("vit",),
    base="vit",
    stacks={"encoder": "layers"},
    roles={
        "embedding.patch": "embeddings.patch_embeddings.projection",
        "embedding.class": "embeddings.cls_token",
        "embedding.position": "embeddings.position_embeddings",
        "norm.attention.pre": "*.layernorm_before",
        "attention.query": "*.attention.q_proj",
        "attention.key": "*.attention.k_proj",
        "attention.value": "*.attention.v_proj",
        "attention.output": "*.attention.o_proj",
        "norm.mlp.pre": "*.layernorm_after",
        "mlp.up": "*.mlp.fc1",
        "mlp.down": "*.mlp.fc2",
        "norm.final": "layernorm",
        "head.transform": "pooler.dense",
    },
    heads={"head.classifier": "classifier", "head.projection": "decoder.0"},
    files={  # the names of the first version
        "layers": "encoder.layer",
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [VIT]
