"""Running the command line, in this process or as the installed console script, on models of two layers."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import GOLDEN, ROOT, SCRIPT, Result, Run

WORDS = "the a good bad fine poor film book plot scene was is very not really great awful slow bright dull"
CLEARED = ("SURGERY_DEBUG", "SURGERY_DISABLE_PLUGIN_AUTOLOAD", "NO_COLOR", "FORCE_COLOR", "RANK")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 columns, no network, no switches."""
    for name in CLEARED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def script() -> Run:
    """The installed console script, in a process of its own."""

    def run(*arguments: object, **environment: str) -> Result:
        command = [str(SCRIPT), *map(str, arguments)]
        done = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, cwd=ROOT, check=False
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The same in this process, which has imported torch once and for all."""
    from surgery.cli.main import app

    def run(*arguments: object, **environment: str) -> Result:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app([str(argument) for argument in arguments], prog_name="surgery")
        captured = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def golden(tmp_path: Path, models: Path) -> Callable[[str, str], None]:
    """Compare text with golden/NAME.txt; see golden/README.md for how to regenerate."""

    def compare(name: str, text: str) -> None:
        for folder, word in ((tmp_path, "TMP"), (models, "MODELS")):
            text = text.replace(str(folder), word)
        text = re.sub(r"(model-surgery\s+)\d[\w.]*", r"\1VERSION", text)
        path = GOLDEN / f"{name}.txt"
        if os.environ.get("SURGERY_REGENERATE_GOLDEN"):
            path.write_text(text, "utf-8")
        assert path.is_file(), f"SURGERY_REGENERATE_GOLDEN=1 writes {path.name}"
        assert text == path.read_text("utf-8")

    return compare


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bert` and `gpt2` with weights, `llama` and `persimmon` (which no plugin describes) with nothing but a configuration."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, PersimmonConfig

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    bert = BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    BertForMaskedLM(bert).save_pretrained(folder / "bert")
    gpt2 = GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(gpt2).save_pretrained(folder / "gpt2")
    llama = LlamaConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    llama.save_pretrained(folder / "llama")
    persimmon = PersimmonConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        architectures=["PersimmonForCausalLM"],
    )  # fmt: skip
    persimmon.save_pretrained(folder / "persimmon")
    return folder


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., Path]:
    """Write a spec file: `spec("- {role: .*, adapter: full}")`."""

    def write(rules: str, head: str = "", name: str = "tiny") -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"version: 1\nname: {name}\n{head}rules:\n  {rules}\n", "utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def trainable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT without a head, with a tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("train") / "bert"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=256,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *WORDS.split()])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with one CSV file for each split."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split, size in (("train", 24), ("validation", 8), ("test", 8)):
        rows = [
            f"the {split} film {index} was {('bad', 'good')[index % 2]},{('neg', 'pos')[index % 2]}"
            for index in range(size)
        ]
        (folder / f"{split}.csv").write_text("text,label\n" + "\n".join(rows) + "\n", "utf-8")
    return folder
