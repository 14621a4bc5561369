"""What published recipes ask of training: smoothing, AdamW's numbers, warm-up in steps, a base without dropout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from surgery.errors import SpecError, TrainingError
from surgery.operation import operate
from surgery.registry import Registry
from surgery.spec import Spec, TrainingSpec
from surgery.training import prepare
from surgery.training.dropout import without_dropout
from surgery.training.fit import _arguments, fit
from surgery.training.session import Session
from surgery.training.smoothing import smoothed

SpecOf = Callable[..., Spec]
LORA = {"role": r"attention\.(query|value)", "adapter": "lora", "rank": 2, "dropout": 0.25}


def session_of(spec: Spec, registry: Registry, rows: Any) -> Session:
    return prepare(spec, registry, data=rows)


# Smoothing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shifted", [False, True])
def test_smoothing_is_that_of_transformers(shifted: bool) -> None:
    from transformers.trainer_pt_utils import LabelSmoother

    torch.manual_seed(0)
    logits = torch.randn(3, 6, 11, dtype=torch.float64)
    labels = torch.randint(0, 11, (3, 6))
    labels[0, :4] = labels[2, -2:] = -100
    moved = torch.cat([labels[:, 1:], torch.full((3, 1), -100)], dim=1) if shifted else labels
    plain = nn.functional.cross_entropy(logits.flatten(0, 1), moved.flatten(), reduction="none", ignore_index=-100)
    found = smoothed(plain.view(3, 6).sum(1), logits, labels, 0.1, shifted=shifted)
    wanted = LabelSmoother(epsilon=0.1)({"logits": logits}, labels.clone(), shift_labels=shifted)
    assert float(found.sum() / (moved != -100).sum()) == pytest.approx(float(wanted), rel=1e-6)


def test_smoothing_of_one_label_for_each_example() -> None:
    logits, labels = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), torch.tensor([0, 2])
    plain = nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(
        smoothed(plain, logits, labels, 0.3, shifted=False),
        nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=0.3),
    )


def test_numbers_cannot_be_smoothed() -> None:
    with pytest.raises(TrainingError, match="predicts no classes"):
        smoothed(torch.zeros(2), torch.zeros(2, 1), torch.tensor([0.5, 1.0]), 0.1, shifted=False)


def test_training_is_smoothed_and_validation_is_not(spec_of: SpecOf, registry: Registry, rows: Any) -> None:
    plain, smooth = (spec_of(LORA, training={"label_smoothing": share}) for share in (0.0, 0.5))
    session = session_of(plain, registry, rows)
    results = []
    for spec in (plain, smooth):
        assert spec.training is not None
        with operate(session.model, session.plan, registry=registry) as operation:
            results.append(fit(session, operation, spec.training, seed=0))
    assert results[0].history[0].validation_loss == results[1].history[0].validation_loss
    assert results[0].losses[0] != results[1].losses[0]
    assert results[0].history[-1].validation_loss != results[1].history[-1].validation_loss


# The optimizer -------------------------------------------------------------------------------------------------------


def test_the_optimizer_gets_its_numbers(
    spec_of: SpecOf, registry: Registry, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.optim.Optimizer] = []
    true = torch.optim.AdamW

    def spy(*arguments: Any, **options: Any) -> torch.optim.Optimizer:
        made.append(true(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(torch.optim, "AdamW", spy)
    spec = spec_of(LORA, training={"beta1": 0.8, "beta2": 0.98, "epsilon": 1e-6, "weight_decay": 0.3})
    session = session_of(spec, registry, rows)
    assert spec.training is not None
    with operate(session.model, session.plan, registry=registry) as operation:
        fit(session, operation, spec.training, seed=0)
    for group in made[0].param_groups:
        assert (group["betas"], group["eps"]) == ((0.8, 0.98), 1e-6)
    assert sorted({group["weight_decay"] for group in made[0].param_groups}) == [0.0, 0.3]


def test_warm_up_in_steps(spec_of: SpecOf, registry: Registry, rows: Any, tmp_path: Path) -> None:
    session = session_of(spec_of(LORA), registry, rows)

    def steps(**training: Any) -> int:
        found = TrainingSpec(steps=20, learning_rate=1e-3, **training)
        return int(_arguments(session, found, tmp_path, 0, keeps=False).warmup_steps)

    assert steps(warmup_steps=7) == 7
    assert steps(warmup=0.25) == 5
    assert steps() == 2
    with pytest.raises(TrainingError, match="would rise for 20 steps, and training has 20"):
        steps(warmup_steps=20)


def test_one_kind_of_warm_up() -> None:
    with pytest.raises(SpecError, match="both 'warmup' and 'warmup_steps'"):
        TrainingSpec(steps=20, learning_rate=1e-3, warmup=0.2, warmup_steps=3)
    with pytest.raises(SpecError) as caught:
        TrainingSpec(learning_rate=1e-3, warmup=0.2, warmup_steps=3)
    assert len(caught.value.problems) == 2
    # What a run and an adapter keep of it loads back.
    made = TrainingSpec(steps=20, learning_rate=1e-3, warmup_steps=3)
    assert TrainingSpec.model_validate_json(made.model_dump_json()) == made


# Dropout -------------------------------------------------------------------------------------------------------------


def rates(model: nn.Module) -> list[float]:
    """Every dropout probability in modules, in their numbers, and in the configuration."""
    found = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    owners = [*model.modules(), model.config]
    return found + [
        value for one in owners for name, value in vars(one).items() if "drop" in name and type(value) is float
    ]


@pytest.mark.parametrize("kind", ["gpt2", "bert", "bart", "llama", "t5"])
def test_every_dropout_of_the_base_is_off_and_comes_back(kind: str) -> None:
    from transformers import AutoConfig, AutoModel

    small = {
        "gpt2": {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 9},
        "bert": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9},
        "bart": {
            "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "vocab_size": 9,
            "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "attention_dropout": 0.2,
            "encoder_layerdrop": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "forced_eos_token_id": 2,
            "decoder_start_token_id": 2,
        },
        "llama": {
            "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9,
            "attention_dropout": 0.4,
        },
        "t5": {"d_model": 8, "num_layers": 1, "num_heads": 2, "d_ff": 8, "d_kv": 4, "vocab_size": 9},
    }[kind]  # fmt: skip
    model = AutoModel.from_config(AutoConfig.for_model(kind, **small)).train()
    ids = torch.arange(8)[None]
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})
    before = rates(model)
    assert max(before) > 0
    with torch.no_grad():
        assert not torch.equal(model(**inputs)[0], model(**inputs)[0])
        with without_dropout(model):
            assert max(rates(model)) == 0
            assert torch.equal(model(**inputs)[0], model(**inputs)[0])
    assert rates(model) == before


def test_dropout_comes_back_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3))
    with pytest.raises(RuntimeError), without_dropout(model):
        raise RuntimeError
    assert model[1].p == 0.3


def test_adapters_keep_their_dropout(spec_of: SpecOf, registry: Registry, rows: Any) -> None:
    seen: list[tuple[float, set[float]]] = []
    for base_dropout in (True, False):
        spec = spec_of(LORA, training={"base_dropout": base_dropout})
        session = session_of(spec, registry, rows)
        assert spec.training is not None
        with operate(session.model, session.plan, registry=registry) as operation:

            def look(*_: Any, session: Session = session, operation: Any = operation) -> None:
                own = {
                    built.adapter.dropout for built in operation.body.built["default"] if built.edit.adapter == "lora"
                }
                base = [module.p for module in session.model.modules() if isinstance(module, nn.Dropout)]
                seen.append((max(base), own))

            fit(session, operation, spec.training, seed=0, progress=look)
        assert max(module.p for module in session.model.modules() if isinstance(module, nn.Dropout)) == 0.1
        assert session.model.config.hidden_dropout_prob == 0.1
    assert seen[0] == (0.1, {0.25})
    assert seen[-1] == (0.0, {0.25})
