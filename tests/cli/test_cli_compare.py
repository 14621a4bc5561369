"""`surgery compare` and `surgery report`, on two arms and one seed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_support import Run

from surgery.errors import SurgeryError

STUDY = """\
version: 1
name: two-arms
model: {model}
task: {{kind: text-classification, max_length: 16}}
data: {{train: {data}/train.csv, validation: {data}/validation.csv, test: {data}/test.csv}}
training: {{steps: 2, batch_size: 4}}
seeds: [1]
reference: full
margin: 0.01
head: [{{role: 'head\\.(transform|classifier)', adapter: full}}]
head_learning_rate: 1e-3
arms:
  full: {{rules: [{{role: .*, adapter: full}}], learning_rate: 1e-4}}
  lora: {{rules: [{{role: 'attention\\.query', adapter: lora, rank: 2}}], learning_rate: 1e-3}}
"""


@pytest.fixture
def study(trainable: Path, data: Path, tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(model=trainable, data=data), "utf-8")
    return path


def test_compare_then_report(invoke: Run, study: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    result = invoke("compare", study, "--out", out, "--workers", 1)
    assert result.code == 0, result.err
    assert "lora against full" in result.out
    assert "[3/3]" in result.err
    assert "arms take turns on the clock: frozen, 12 of 12" in result.err
    page = out / "report.html"
    first = page.read_bytes()
    page.unlink()
    again = invoke("report", out, "--json")
    assert json.loads(again.out) == {"report": str(page)}
    assert (again.err, page.read_bytes()) == ("", first)
    told = json.loads(invoke("compare", study, "--out", out, "--json").out)
    assert (told["study"], told["folder"], told["report"]) == ("two-arms", str(out), str(page))
    differ = {row["arm"]: row["differ"] for row in told["rows"]}
    assert (differ["full"], differ["lora"]) == (0, 0)
    _two_studies_share_a_page(invoke, out, tmp_path)


def _two_studies_share_a_page(invoke: Run, out: Path, tmp_path: Path) -> None:
    other, page = tmp_path / "other", tmp_path / "both.html"
    shutil.copytree(out, other)
    for name, key in (("study.json", "hash"), ("summary.json", "study")):
        known = json.loads((other / name).read_text("utf-8"))
        (other / name).write_text(json.dumps({**known, "name": "again", key: "0" * 64}), "utf-8")
    nowhere = invoke("report", out, other)
    assert (nowhere.code, "add --out NAME.html" in nowhere.err) == (6, True)
    result = invoke("report", out, other, "--out", page)
    assert result.out.split() == [str(page), str(page.with_suffix(".csv"))]
    told = json.loads(invoke("report", out, other, "--out", page, "--json").out)
    assert (told["report"], told["numbers"], told["metric"]) == (str(page), str(tmp_path / "both.csv"), "accuracy")
    assert [arm["study"] for arm in told["arms"]] == ["two-arms"] * 4 + ["again"] * 4
    elsewhere = invoke("report", out, "--out", tmp_path / "one.html")
    assert (elsewhere.code, (tmp_path / "one.html").read_bytes()) == (0, (out / "report.html").read_bytes())


def test_other_data_and_another_model(invoke: Run, study: Path, trainable: Path, data: Path, tmp_path: Path) -> None:
    text = study.read_text("utf-8").replace(f"model: {trainable}", "model: some/model")
    path = tmp_path / "elsewhere.yaml"
    path.write_text(
        "".join("data: {name: some/set, test: test, limit: {train: 8}}\n" if line.startswith("data:") else line
                for line in text.splitlines(keepends=True)), "utf-8")  # fmt: skip
    out = tmp_path / "results"
    files = f"train={data}/train.csv,test={data}/test.csv"
    result = invoke("compare", path, "-o", out, "--model", trainable, "--data", files, "--workers", 1)
    assert result.code == 0, result.err
    run = json.loads((out / "study.json").read_text("utf-8"))
    assert run["spec"]["model"]["ref"] == str(trainable)
    given = {"train": f"{data}/train.csv", "validation": None, "test": f"{data}/test.csv", "name": None}
    assert {key: run["spec"]["data"][key] for key in given} == given
    assert run["spec"]["data"]["limit"] == {"train": 8}
    refused = invoke("compare", path, "-o", out, "--data", f"train={data}/train.csv")
    assert "names no test file" in refused.err
    assert "write train=FILE,test=FILE" in invoke("compare", path, "-o", out, "--data", data).err


def test_report_of_nothing(invoke: Run, tmp_path: Path) -> None:
    result = invoke("report", tmp_path)
    assert result.code == 6
    assert "no finished study" in result.err


def test_ctrl_c_says_how_to_go_on(invoke: Run, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import surgery.study

    def stopped(*_: object, **__: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(surgery.study, "compare", stopped, raising=False)
    result = invoke("compare", study, "--out", tmp_path / "results")
    assert result.code == 130
    assert "the same command goes on" in result.err
    monkeypatch.setattr(surgery.study, "compare", failing, raising=False)
    assert invoke("compare", study, "--out", tmp_path / "results").code == 1


def failing(*_: object, **__: object) -> object:
    raise SurgeryError("a cell failed")
