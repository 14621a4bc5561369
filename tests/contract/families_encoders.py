"""Tiny encoders, encoder-decoders, and models of images and speech."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from family import Family

__all__ = ["CONFIGS", "FAMILIES"]

_BERT: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 20,
}  # fmt: skip
_ROBERTA: dict[str, Any] = {**_BERT, "pad_token_id": 1, "type_vocab_size": 1}
_T5: dict[str, Any] = {
    "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "relative_attention_num_buckets": 8,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_BART: dict[str, Any] = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 20, "max_position_embeddings": 20,
    "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip
_VISION: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip

_TEXT: dict[str, Any] = {**_BERT, "bos_token_id": 1, "eos_token_id": 2}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "electra": ("ElectraConfig", {**_BERT, "embedding_size": 8}),
    "xlm-roberta": ("XLMRobertaConfig", _ROBERTA),
    "camembert": ("CamembertConfig", _ROBERTA),
    "albert": ("AlbertConfig", {**_BERT, "embedding_size": 8}),
    # Its forward uses 32 buckets whatever the configuration says.
    "mpnet": ("MPNetConfig", _BERT),
    "deberta": ("DebertaConfig", _BERT),
    "deberta-v2": ("DebertaV2Config", _BERT),
    "modernbert": (
        "ModernBertConfig",
        {**_BERT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "t5": ("T5Config", _T5),
    "mt5": ("MT5Config", _T5),
    "umt5": ("UMT5Config", _T5),
    "bart": ("BartConfig", _BART),
    "mbart": ("MBartConfig", _BART),
    "pegasus": ("PegasusConfig", _BART),
    "whisper": (
        "WhisperConfig",
        {**_BART, "num_mel_bins": 4, "max_source_positions": 6, "max_target_positions": 20, "classifier_proj_size": 8},
    ),
    "vit": ("ViTConfig", {**_VISION, "encoder_stride": 4}),
    "clip": (
        "CLIPConfig", {"text_config": {**_TEXT, "vocab_size": 37}, "vision_config": _VISION, "projection_dim": 12},
    ),
    "clip_text_model": ("CLIPTextConfig", {**_TEXT, "projection_dim": 12}),
    "clip_vision_model": ("CLIPVisionConfig", {**_VISION, "projection_dim": 12}),
}  # fmt: skip

_Batch: TypeAlias = dict[str, torch.Tensor]


def _choices(batch: _Batch) -> _Batch:
    """(questions, choices, words) for multiple choice."""
    return {name: tensor[:, None].repeat(1, 2, 1) for name, tensor in batch.items()}


def _decoded(batch: _Batch) -> _Batch:
    return {**batch, "decoder_input_ids": batch["input_ids"].flip(1)}


def _ended(end: int) -> Any:
    """Sentences that end as a classifier of encoder-decoders requires."""

    def make(batch: _Batch) -> _Batch:
        ids = batch["input_ids"].clone()
        ids[:, -1] = end
        return {**batch, "input_ids": ids}

    return make


def _encoded(batch: _Batch) -> _Batch:
    """Something for a decoder on its own to attend to."""
    return {**batch, "encoder_hidden_states": torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(5))}


def _image(batch: _Batch) -> _Batch:
    return {"pixel_values": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(6))}


def _masked_image(batch: _Batch) -> _Batch:
    return {**_image(batch), "bool_masked_pos": torch.tensor([[True, False, True, False]] * 2)}


def _text_and_image(batch: _Batch) -> _Batch:
    return {**batch, **_image(batch)}


def _sound(batch: _Batch) -> _Batch:
    return {"input_features": torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(7))}


def _transcribed(batch: _Batch) -> _Batch:
    return {**_sound(batch), "decoder_input_ids": batch["input_ids"]}


def _heard(batch: _Batch) -> dict[str, Any]:
    return {"input_ids": batch["input_ids"], "encoder_outputs": (_encoded(batch)["encoder_hidden_states"],)}


_ENCODER_HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
_AS_DECODER = {"is_decoder": True, "add_cross_attention": True}


def _encoders(kind: str, stem: str, *more: str, choice: bool = True) -> tuple[Family, ...]:
    plain = tuple(Family(kind, f"{stem}{head}") for head in ("Model", *_ENCODER_HEADS, *more))
    return (*plain, Family(kind, f"{stem}ForMultipleChoice", batch=_choices)) if choice else plain


def _t5(kind: str, stem: str, end: int = 1) -> tuple[Family, ...]:
    return (
        Family(kind, f"{stem}Model", batch=_decoded),
        Family(kind, f"{stem}EncoderModel"),
        Family(kind, f"{stem}ForConditionalGeneration", batch=_decoded),
        Family(kind, f"{stem}ForQuestionAnswering", batch=_decoded),
        Family(kind, f"{stem}ForTokenClassification"),
        Family(kind, f"{stem}ForSequenceClassification", batch=_ended(end)),
    )


def _bart(kind: str, stem: str, *more: Family) -> tuple[Family, ...]:
    return (
        Family(kind, f"{stem}Model", batch=_decoded),
        Family(kind, f"{stem}ForConditionalGeneration", batch=_decoded),
        Family(kind, f"{stem}ForCausalLM", batch=_encoded),
        Family(
            kind,
            f"{stem}ForConditionalGeneration",
            {"tie_word_embeddings": False},
            "untied",
            ("model.shared.weight",),
            batch=_decoded,
        ),  # kept beside the two tables, and never read
        *more,
    )


_RELATIVE: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 8}
_V3: dict[str, Any] = {
    **_RELATIVE, "share_att_key": True, "position_buckets": 4, "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
}  # fmt: skip

FAMILIES: tuple[Family, ...] = (
    *_encoders("electra", "Electra", "ForPreTraining"),
    Family("electra", "ElectraForMaskedLM", {"embedding_size": 16}, "as-wide-embeddings"),
    Family("electra", "ElectraForMaskedLM", {"tie_word_embeddings": False}, "untied"),
    Family("electra", "ElectraForCausalLM", _AS_DECODER, "cross-attention", batch=_encoded),
    Family("bert", "BertLMHeadModel", _AS_DECODER, "cross-attention", batch=_encoded),
    Family("bert", "BertForMultipleChoice", batch=_choices),
    Family("bert", "BertForNextSentencePrediction"),
    *_encoders("xlm-roberta", "XLMRoberta"),
    Family("xlm-roberta", "XLMRobertaForCausalLM", _AS_DECODER, "cross-attention", batch=_encoded),
    *_encoders("camembert", "Camembert"),
    Family("camembert", "CamembertForCausalLM", _AS_DECODER, "cross-attention", batch=_encoded),
    Family("roberta", "RobertaForMultipleChoice", batch=_choices),
    Family("roberta", "RobertaForCausalLM", _AS_DECODER, "cross-attention", batch=_encoded),
    *_encoders("modernbert", "ModernBert"),
    Family(
        "modernbert", "ModernBertForMaskedLM",
        {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True}, "biases",
    ),
    Family("modernbert", "ModernBertForMaskedLM", {"tie_word_embeddings": False}, "untied"),
    *_t5("t5", "T5"),
    Family("t5", "T5ForConditionalGeneration", {"feed_forward_proj": "gated-gelu"}, "gated", batch=_decoded),
    Family("t5", "T5ForConditionalGeneration", {"tie_word_embeddings": False}, "untied", batch=_decoded),
    *_t5("mt5", "MT5"),
    *_t5("umt5", "UMT5"),
    *_bart(
        "bart", "Bart",
        Family("bart", "BartForQuestionAnswering"),
        Family("bart", "BartForSequenceClassification", batch=_ended(2)),
    ),
    *_bart(
        "mbart", "MBart",
        Family("mbart", "MBartForQuestionAnswering"),
        Family("mbart", "MBartForSequenceClassification", batch=_ended(2)),
    ),
    *_bart("pegasus", "Pegasus"),
    *_encoders("mpnet", "MPNet"),
    *_encoders("albert", "Albert", "ForPreTraining"),
    Family("albert", "AlbertForMaskedLM", {"num_hidden_groups": 2, "inner_group_num": 3, "num_hidden_layers": 4}, "groups"),
    *_encoders("deberta", "Deberta", choice=False),
    Family("deberta", "DebertaForMaskedLM", _RELATIVE, "relative"),
    Family("deberta", "DebertaForMaskedLM", {"legacy": False}, "not-legacy"),
    Family("deberta", "DebertaModel", {"type_vocab_size": 2, "embedding_size": 8}, "narrow-embeddings"),
    Family(
        "deberta", "DebertaModel", {"talking_head": True}, "talking-head",
        # Mixing of attention heads, which the vocabulary has no word for.
        other=tuple(
            f"encoder.layer.{layer}.attention.self.head_{name}_proj.weight"
            for layer in (0, 1) for name in ("logits", "weights")
        ),
    ),
    *_encoders("deberta-v2", "DebertaV2"),
    Family("deberta-v2", "DebertaV2ForMaskedLM", _V3, "v3"),
    Family("deberta-v2", "DebertaV2ForMaskedLM", _RELATIVE, "relative"),
    Family("deberta-v2", "DebertaV2ForMaskedLM", {"legacy": False}, "not-legacy"),
    Family(
        "deberta-v2", "DebertaV2Model", {**_V3, "conv_kernel_size": 3}, "convolution",
        # One convolution beside the first layer, which the vocabulary has no word for.
        other=tuple(f"encoder.conv.{name}" for name in ("conv.weight", "conv.bias", "LayerNorm.weight", "LayerNorm.bias")),
    ),
    # transformers still writes the names that these modules had before.
    Family("vit", "ViTModel", batch=_image),
    Family("vit", "ViTForImageClassification", batch=_image),
    Family("vit", "ViTForImageClassification", {"qkv_bias": False}, "without-biases", batch=_image),
    # The vector that stands for a hidden patch is neither a class nor a token.
    Family("vit", "ViTForMaskedImageModeling", other=("vit.embeddings.mask_token",), batch=_masked_image),
    Family("whisper", "WhisperModel", batch=_transcribed),
    Family("whisper", "WhisperForConditionalGeneration", batch=_transcribed),
    Family("whisper", "WhisperForCausalLM", batch=_heard),
    Family("whisper", "WhisperForAudioClassification", batch=_sound),
    # Weights of a mean over layers.
    Family("whisper", "WhisperForAudioClassification", {"use_weighted_layer_sum": True}, "weighted", other=("layer_weights",), batch=_sound),
    # One number that scales all similarities.
    Family("clip", "CLIPModel", other=("logit_scale",), batch=_text_and_image),
    Family("clip", "CLIPForImageClassification", batch=_image),
    Family("clip_text_model", "CLIPTextModel"),
    Family("clip_text_model", "CLIPTextModelWithProjection"),
    Family("clip_vision_model", "CLIPVisionModel", batch=_image),
    Family("clip_vision_model", "CLIPVisionModelWithProjection", batch=_image),
)  # fmt: skip
