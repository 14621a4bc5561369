"""Forgetting in real studies of tiny models: by retrieval, by the loss, and by a masked head."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_studies import HEAD, WORDS, save_tokenizer, write_rows

from surgery.registry import Registry
from surgery.report import build_report
from surgery.study import Comparison, StudySpec, compare, read_comparison
from surgery.study.results import without_timings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertModel, GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("forgetting")
    for name, (count, start) in {"train": (60, 0), "validation": (20, 500), "test": (30, 900)}.items():
        write_rows(folder / f"{name}.jsonl", count, start)
    pairs = [
        {"query": " ".join(WORDS[(i * j) % 20] for j in range(3, 6)), "passage": " ".join(WORDS[i : i + 9])}
        for i in range(11)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), "utf-8")
    known = [{"text": " ".join(WORDS[(i * i + j) % 20] for j in range(12))} for i in range(9)]
    (folder / "known.jsonl").write_text("".join(json.dumps(row) + "\n" for row in known), "utf-8")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=32, max_position_embeddings=32, **sizes)
    bert = BertModel(config)
    BertForMaskedLM(config).save_pretrained(folder / "mlm")
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0))
    bert.save_pretrained(folder / "bert")
    gpt2.save_pretrained(folder / "gpt2")
    save_tokenizer(folder / "bert", ["[PAD]", "[UNK]"], unk_token="[UNK]", pad_token="[PAD]")
    special = ["[PAD]", "[UNK]", "[MASK]"]
    save_tokenizer(folder / "mlm", special, unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]")
    save_tokenizer(folder / "gpt2", ["<end>", "<unk>"], unk_token="<unk>", eos_token="<end>")
    return folder


def tiny_study(folder: Path, model: str, **changes: Any) -> StudySpec:
    keys: dict[str, Any] = {
        "name": "tiny",
        "model": str(folder / model),
        "task": {"kind": "text-classification", "max_length": 24},
        "data": {name: str(folder / f"{name}.jsonl") for name in ("train", "validation", "test")},
        "training": {"steps": 4, "batch_size": 8},
        "seeds": [1, 2],
        "arms": {
            "full": {"rules": [{"role": ".*", "adapter": "full", "tied": "share"}], "learning_rate": 3e-3},
            "lora": {"rules": [{"role": r"attention\..*", "adapter": "lora", "rank": 2}], "learning_rate": 1e-2},
        },
        "reference": "full",
        "margin": 0.02,
        "resamples": 1000,
        "weights": "none",
    }
    return StudySpec(**{**keys, **changes})


@pytest.fixture(scope="module")
def retrieved(folder: Path, registry: Registry) -> Comparison:
    forgetting = {"data": {"test": str(folder / "pairs.jsonl")}, "examples": 12}
    study = tiny_study(folder, "bert", forgetting=forgetting, **HEAD)
    return compare(study, folder / "retrieved", registry=registry, workers=1)


def test_an_encoder_without_a_head_is_measured_by_retrieval(retrieved: Comparison) -> None:
    found = retrieved.summary.forgotten
    assert found is not None
    assert (found.probe["kind"], found.probe["unit"], found.items) == ("retrieval", "MRR", 11)
    for record in retrieved.records:
        told = record["forgetting"]
        assert told is not None
        points = told["points"]
        if record["arm"] == "frozen":  # its body is the base's
            assert [point["t"] for point in points] == [1.0]
            assert points[0]["values"] == told["values"]
            assert points[0]["change"] == 0
            continue
        assert [point["t"] for point in points] == [0.0, 0.25, 0.5, 0.75, 1.0]
        # The head is not the probe's: at 0 the body is the base's, bit for bit; at 1 it is the trained one.
        assert points[0]["values"] == told["values"]
        assert points[-1]["score"] == told["after"]
        assert points[0]["change"] == 0
        assert points[-1]["change"] == pytest.approx(4 * points[1]["change"])  # type: ignore[operator]
        assert record["merge"] is not None
        assert record["merge"]["differ"] == 0
    norms = {r["forgetting"]["base_norm"] for r in retrieved.records if r["forgetting"]}
    assert len(norms) == 1  # of the whole body, whatever an arm adapts
    by_name = {check.name: (check.status, check.detail) for check in retrieved.summary.checks}
    assert by_name["forgetting probe apart from the task"][0] == "pass"
    assert "forgetting probe measures forgetting" in by_name
    note = next(note for note in retrieved.summary.notes if note.startswith("forgetting"))
    assert note == (
        "forgetting: probe retrieval (the rows hold query and passage); at t = 0, 0.25, 0.5, 0.75 of what was learned, "
        "also 12 of 20 validation examples: 136 forward passes more for each final run of an arm"
    )


def test_its_report_and_tables_tell_of_it(retrieved: Comparison) -> None:
    page = build_report(retrieved.folder).read_text("utf-8")
    assert "forgetting [MRR]" in page
    assert "forgetting probe apart from the task" in page
    assert read_comparison(retrieved.folder).summary == retrieved.summary
    with (retrieved.folder / "tables" / "forgetting_points.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (2 * 5 + 1)
    assert {row["arm"] for row in rows} == {"full", "lora", "frozen"}


def test_two_processes_measure_the_same(retrieved: Comparison, registry: Registry, tmp_path: Path) -> None:
    again = compare(retrieved.study, tmp_path / "out", registry=registry, workers=2)
    plain = [without_timings(record) for record in again.records]  # type: ignore[arg-type]
    assert plain == [without_timings(record) for record in retrieved.records]  # type: ignore[arg-type]
    assert again.summary.forgotten == retrieved.summary.forgotten


def test_a_folder_of_an_earlier_version_still_makes_a_report(retrieved: Comparison, tmp_path: Path) -> None:
    for path in retrieved.folder.iterdir():
        if path.is_file() and path.suffix in (".json", ".jsonl", ".yaml"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    old = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    del old["forgotten"], old["probe_unit"], old["results"]
    (tmp_path / "summary.json").write_text(json.dumps(old), "utf-8")
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text("utf-8").splitlines()]
    for record in lines:
        record["forgetting"] = {key: record["forgetting"][key] for key in ("before", "after")}
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    assert "forgetting [nats]" in build_report(tmp_path).read_text("utf-8")


def test_a_language_model_begins_its_curve_at_the_base(folder: Path, registry: Registry) -> None:
    study = tiny_study(
        folder,
        "gpt2",
        task={"kind": "causal-lm", "max_length": 16},
        seeds=[1],
        forgetting={"data": {"test": str(folder / "known.jsonl")}, "along": [0, 0.5, 1]},
    )
    comparison = compare(study, folder / "causal", registry=registry, workers=1)
    found = comparison.summary.forgotten
    assert found is not None
    assert found.probe["kind"] == "loss"
    frozen = next(record for record in comparison.records if record["arm"] == "frozen")
    assert frozen["forgetting"] is not None
    assert frozen["forgetting"]["points"] == []
    for record in comparison.records:
        told = record["forgetting"]
        assert told is not None
        if record["trains"]:
            # All of it is in the checkpoint, the head included: at 0 everything is the base's.
            assert told["points"][0]["values"] == told["values"]
            assert told["points"][0]["loss"] == frozen["validation"]["loss"]
            assert told["points"][-1]["metric"] == record["validation"]["loss"]
            assert told["points"][-1]["score"] == told["after"]
    assert found.arm("lora") is not None


def test_a_masked_head_of_the_checkpoint_reads_the_operated_body(folder: Path, registry: Registry) -> None:
    forgetting = {"data": {"test": str(folder / "known.jsonl")}, "along": [0, 1]}
    study = tiny_study(folder, "mlm", forgetting=forgetting, seeds=[1], **HEAD)
    comparison = compare(study, folder / "masked", registry=registry, workers=1)
    found = comparison.summary.forgotten
    assert found is not None
    assert found.probe["kind"] == "masked-lm"
    for record in comparison.records:
        told = record["forgetting"]
        assert told is not None
        assert told["points"][0]["values"] == told["values"]  # t = 0; and the frozen row's only point
        if record["arm"] != "frozen":
            assert told["points"][-1]["values"] != told["values"]
        assert record["merge"] is not None
        assert record["merge"]["differ"] == 0
