"""Models of classes that transformers does not have: registered by a plugin's source, and told where they are not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import make_tokenizer, sentences
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from surgery import ModelSource, Spec, hookimpl, load_registry, train
from surgery.errors import CheckpointError
from surgery.registry import Registry


class BagConfig(PreTrainedConfig):
    model_type = "surgery-test-bag"

    def __init__(self, vocab_size: int = 64, width: int = 8, **keys: Any) -> None:
        super().__init__(**keys)
        self.vocab_size, self.width = vocab_size, width


class Bag(PreTrainedModel):
    """A mean of vectors, which are no `nn.Embedding`, and a linear head."""

    config_class = BagConfig
    base_model_prefix = "bag"

    def __init__(self, config: BagConfig) -> None:
        super().__init__(config)
        self.table = nn.Parameter(torch.randn(config.vocab_size, config.width))
        self.mix = nn.Linear(config.width, config.width)
        self.classifier = nn.Linear(config.width, config.num_labels)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Any:
        seen = self.table[input_ids].mean(dim=1)
        return SequenceClassifierOutput(logits=self.classifier(torch.tanh(self.mix(seen))))


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    Bag(BagConfig()).save_pretrained(tmp_path / "bag")
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    make_tokenizer(["[PAD]", "[UNK]"], **names).save_pretrained(tmp_path / "bag")
    return tmp_path / "bag"


@pytest.fixture
def registered() -> Iterator[Registry]:
    """Plugins with a source that registers, and transformers as it was before at the end."""

    class Bags(ModelSource):
        name = "bags"
        summary = "bags:FOLDER"

        def resolve(self, ref: str) -> Path | str | None:
            if not ref.startswith("bags:"):
                return None
            AutoConfig.register("surgery-test-bag", BagConfig, exist_ok=True)
            AutoModelForSequenceClassification.register(BagConfig, Bag, exist_ok=True)
            return Path(ref.removeprefix("bags:"))

    @hookimpl
    def surgery_models() -> list[ModelSource]:
        return [Bags()]

    yield load_registry(extra=[SimpleNamespace(surgery_models=surgery_models)])
    CONFIG_MAPPING._extra_content.pop("surgery-test-bag", None)
    AutoModelForSequenceClassification._model_mapping._extra_content.pop(BagConfig, None)


def spec_for(model: str) -> Spec:
    return Spec(
        name="bag",
        model=model,
        task={"kind": "text-classification"},
        training={"steps": 2, "batch_size": 4, "learning_rate": 1e-3},
        rules=[
            {"target": "mix", "adapter": "lora", "rank": 2},
            {"role": r"(head|other)\..*classifier.*", "adapter": "full"},
        ],
    )


DATA = {"train": sentences(16), "validation": sentences(8, 16), "test": sentences(8, 24)}


def test_a_source_that_registers_its_classes_trains_them_without_embeddings(
    bag: Path, registered: Registry, tmp_path: Path
) -> None:
    """Its class has no get_input_embeddings that answers: nothing of a run needs one."""
    with pytest.raises(NotImplementedError):
        Bag(BagConfig()).get_input_embeddings()
    result = train(spec_for(f"bags:{bag}"), tmp_path / "run", registry=registered, data=DATA)
    assert set(result.metrics["test"]) >= {"loss", "accuracy"}


def test_a_tokenizer_of_another_model_is_refused_by_the_configurations_word(
    bag: Path, registered: Registry, tmp_path: Path
) -> None:
    Bag(BagConfig(vocab_size=5)).save_pretrained(bag)
    with pytest.raises(CheckpointError, match="the model has tokens 0 to 4"):
        train(spec_for(f"bags:{bag}"), tmp_path / "run", registry=registered, data=DATA)


def test_a_type_that_nobody_registered_is_told(bag: Path, registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="transformers does not know models of type 'surgery-test-bag'") as caught:
        train(spec_for(str(bag)), tmp_path / "run", registry=registry, data=DATA)
    assert caught.value.hint.startswith("register its classes, AutoConfig.register('surgery-test-bag', CONFIG) and ")
    assert "AutoModelForSequenceClassification.register(CONFIG, MODEL), in `resolve` of" in caught.value.hint


def test_a_type_whose_class_nobody_registered_is_told(bag: Path, registered: Registry, tmp_path: Path) -> None:
    AutoConfig.register("surgery-test-bag", BagConfig)
    told = "transformers has no AutoModelForSequenceClassification for models of type 'surgery-test-bag'"
    with pytest.raises(CheckpointError, match=told):
        train(spec_for(str(bag)), tmp_path / "run", registry=registered, data=DATA)
