"""What real studies on tiny models share."""

from __future__ import annotations

import pytest
from tiny_studies import save_tokenizer, write_rows

from surgery.registry import Registry, load_registry


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    splits = {"train": (120, 0), "validation": (40, 500), "test": (60, 900)}
    for name, (count, start) in splits.items():
        write_rows(folder / f"{name}.jsonl", count, start)
    return {name: str(folder / f"{name}.jsonl") for name in splits}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("models") / "bert"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    save_tokenizer(folder, ["[PAD]", "[UNK]"], unk_token="[UNK]", pad_token="[PAD]")
    return str(folder)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("models") / "gpt2"
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    save_tokenizer(folder, ["<end>", "<unk>"], unk_token="<unk>", eos_token="<end>")
    return str(folder)
