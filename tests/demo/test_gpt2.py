"""The shipped GPT-2 loads without a network, is small, and predicts the text it claims to predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import surgery_demo
from surgery_demo import corpora
from surgery_demo.packing import held_out_loss, pack, training_batches

FOLDER = Path(surgery_demo.__file__).resolve().parent / "gpt2"
# Held-out loss is 2.78 nats per token where the model was made (see CARD.md); other Python versions hold other modules out.
HELD_OUT_BOUND = 3.1


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, local_files_only=True)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)


def test_the_folder_is_complete_small_and_readable() -> None:
    expected = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in FOLDER.iterdir()} == expected | {"CARD.md", "pretrain.log"}
    weights = FOLDER / "model.safetensors"
    assert weights.stat().st_size <= 6_000_000
    assert weights.stat().st_mode & 0o111 == 0


def test_it_is_a_gpt2_in_float32_with_tied_embeddings(model: Any) -> None:
    assert model.config.model_type == "gpt2"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert 1_200_000 <= model.num_parameters() <= 1_450_000


def test_the_tokenizer_gives_back_every_byte(model: Any, tokenizer: Any) -> None:
    text = 'def greet(name):\n\treturn f"naïve café {name} 🐍"  # tabs,  spaces\n\n    x = 0x1F\r\n'
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert len(tokenizer) == model.config.vocab_size == 2048
    assert tokenizer.eos_token_id == model.config.eos_token_id != tokenizer.pad_token_id == model.config.pad_token_id


def test_it_predicts_held_out_standard_library_text(model: Any, tokenizer: Any) -> None:
    texts = [row["text"] for row in corpora.stdlib_text(train=0, validation=0, test=40)["test"]]
    loss = held_out_loss(model, tokenizer, texts)
    assert loss.nats_per_token < HELD_OUT_BOUND
    assert loss.tokens > 5000


def test_it_continues_a_constructor_sensibly(model: Any, tokenizer: Any) -> None:
    prompt = tokenizer("def __init__(self, ", return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    continuation = tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :])
    assert ")" in continuation and ":" in continuation


def test_held_out_loss_of_a_uniform_model_is_the_logarithm_of_the_vocabulary(tokenizer: Any) -> None:
    class Uniform(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> Any:
            return type("Output", (), {"logits": torch.zeros(*input_ids.shape, 2048)})

    uniform = Uniform().train()
    text = "import this\n" * 400
    loss = held_out_loss(uniform, tokenizer, [text], context=64, batch=2)
    assert loss.nats_per_token == pytest.approx(torch.tensor(2048.0).log().item())
    # One byte-pair token per log2(2048) = 11 bits, spread over the bytes of the text.
    stream = pack(tokenizer, [text])
    assert loss.bits_per_byte == pytest.approx(11 * len(stream) / len(text))
    windows, rest = divmod(len(stream), 64)
    assert loss.tokens == windows * 63 + max(0, rest - 1)
    assert uniform.training


def test_training_batches_are_contiguous_and_resumable() -> None:
    stream = torch.arange(1000)
    first = [batch for batch, _ in zip(training_batches(stream, context=16, batch=4, seed=1), range(40), strict=False)]
    again = [batch for batch, _ in zip(training_batches(stream, context=16, batch=4, seed=1), range(40), strict=False)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(batch.shape == (4, 17) and torch.equal(batch[:, 1:], batch[:, :-1] + 1) for batch in first)
    with pytest.raises(ValueError, match="too short"):
        next(training_batches(stream[:20], context=16, batch=4, seed=1))
