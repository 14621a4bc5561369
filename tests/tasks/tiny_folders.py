"""Tiny models and tokenizers in folders, as a hub would have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["byte_tokenizer", "save", "word_tokenizer"]

_TEXT = (
    "the a who what wrote where lives old new blue red house river king queen in of . , ? ! Paris Ada Bob Carol Rome"
)
_SMALL = {"vocab_size": 320, "max_position_embeddings": 96}
_LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def word_tokenizer() -> Any:
    """Word pieces: what is no word of the list falls into letters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = dict.fromkeys([*special, *_TEXT.lower().split(), *letters, *(f"##{letter}" for letter in letters)])
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def byte_tokenizer(*, pairs: bool = False) -> Any:
    """Bytes, and a few merged words that begin with their space; with `pairs`, RoBERTa's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<s>"]
    vocabulary = {token: index for index, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    merges = [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("Ġ", "A"), ("ĠA", "d"), ("ĠAd", "a")]
    for one, other in merges:
        vocabulary[one + other] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if pairs:
        backend.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 2))
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", sep_token="</s>", cls_token="<s>"
        )
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def save(family: str, folder: Path) -> Path:
    """Write a model of `family` without a head, and its tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    model: Any
    if family == "bert":
        model = transformers.BertModel(transformers.BertConfig(**_SMALL, **_LAYERS))
    elif family == "roberta":
        config = transformers.RobertaConfig(
            **{**_SMALL, "max_position_embeddings": 98}, **_LAYERS, pad_token_id=0, bos_token_id=2, eos_token_id=1
        )
        model = transformers.RobertaModel(config)
    elif family == "distilbert":
        model = transformers.DistilBertModel(
            transformers.DistilBertConfig(**_SMALL, dim=16, n_layers=2, n_heads=2, hidden_dim=32)
        )
    else:
        config = transformers.GPT2Config(
            vocab_size=320, n_embd=16, n_layer=2, n_head=2, n_positions=96, bos_token_id=1, eos_token_id=1
        )
        model = transformers.GPT2Model(config)
    model.save_pretrained(folder)
    tokenizer = byte_tokenizer(pairs=family == "roberta") if family in ("roberta", "gpt2") else word_tokenizer()
    tokenizer.save_pretrained(folder)
    return folder
