"""Tiny kin of BERT, T5 and ModernBERT: what they change is attention, experts, or how projections are stored."""

from __future__ import annotations

from typing import Any

import torch
from family import Family

__all__ = ["CONFIGS", "FAMILIES"]

_BERT: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 20,
}  # fmt: skip
_MODERN: dict[str, Any] = {
    **_BERT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
_T5: dict[str, Any] = {
    "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "relative_attention_num_buckets": 8,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "modernbert-decoder": ("ModernBertDecoderConfig", _MODERN),
    "modernvbert": (
        "ModernVBertConfig",
        {"text_config": {"model_type": "modernbert", "vocab_size": 37, **_MODERN}, "image_token_id": 3,
         "pixel_shuffle_factor": 2,
         "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 16, "num_hidden_layers": 2,
                           "num_attention_heads": 2, "intermediate_size": 24, "image_size": 8, "patch_size": 4,
                           "vision_use_head": False}},
    ),
    "longt5": ("LongT5Config", {**_T5, "local_radius": 3, "global_block_size": 2}),
    "switch_transformers": (
        "SwitchTransformersConfig",
        {**_T5, "num_decoder_layers": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "num_experts": 2},
    ),
    "longformer": (
        "LongformerConfig",
        {**_BERT, "attention_window": [4, 4], "pad_token_id": 1, "sep_token_id": 2, "type_vocab_size": 2},
    ),
    "led": (
        "LEDConfig",
        {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
         "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 20, "attention_window": [4, 4],
         "max_encoder_position_embeddings": 20, "max_decoder_position_embeddings": 20, "pad_token_id": 1},
    ),
    "luke": ("LukeConfig", {**_BERT, "entity_vocab_size": 11, "entity_emb_size": 6, "pad_token_id": 1}),
    "mobilebert": (
        "MobileBertConfig",
        {**_BERT, "embedding_size": 8, "intra_bottleneck_size": 12, "num_feedforward_networks": 3, "true_hidden_size": 12},
    ),
    "xlnet": ("XLNetConfig", {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, "pad_token_id": 0}),
    "funnel": (
        "FunnelConfig",
        {"block_sizes": [2, 1], "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24, "num_decoder_layers": 1},
    ),
    "squeezebert": ("SqueezeBertConfig", {**_BERT, "embedding_size": 16}),
    "convbert": ("ConvBertConfig", {**_BERT, "num_attention_heads": 4, "embedding_size": 8, "conv_kernel_size": 3}),
    "nystromformer": (
        "NystromformerConfig",
        {**_BERT, "num_landmarks": 7, "segment_means_seq_len": 7, "conv_kernel_size": 3, "pad_token_id": 1},
    ),
    "fnet": ("FNetConfig", _BERT),
}  # fmt: skip

_Batch = dict[str, torch.Tensor]


def _decoded(batch: _Batch) -> _Batch:
    return {**batch, "decoder_input_ids": batch["input_ids"].flip(1)}


def _choices(batch: _Batch) -> _Batch:
    """(questions, choices, words) for multiple choice."""
    return {name: tensor[:, None].repeat(1, 2, *(1,) * (tensor.dim() - 1)) for name, tensor in batch.items()}


def _global(batch: _Batch) -> _Batch:
    """The first token sees everything."""
    first = torch.zeros_like(batch["input_ids"])
    first[:, 0] = 1
    return {**batch, "global_attention_mask": first}


def _entities(batch: _Batch) -> _Batch:
    """Two entities of two words each."""
    positions = torch.tensor([[[1, 2], [4, 5]]] * len(batch["input_ids"]))
    ids = torch.tensor([[3, 5]] * len(batch["input_ids"]))
    return {**batch, "entity_ids": ids, "entity_position_ids": positions, "entity_attention_mask": torch.ones_like(ids)}


def _segments(batch: _Batch) -> _Batch:
    kinds = torch.zeros_like(batch["input_ids"])
    kinds[:, 3:] = 1
    return {**batch, "token_type_ids": kinds}


def _images(batch: _Batch) -> _Batch:
    """Each text of the batch with an image in its place of one token."""
    ids = batch["input_ids"].masked_fill(batch["input_ids"] < 6, 6)
    ids[:, 1] = 3
    pixels = torch.randn(len(ids), 1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return {**batch, "input_ids": ids, "pixel_values": pixels}


_HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


def _bert(kind: str, stem: str, *more: str, batch: Any = None) -> tuple[Family, ...]:
    plain = tuple(Family(kind, f"{stem}{head}", batch=batch) for head in ("Model", *_HEADS, *more))
    choice = (lambda words: _choices(batch(words))) if batch else _choices
    return (*plain, Family(kind, f"{stem}ForMultipleChoice", batch=choice))


def _xlnet(head: str, batch: Any = _segments) -> Family:
    # What stands for a hidden token is read where some are to be predicted only.
    base = "" if head == "Model" else "transformer."
    return Family("xlnet", f"XLNet{head}", silent=(f"{base}mask_emb",), batch=batch)


def _t5(kind: str, stem: str, *notes: tuple[str, dict[str, Any]]) -> tuple[Family, ...]:
    return (
        Family(kind, f"{stem}Model", batch=_decoded),
        Family(kind, f"{stem}EncoderModel"),
        Family(kind, f"{stem}ForConditionalGeneration", batch=_decoded),
        *(Family(kind, f"{stem}ForConditionalGeneration", config, note, batch=_decoded) for note, config in notes),
    )


FAMILIES: tuple[Family, ...] = (
    *(Family("modernbert-decoder", f"ModernBertDecoder{head}") for head in ("Model", "ForCausalLM", "ForSequenceClassification")),
    Family("modernbert-decoder", "ModernBertDecoderForCausalLM", {"attention_bias": True, "mlp_bias": True}, "biases"),
    *(
        Family("modernvbert", f"ModernVBert{head}", batch=_images)
        for head in ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")
    ),
    Family("modernvbert", "ModernVBertForMaskedLM", {"tie_word_embeddings": True}, "tied", batch=_images),
    *_t5(
        "longt5", "LongT5",
        ("global", {"encoder_attention_type": "transient-global", "feed_forward_proj": "gated-gelu"}),
        ("untied", {"tie_word_embeddings": False}),
    ),
    *_t5("switch_transformers", "SwitchTransformers", ("biases", {"router_bias": True})),
    *_bert("longformer", "Longformer", batch=_global),
    *(
        Family("led", f"LED{head}", batch=lambda words: _decoded(_global(words)))
        for head in ("Model", "ForConditionalGeneration", "ForQuestionAnswering")
    ),
    *_bert("luke", "Luke", batch=_entities),
    *_bert("mobilebert", "MobileBert", "ForPreTraining"),
    Family("mobilebert", "MobileBertForNextSentencePrediction"),
    Family("mobilebert", "MobileBertModel", {"use_bottleneck": False, "true_hidden_size": 16}, "without-bottlenecks"),
    *(_xlnet(head) for head in ("Model", "LMHeadModel", "ForSequenceClassification", "ForTokenClassification")),
    *(_xlnet(head) for head in ("ForQuestionAnsweringSimple",)),
    _xlnet("ForMultipleChoice", lambda words: _choices(_segments(words))),
    *_bert("funnel", "Funnel", "ForPreTraining", batch=_segments),
    Family("funnel", "FunnelBaseModel", batch=_segments),
    *_bert("squeezebert", "SqueezeBert"),
    *_bert("convbert", "ConvBert"),
    *_bert("nystromformer", "Nystromformer"),
    *_bert("fnet", "FNet", "ForPreTraining", "ForNextSentencePrediction", batch=lambda words: {"input_ids": words["input_ids"]}),
)  # fmt: skip
