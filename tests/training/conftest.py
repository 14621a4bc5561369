"""Small models and data, made in this process: nothing here reads a network or a download."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small import make_tokenizer, sentences

from surgery.registry import Registry, load_registry
from surgery.spec import Spec


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only get into each other's way on tensors this small."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def registry() -> Registry:
    import surgery_bert
    import surgery_bias
    import surgery_causal_lm
    import surgery_conditional_generation
    import surgery_full
    import surgery_gpt2
    import surgery_ia3
    import surgery_lora
    import surgery_text_classification
    import surgery_transformers

    plugins = [surgery_bert, surgery_gpt2, surgery_full, surgery_lora, surgery_bias, surgery_ia3]
    plugins += [surgery_causal_lm, surgery_conditional_generation, surgery_text_classification, surgery_transformers]
    return load_registry(extra=plugins, entry_points=False)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT without a task head, two layers of width 16, with dropout."""
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    make_tokenizer(["[PAD]", "[UNK]"], unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with its tied head, two layers of width 16, and a tokenizer without a padding token."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    make_tokenizer(["<end>", "<unk>"], unk_token="<unk>", eos_token="<end>").save_pretrained(folder)
    return folder


@pytest.fixture
def rows() -> dict[str, list[dict[str, Any]]]:
    return {"train": sentences(60), "validation": sentences(21, 100), "test": sentences(13, 200)}


@pytest.fixture
def spec_of(bert: Path) -> Callable[..., Spec]:
    """Return a function that makes a classification spec for the small BERT; keys replace its own."""

    def make(*rules: dict[str, Any], training: dict[str, Any] | None = None, **keys: Any) -> Spec:
        head = {"target": "classifier", "adapter": "full"}
        plain = {
            "name": "small",
            "model": str(bert),
            "task": {"kind": "text-classification", "max_length": 24},
            "training": {"steps": 6, "batch_size": 4, "learning_rate": 1e-3, **(training or {})},
            "rules": [*(rules or ({"role": r"attention\.(query|value)", "adapter": "lora", "rank": 2},)), head],
            **keys,
        }
        return Spec(**plain)

    return make
