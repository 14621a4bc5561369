"""Training: only the operation's tensors move, and the same seed gives the same bits."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from surgery.errors import DataError, TrainingError
from surgery.operation import operate
from surgery.registry import Registry
from surgery.spec import Spec, TrainingSpec
from surgery.training.fit import evaluate, fit, logits
from surgery.training.result import FitResult, StepTimes
from surgery.training.session import Session, prepare
from surgery.training.trainer import OperationTrainer

SpecOf = Callable[..., Spec]
LORA = {"role": r"attention\.(query|value)", "adapter": "lora", "rank": 2, "dropout": 0.1}
BIAS = {"role": ".*", "adapter": "bias-only", "exclude": {"role": r"head\..*"}}
FULL = {"role": ".*", "adapter": "full", "exclude": {"role": r"head\.classifier"}}


def bits(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def trained(spec: Spec, registry: Registry, rows: Any, seed: int = 0, **options: Any) -> tuple[FitResult, str, str]:
    """Return the result, and the bits of adapters and base after training."""
    session = prepare(spec, registry, seed=seed, data=rows)
    base = {name: parameter.detach().clone() for name, parameter in session.model.named_parameters()}
    with operate(session.model, session.plan, registry=registry) as operation:
        result = fit(session, operation, training_of(spec), seed=seed, **options)
        moved = bits(dict(operation.trainable()))
        now = dict(session.model.named_parameters())
        assert all(torch.equal(now[name], value) for name, value in base.items())
    after = dict(session.model.named_parameters())
    assert bits(after) == bits(base)
    return result, moved, bits(after)


def training_of(spec: Spec) -> TrainingSpec:
    assert spec.training is not None
    return spec.training


@pytest.mark.parametrize("rule", [LORA, BIAS, FULL], ids=["lora", "bias-only", "full"])
def test_same_seed_same_bits_and_the_base_stays(spec_of: SpecOf, registry: Registry, rows: Any, rule: Any) -> None:
    first = trained(spec_of(rule), registry, rows)
    again = trained(spec_of(rule), registry, rows)
    other = trained(spec_of(rule), registry, rows, seed=1)
    assert first[1] == again[1] != other[1]
    assert first[0].losses == again[0].losses
    assert first[0].history == again[0].history


def test_every_arm_sees_the_same_examples_and_the_same_head(spec_of: SpecOf, registry: Registry, rows: Any) -> None:
    sessions = [prepare(spec_of(rule), registry, data=rows) for rule in (LORA, BIAS, FULL)]
    assert len({str(session.hashes) for session in sessions}) == 1
    results = [trained(spec_of(rule), registry, rows)[0] for rule in (LORA, BIAS, FULL)]
    assert len({result.order_hash for result in results}) == 1
    assert len({result.tokens for result in results}) == 1
    assert trained(spec_of(LORA), registry, rows, seed=1)[0].order_hash != results[0].order_hash


def test_only_the_operations_tensors_reach_the_optimizer(
    spec_of: SpecOf, registry: Registry, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.optim.Optimizer] = []
    create = OperationTrainer.create_optimizer

    def spy(self: OperationTrainer, model: Any = None) -> torch.optim.Optimizer:
        seen.append(create(self, model))
        return seen[-1]

    monkeypatch.setattr(OperationTrainer, "create_optimizer", spy)
    session = prepare(spec_of(LORA), registry, data=rows)
    with operate(session.model, session.plan, registry=registry) as operation:
        fit(session, operation, training_of(session.spec), seed=0)
        inside = [id(parameter) for group in seen[0].param_groups for parameter in group["params"]]
        assert sorted(inside) == sorted(id(parameter) for parameter in operation.trainable().values())
        assert isinstance(seen[0], torch.optim.AdamW)
        assert all(group["fused"] for group in seen[0].param_groups)
        assert all(parameter.grad is None for parameter in session.model.parameters())


def test_the_result_counts_what_was_seen(spec_of: SpecOf, registry: Registry, rows: Any) -> None:
    spec = spec_of(LORA, training={"steps": 5, "gradient_accumulation": 2, "evaluate_every": 2})
    result, _, _ = trained(spec, registry, rows)
    assert (result.updates, result.examples) == (5, 40)
    assert [point.step for point in result.history] == [0, 2, 4, 5]
    assert result.history[0].tokens == 0
    assert result.history[-1].tokens == result.tokens
    assert result.history[0].train_loss is None
    assert result.history[-1].train_loss == result.losses[-1]
    assert result.history[1].train_loss == pytest.approx(sum(result.losses[:2]) / 2)
    assert len(result.losses) == len(result.clip_norms) == len(result.step_times.seconds) == 5
    plan = prepare(spec, registry, data=rows).plan
    assert result.memory["gradients"] == plan.gradient_bytes
    # AdamW keeps two numbers for each, and a step counter of four bytes for each tensor.
    tensors = sum(group.tensors for group in result.groups)
    assert result.memory["optimizer"] == plan.optimizer_bytes + 4 * tensors
    assert result.memory["activations"] > 0
    assert result.to_dict()["history"][0]["train_loss"] is None


def test_gradient_accumulation_equals_a_larger_batch(spec_of: SpecOf, registry: Registry, rows: Any, bert: Any) -> None:
    # Without dropout the two differ by rounding only.
    config = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    losses = []
    for batch, accumulation in ((8, 1), (2, 4)):
        training = {"steps": 4, "batch_size": batch, "gradient_accumulation": accumulation}
        session = prepare(spec_of({**LORA, "dropout": 0.0}, training=training), registry, data=rows)
        _without_dropout(session, config)
        with operate(session.model, session.plan, registry=registry) as operation:
            losses.append(fit(session, operation, training_of(session.spec), seed=0).losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def _without_dropout(session: Session, config: dict[str, float]) -> None:
    for module in session.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0


def test_learning_lowers_the_loss(spec_of: SpecOf, registry: Registry, rows: Any) -> None:
    spec = spec_of(FULL, training={"steps": 150, "batch_size": 16, "learning_rate": 5e-3})
    result, _, _ = trained(spec, registry, rows)
    assert result.history[-1].validation_loss < result.history[0].validation_loss - 0.2
    assert result.history[-1].validation_metric > 0.8


def test_groups_and_decay(spec_of: SpecOf, registry: Registry, rows: Any) -> None:
    groups = [{"target": "classifier", "learning_rate": 0.1, "weight_decay": 0.5}, {"role": r"mlp\..*"}]
    spec = spec_of(FULL, training={"groups": groups, "weight_decay": 0.2})
    session = prepare(spec, registry, data=rows)
    with operate(session.model, session.plan, registry=registry) as operation:
        found = fit(session, operation, training_of(spec), seed=0).groups
        total = sum(parameter.numel() for parameter in operation.trainable().values())
    rates = {group.name: (group.learning_rate, group.weight_decay) for group in found}
    assert rates == {
        "classifier": (0.1, 0.5),
        r"mlp\..*": (1e-3, 0.2),
        r"mlp\..*, without decay": (1e-3, 0.0),
        "rest": (1e-3, 0.2),
        "rest, without decay": (1e-3, 0.0),
    }
    assert sum(group.parameters for group in found) == total
    # Two matrices of each of two layers.
    assert next(group for group in found if group.name == r"mlp\..*").parameters == 4 * 16 * 32


def test_a_group_that_wins_nothing(spec_of: SpecOf, registry: Registry, rows: Any) -> None:
    groups = [{"role": r"attention\..*"}, {"role": r"attention\.query"}, {"target": "clasifier"}]
    session = prepare(spec_of(LORA, training={"groups": groups}), registry, data=rows)
    with operate(session.model, session.plan, registry=registry) as operation:
        with pytest.raises(TrainingError) as caught:
            fit(session, operation, training_of(session.spec), seed=0)
    assert [problem.where for problem in caught.value.problems] == ["training.groups[1]", "training.groups[2]"]
    assert caught.value.problems[1].hint.startswith("did you mean 'classifier'")


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules(spec_of: SpecOf, registry: Registry, rows: Any, schedule: str, monkeypatch: Any) -> None:
    rates: list[float] = []
    step = OperationTrainer.training_step

    def spy(self: OperationTrainer, *args: Any, **keys: Any) -> torch.Tensor:
        rates.append(self.optimizer.param_groups[0]["lr"])
        return step(self, *args, **keys)

    monkeypatch.setattr(OperationTrainer, "training_step", spy)
    trained(spec_of(LORA, training={"steps": 10, "warmup": 0.2, "schedule": schedule}), registry, rows)
    assert rates[:3] == pytest.approx([0.0, 5e-4, 1e-3])
    assert rates[-1] == pytest.approx(1e-3) if schedule == "constant" else rates[-1] < 5e-4


def test_epochs_become_steps(spec_of: SpecOf, registry: Registry, rows: Any) -> None:
    spec = spec_of(LORA, training={"steps": None, "epochs": 1.5, "batch_size": 8})
    result, _, _ = trained(spec, registry, rows)
    assert (result.updates, result.examples) == (12, 96)


def test_bf16_training(spec_of: SpecOf, registry: Registry, rows: Any) -> None:
    spec = spec_of(LORA, training={"precision": "bf16"})
    result, moved, _ = trained(spec, registry, rows)
    assert moved == trained(spec, registry, rows)[1]
    assert result.losses != trained(spec_of(LORA), registry, rows)[0].losses
    session = prepare(spec, registry, data=rows)
    with operate(session.model, session.plan, registry=registry) as operation:
        last = fit(session, operation, training_of(spec), seed=0).history[-1]
        assert "forward" not in vars(session.model)
        # The curve and an evaluation afterwards are in the same precision.
        assert evaluate(session, "validation").metrics["loss"] == last.validation_loss


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_fp16_needs_a_gpu(spec_of: SpecOf, registry: Registry, rows: Any) -> None:
    with pytest.raises(TrainingError, match="fp16 training needs a GPU"):
        trained(spec_of(LORA, training={"precision": "fp16"}), registry, rows)


def test_divergence_is_told_and_stops(spec_of: SpecOf, registry: Registry, rows: Any) -> None:
    spec = spec_of(FULL, training={"steps": 100, "learning_rate": 1e30, "max_grad_norm": None, "evaluate_every": 5})
    session = prepare(spec, registry, data=rows)
    with operate(session.model, session.plan, registry=registry) as operation:
        result = fit(session, operation, training_of(spec), seed=0)
    assert result.diverged_at is not None
    assert result.updates < 100
    assert None in result.to_dict()["losses"]


def test_callers_randomness_is_left_alone(spec_of: SpecOf, registry: Registry, rows: Any) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    expected = (torch.random.get_rng_state(), np.random.get_state()[1].tolist())  # type: ignore[index]
    trained(spec_of(LORA), registry, rows)
    assert torch.equal(torch.random.get_rng_state(), expected[0])
    assert np.random.get_state()[1].tolist() == expected[1]  # type: ignore[index]


def test_progress_and_silence(spec_of: SpecOf, registry: Registry, rows: Any, capfd: Any) -> None:
    told: list[tuple[int, int, str]] = []
    trained(spec_of(LORA), registry, rows, progress=lambda *what: told.append(what))
    assert told[-1] == (6, 6, "small")
    assert capfd.readouterr() == ("", "")


def test_evaluation_gives_items_in_their_own_order(spec_of: SpecOf, registry: Registry, rows: Any) -> None:
    session = prepare(spec_of(LORA), registry, data=rows)
    found = evaluate(session, "test")
    assert found.items["label"].tolist() == [int(row["label"] == "good") for row in rows["test"]]
    assert found.metrics["loss"] == pytest.approx(found.items["loss"].mean())
    one = [evaluate(session, "test", limit=count).items["loss"][0] for count in (1, 13)]
    assert one[0] == pytest.approx(one[1])
    outputs = logits(session, "test")
    assert [int(output.argmax()) for output in outputs] == found.items["prediction"].tolist()
    assert len(logits(session, "test", 4)) == 4
    with pytest.raises(TrainingError, match="there is no tset split"):
        evaluate(session, "tset")


def test_merged_and_unmerged_logits_agree(spec_of: SpecOf, registry: Registry, rows: Any) -> None:
    session = prepare(spec_of(LORA), registry, data=rows)
    with operate(session.model, session.plan, registry=registry) as operation:
        fit(session, operation, training_of(session.spec), seed=0)
        before = logits(session, "test")
        operation.merge()
        after = logits(session, "test")
        assert max(float(np.abs(one - two).max()) for one, two in zip(before, after, strict=True)) < 1e-5
        with pytest.raises(TrainingError, match="'default' is merged"):
            fit(session, operation, training_of(session.spec), seed=0)


def test_a_session_serves_many_specs(spec_of: SpecOf, registry: Registry, rows: Any) -> None:
    first = prepare(spec_of(LORA), registry, data=rows)
    second = first.with_spec(spec_of(BIAS))
    assert second.model is first.model
    assert second.hashes == first.hashes
    third = first.with_spec(spec_of(BIAS), seed=1)
    assert third.hashes["head"] == prepare(spec_of(BIAS), registry, seed=1, data=rows).hashes["head"]
    assert third.hashes["head"] != first.hashes["head"]
    assert third.hashes["base"] == first.hashes["base"]
    with pytest.raises(TrainingError, match="the specs differ in 'task'"):
        first.with_spec(spec_of(BIAS, task={"kind": "text-classification"}))


def test_a_new_head_must_be_trained(spec_of: SpecOf, registry: Registry, rows: Any) -> None:
    spec = spec_of(LORA)
    spec = Spec(**{**spec.model_dump(mode="json"), "rules": [LORA]})
    with pytest.raises(TrainingError) as caught:
        prepare(spec, registry, data=rows)
    error = caught.value
    assert error.what == "the checkpoint does not hold classifier.weight, classifier.bias, and no rule trains them"
    assert error.hint == r"add the rule  - {role: head\.classifier, adapter: full}"


def test_unseen_labels_and_single_labels(spec_of: SpecOf, registry: Registry, rows: Any) -> None:
    rows["validation"][3]["label"] = "gud"
    rows["test"][0]["label"] = "?"
    with pytest.raises(DataError) as caught:
        prepare(spec_of(LORA), registry, data=rows)
    assert [problem.where for problem in caught.value.problems] == ["validation:row 4", "test:row 1"]
    assert caught.value.problems[0].what == "label 'gud' does not occur in the training split"
    with pytest.raises(DataError, match="the training rows hold 1 label; two are needed at least"):
        prepare(spec_of(LORA), registry, data={"train": [{"text": f"a {n}", "label": 1} for n in range(9)]})


def test_texts_longer_than_the_model(spec_of: SpecOf, registry: Registry, rows: Any) -> None:
    rows["train"][0]["text"] = "the " * 50
    spec = spec_of(LORA, task={"kind": "text-classification", "max_length": 40})
    with pytest.raises(TrainingError) as caught:
        prepare(spec, registry, data=rows)
    assert str(caught.value) == (
        "task.max_length: the longest example has 40 tokens, the model takes 32\n  hint: write max_length: 32 under task:"
    )


def test_specs_that_say_too_little(spec_of: SpecOf, registry: Registry, rows: Any) -> None:
    for key, what in (("task", "the spec has no task"), ("model", "the spec names no model")):
        with pytest.raises(TrainingError, match=what):
            prepare(spec_of(LORA, **{key: None}), registry, data=rows)


def test_an_operation_on_another_model(spec_of: SpecOf, registry: Registry, rows: Any) -> None:
    first, second = (prepare(spec_of(LORA), registry, data=rows) for _ in range(2))
    with operate(first.model, first.plan, registry=registry) as operation:
        with pytest.raises(TrainingError, match="the operation is on another model"):
            fit(second, operation, training_of(second.spec), seed=0)


def test_causal_language_modelling(gpt2: Any, registry: Registry, rows: Any) -> None:
    spec = Spec(
        name="lm",
        model=str(gpt2),
        task={"kind": "causal-lm", "max_length": 16},
        training={"steps": 30, "batch_size": 4, "learning_rate": 1e-2, "evaluate_every": 10},
        rules=[{"role": r"attention\.(query|value)", "adapter": "lora", "rank": 4, "alpha": 32}],
    )
    session = prepare(spec, registry, data=rows)
    assert session.new_parameters == ()
    with operate(session.model, session.plan, registry=registry) as operation:
        result = fit(session, operation, training_of(spec), seed=0)
        found = evaluate(session, "validation")
        outputs = logits(session, "validation", 2)
    assert result.history[-1].validation_loss < result.history[0].validation_loss
    assert found.metrics["loss"] == pytest.approx(found.items["loss"].sum() / found.items["units"].sum())
    assert found.metrics["perplexity"] == pytest.approx(np.exp(found.metrics["loss"]))
    assert result.history[-1].validation_loss == found.metrics["loss"]
    assert [output.shape for output in outputs] == [(16, 64), (16, 64)]


def test_step_times_leave_the_warm_up_out() -> None:
    times = StepTimes.of([9.0, 9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 8)
    assert (times.median, times.p25, times.p75) == (3.0, 2.0, 4.0)
    assert StepTimes.of([], []).median == 0.0
    assert StepTimes.of([2.0], [2.0]).median == 2.0


def test_a_logger_that_is_not_installed(
    spec_of: SpecOf, registry: Registry, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.integrations.integration_utils.is_tensorboard_available", lambda: False)
    with pytest.raises(TrainingError) as caught:
        trained(spec_of(LORA, training={"log_to": ["tensorboard"]}), registry, rows)
    assert caught.value.where == "training.log_to"
    assert "tensorboard" in caught.value.what


def test_metrics_reach_the_logger(
    spec_of: SpecOf, registry: Registry, rows: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """A stand-in for TensorBoard's writer: what would be drawn, and in which folder."""
    from transformers.integrations import integration_utils

    written: list[tuple[str, int]] = []
    folders: list[str] = []

    class Writer:
        def __init__(self, log_dir: str) -> None:
            folders.append(log_dir)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, step))

        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: None

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    spec = spec_of(LORA, training={"log_to": ["tensorboard"], "steps": 4, "evaluate_every": 2})
    trained(spec, registry, rows, out=tmp_path / "run" / "checkpoints")
    assert {("train/loss", 1), ("train/loss", 4), ("eval/accuracy", 2), ("eval/loss", 4)} <= set(written)
    assert folders == [str(tmp_path / "run" / "tensorboard")]
