"""Real studies on tiny models: everything between a study file and its verdicts, once."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from tiny_studies import bert_study

from surgery.errors import PlanError, SpecError
from surgery.registry import Registry
from surgery.report import build_report
from surgery.study import Comparison, compare
from surgery.study.cells import Cell
from surgery.study.predicted import apart
from surgery.study.results import without_timings
from surgery.study.turns import take_turns
from surgery.training import Session


@pytest.fixture(scope="module")
def compared(
    bert: str, data: dict[str, str], registry: Registry, tmp_path_factory: pytest.TempPathFactory
) -> Comparison:
    told: list[tuple[int, int, str]] = []
    folder = tmp_path_factory.mktemp("study") / "out"
    comparison = compare(
        bert_study(bert, data),
        folder,
        registry=registry,
        workers=1,
        progress=lambda done, total, description: told.append((done, total, description)),
    )
    assert told[-1][:2] == (8, 8)
    assert all(earlier[0] <= later[0] for earlier, later in pairwise(told))
    return comparison


def test_every_cell_is_there_in_order(compared: Comparison) -> None:
    found = [(record["arm"], record["phase"], record["seed"]) for record in compared.records]
    assert found == [
        ("lora", "tune", 0),
        ("lora", "tune", 0),
        ("frozen", "final", 1),
        ("full", "final", 1),
        ("lora", "final", 1),
        ("lora", "final", 2),
        ("full", "final", 2),
        ("frozen", "final", 2),
    ]
    assert [row.arm for row in compared.summary.rows] == ["full", "lora", "frozen", "majority"]


def test_all_arms_were_treated_alike(compared: Comparison) -> None:
    failed = [check for check in compared.summary.checks if check.status == "fail"]
    assert failed == []
    by_name = {check.name: check.status for check in compared.summary.checks}
    for name in ("base weights", "order of the training examples", "initial head tensors", "test split"):
        assert by_name[name] == "pass"
    assert compared.summary.test_reads == 6


def test_merging_and_back_leaves_every_bit(compared: Comparison) -> None:
    for record in compared.records:
        if record["phase"] == "final":
            assert record["merge"] is not None
            assert record["merge"]["differ"] == 0
            assert record["merge"]["elements"] > 5000
            assert record["merge"]["logit_change"] is not None
            assert record["merge"]["logit_change"] < 1e-4


def test_what_changed_in_the_weights_is_measured_on_the_first_seed(compared: Comparison) -> None:
    looked = {(r["arm"], r["seed"]): r["weights"] for r in compared.records if "weights" in r}
    assert set(looked) == {("frozen", 1), ("full", 1), ("lora", 1)}
    assert looked["frozen", 1] == []
    roles = {matrix["role"] for matrix in looked["full", 1]}
    assert roles >= {"attention.query", "attention.output", "mlp.up", "mlp.down"}
    assert not [role for role in roles if role.startswith(("head.", "embedding."))]
    assert {matrix["rank"] for matrix in looked["lora", 1]} == {2}
    for matrix in looked["lora", 1]:
        assert 0 < matrix["relative_norm"] < 10
        assert 1 <= matrix["found"]["entropy_rank"] <= 2
    assert 'id="weights"' in build_report(compared.folder).read_text("utf-8")


def test_every_step_costs_what_was_predicted(compared: Comparison) -> None:
    for record in compared.records:
        cost = record["cost"]
        assert cost is not None
        told = cost["predicted"]
        assert (told["forward"], told["backward"]) == (cost["forward"], cost["backward"])
        assert record["memory"] is not None
        assert told["activations"] == pytest.approx(record["memory"]["activations"], rel=0.1)
        assert apart(record["memory"], cost) == ()
        assert cost["examples"] == 8
    checks = {check.name: check for check in compared.summary.checks}
    assert checks["cost as predicted"].status == "pass"


def test_arms_take_turns_and_leave_no_trace(compared: Comparison, registry: Registry) -> None:
    for row in compared.summary.rows[:3]:
        assert row.clock is not None
        for name in ("step", "step_cpu", "base", "unmerged", "merged"):
            spread = getattr(row.clock, name)
            assert 0 < spread.low <= spread.median <= spread.high
        assert row.step == row.clock.step.median  # type: ignore[union-attr]
    kept = json.loads((compared.folder / "timings.json").read_text("utf-8"))
    assert kept["study"] == compared.study.hash
    assert set(kept["arms"]) == {"full", "lora", "frozen"}
    before = (compared.folder / "timings.json").read_bytes()
    again = compare(compared.study, compared.folder, registry=registry, workers=1)
    assert (compared.folder / "timings.json").read_bytes() == before
    assert again.summary == compared.summary


def test_a_turn_gives_the_model_back(bert: str, data: dict[str, str], registry: Registry) -> None:
    import torch

    from surgery.study.cells import final_cells
    from surgery.study.exact import Snapshot
    from surgery.training import prepare

    study = bert_study(bert, data)
    cells = {cell.arm: cell for cell in final_cells(study, {"full": 3e-3, "lora": 1e-3})}
    session = prepare(cells["full"].spec, registry, seed=1)
    snapshot, state = Snapshot(session.model), torch.random.get_rng_state()
    order: list[str] = []

    def session_of(cell: Cell) -> Session:
        order.append(cell.arm)
        return session.with_spec(cell.spec, 1)

    heard: list[tuple[int, int, str]] = []
    found = take_turns([cells["full"], cells["lora"]], session_of, lambda *told: heard.append(told))
    assert order == ["full", "lora", "lora", "full", "full", "lora", "lora", "full"]
    assert heard == [(number, 8, arm) for number, arm in enumerate(order, 1)]
    assert snapshot.differing() == 0
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not session.model.training
    assert all(parameter.grad is None for parameter in session.model.parameters())
    for told in found.values():
        assert len(told["step"]) == len(told["step_cpu"]) >= 8
        assert len(told["base"]) == len(told["unmerged"]) == len(told["merged"]) == 40


def test_the_saved_adapter_is_the_one_that_was_scored(compared: Comparison, registry: Registry) -> None:
    from surgery.operation import load_adapter
    from surgery.study.cells import final_cells
    from surgery.training import prepare
    from surgery.training.fit import evaluate

    rates = {choice.arm: choice.rate for choice in compared.summary.choices}
    cell = next(cell for cell in final_cells(compared.study, rates) if (cell.arm, cell.seed) == ("lora", 2))
    record = next(record for record in compared.records if record["key"] == cell.key)
    folder = compared.folder / "adapters" / cell.folder
    assert record["checkpoint_bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    # A session of another seed: the adapter brings its own head.
    session = prepare(cell.spec, registry, seed=5)
    with load_adapter(session.model, folder, registry=registry):
        again = evaluate(session, "test")
    assert record["items"] is not None
    assert again.items["prediction"].tolist() == record["items"]["prediction"]
    assert again.items["loss"].tolist() == record["items"]["loss"]


def test_a_second_study_in_one_process_reads_its_files_anew(
    bert: str, data: dict[str, str], registry: Registry, tmp_path: Path
) -> None:
    test = tmp_path / "test.jsonl"
    lines = Path(data["test"]).read_text("utf-8").splitlines(keepends=True)
    arms = {"full": {"rules": [{"role": ".*", "adapter": "full"}], "learning_rate": 3e-3}}
    study = bert_study(
        bert, {**data, "test": str(test)}, arms=arms, seeds=[1], weights="none", training={"steps": 1, "batch_size": 8}
    )
    counts = []
    for count in (60, 20):
        test.write_text("".join(lines[:count]), encoding="utf-8")
        counts.append(compare(study, tmp_path / str(count), registry=registry, workers=1).summary.items)
    assert counts == [60, 20]


def test_two_processes_give_the_same_records(compared: Comparison, registry: Registry, tmp_path: Path) -> None:
    again = compare(compared.study, tmp_path / "out", registry=registry, workers=2)
    plain = [without_timings(record) for record in again.records]  # type: ignore[arg-type]
    assert plain == [without_timings(record) for record in compared.records]  # type: ignore[arg-type]


def test_a_ray_cluster_gives_the_same_records(compared: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    study, out = tmp_path / "study.yaml", tmp_path / "out"
    study.write_text(compared.study.to_yaml(), encoding="utf-8")
    words = ["-m", "surgery", "compare", str(study), "--out", str(out), "--engine", "ray", "--workers", "2", "--quiet"]
    told = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    lines = (out / "results.jsonl").read_text("utf-8").splitlines()
    records = {record["key"]: without_timings(record) for record in map(json.loads, lines)}
    assert records == {record["key"]: without_timings(record) for record in compared.records}  # type: ignore[arg-type]


def test_a_causal_model_without_a_head_and_what_it_forgets(
    gpt2: str, data: dict[str, str], registry: Registry, tmp_path: Path
) -> None:
    arms = {
        "full": {"rules": [{"role": ".*", "adapter": "full", "tied": "share"}], "learning_rate": 3e-3},
        "lora": {"rules": [{"role": r"attention\.(query|value)", "adapter": "lora", "rank": 2}], "learning_rate": 1e-2},
    }
    study = bert_study(
        gpt2,
        data,
        name="tiny-gpt2",
        task={"kind": "causal-lm", "max_length": 16},
        arms=arms,
        head=(),
        head_learning_rate=None,
        forgetting={"data": {**data, "limit": {"test": 9}}},
        seeds=[1],
    )
    comparison = compare(study, tmp_path / "out", registry=registry, workers=1)
    summary = comparison.summary
    assert [row.arm for row in summary.rows] == ["full", "lora", "frozen"]
    frozen = summary.row("frozen")
    assert frozen.forgetting is not None
    assert frozen.forgetting.mean == 0
    assert frozen.adapter == 0
    full = summary.row("full")
    assert full.forgetting is not None
    assert full.known_before == frozen.known_before
    assert full.forgetting.mean < 0  # the same words: what it learns here helps there
    assert summary.metric == {"name": "loss", "greater_is_better": False}
    assert summary.row("lora").pair is not None


def test_a_mistake_is_told_before_anything_is_trained(
    bert: str, data: dict[str, str], registry: Registry, tmp_path: Path
) -> None:
    without = {name: path for name, path in data.items() if name != "test"}
    with pytest.raises(SpecError, match="names no test file"):
        compare(bert_study(bert, without), tmp_path / "a", registry=registry, workers=1)
    arms = {
        "full": {"rules": [{"role": ".*", "adapter": "full"}], "learning_rate": 3e-3},
        "empty": {"rules": [{"role": "attention.qeury", "adapter": "lora", "rank": 2}], "learning_rate": 1e-3},
    }
    with pytest.raises(PlanError) as caught:
        compare(bert_study(bert, data, arms=arms), tmp_path / "b", registry=registry, workers=1)
    assert not (tmp_path / "b" / "results.jsonl").exists()
    assert "empty" in str(caught.value)
    assert "qeury" in str(caught.value)
