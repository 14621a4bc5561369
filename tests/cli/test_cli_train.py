"""`surgery train` and the files it is given, on a BERT of two layers."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import ROOT, SCRIPT, Run

from surgery.cli.train import parse_data
from surgery.errors import DataError

SPEC = """\
version: 1
name: tiny
model: {model}
task: {{kind: text-classification, max_length: 16}}
rules:
  - {{role: 'attention\\.(query|value)', adapter: lora, rank: 2}}
  - {{role: 'head\\.(transform|classifier)', adapter: full}}
training: {{steps: 4, batch_size: 4, learning_rate: 1e-3}}
"""


@pytest.fixture
def spec(trainable: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(SPEC.format(model=trainable), "utf-8")
    return path


def test_train_then_again_then_resume(invoke: Run, spec: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = invoke("train", spec, "--out", out, "--data", data)
    assert (result.code, result.out.splitlines()[0].split(":")[0]) == (0, "trained tiny")
    assert "surgery.load_adapter" in result.err
    assert re.search(r"^\[0/4\] tiny  validation loss \d\.\d{4}, accuracy [01]\.\d{4}$", result.err, flags=re.MULTILINE)
    assert re.search(r"^\[4/4\] tiny  loss \d\.\d{4}, validation loss \d", result.err, flags=re.MULTILINE)
    assert (out / "adapter").is_dir()
    again = invoke("train", spec, "--out", out, "--data", data)
    assert again.code == 10
    assert "finished run" in again.err
    resumed = invoke("train", spec, "--out", out, "--data", data, "--resume", "--json")
    found = json.loads(resumed.out)
    assert (found["was_done"], found["folder"], resumed.err) == (True, str(out), "")
    assert set(found["metrics"]) == {"validation", "test"}


def test_the_options_arrive(invoke: Run, spec: Path, data: Path, tmp_path: Path, trainable: Path) -> None:
    spec.write_text(spec.read_text("utf-8").replace(str(trainable), "no-such-model"), "utf-8")
    files = f"train={data / 'train.csv'},validation={data / 'validation.csv'}"
    options = ["--model", trainable, "--seed", 7, "--keep", "none", "--quiet"]
    result = invoke("train", spec, "-o", tmp_path / "run", "--data", files, *options)
    assert (result.code, result.err) == (0, "")
    run = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    assert json.loads(run["identity"]["spec"])["seed"] == 7


def test_bad_data_is_told_with_its_place(invoke: Run, spec: Path, data: Path, tmp_path: Path) -> None:
    path = data / "train.csv"
    path.write_text(path.read_text("utf-8").replace("text,label", "txt,label"), "utf-8")
    result = invoke("train", spec, "--out", tmp_path / "run", "--data", data)
    assert result.code == 9
    assert f"error: {path}" in result.err
    assert not (tmp_path / "run").exists()


def test_a_plan_error_knows_its_line(invoke: Run, spec: Path, data: Path, tmp_path: Path) -> None:
    text = spec.read_text("utf-8").replace("rank: 2", "rank: 2, expect: 5")
    spec.write_text(text, "utf-8")
    result = invoke("train", spec, "--out", tmp_path / "run", "--data", data)
    assert result.code == 4
    assert f"error: {spec}:6:" in result.err


def test_ctrl_c_and_resume(invoke: Run, spec: Path, data: Path, tmp_path: Path) -> None:
    text = spec.read_text("utf-8")
    spec.write_text(text.replace("steps: 4,", "steps: 9999, save_every: 1,"), "utf-8")
    out = tmp_path / "run"
    command = [str(SCRIPT), "train", str(spec), "--out", str(out), "--data", str(data)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        first = next(line for line in process.stderr if line.startswith("["))
        process.send_signal(signal.SIGINT)
        told = process.communicate()
    assert "/9999] tiny" in first
    assert process.returncode == 130
    assert told[0] == ""
    error, hint = [line for line in told[1].splitlines() if not line.startswith("[")]
    assert error == f"error: {out}: stopped by Ctrl-C"
    assert hint == f"  hint: go on with:  surgery train {out}/spec.yaml --out {out} --resume --data {data}"
    assert (out / "run.json").is_file()
    spec.write_text(text, "utf-8")
    result = invoke("train", spec, "--out", out, "--data", data, "--resume")
    assert result.code == 10
    assert "another spec" in result.err


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("train.csv", "train.csv"),
        ("train=a.csv", {"train": "a.csv"}),
        ("train=a.csv, validation=b=c.csv,test=d", {"train": "a.csv", "validation": "b=c.csv", "test": "d"}),
    ],
)
def test_data_argument(text: str, wanted: Any) -> None:
    assert parse_data(text) == wanted


@pytest.mark.parametrize("text", ["trian=a.csv", "train=", "train=a,train=b", "train=a,b"])
def test_bad_data_argument(text: str, invoke: Run, spec: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        parse_data(text)
    assert invoke("train", spec, "--out", tmp_path / "run", "--data", text).code == 9


def test_a_path_with_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=1.csv").write_text("text,label\n", "utf-8")
    assert parse_data("lr=1.csv") == "lr=1.csv"


REAL = {
    "sentiment-sst2": {"train": "sst2/train.jsonl", "validation": "sst2/dev.jsonl"},
    "chinese-sentiment": {"train": "chnsenticorp/train.jsonl", "validation": "chnsenticorp/dev.jsonl"},
    "text-classification-ag-news": {"train": "ag_news/train_10k.jsonl", "test": "ag_news/test.jsonl"},
    "text-classification-cola": {"train": "cola/train.jsonl", "validation": "cola/dev.jsonl"},
    # The training set is ten times as large: a few questions of the one file for either split.
    "question-answering-squad": {"train": "squad_v1.1/dev-v1.1.json", "validation": "squad_v1.1/dev-v1.1.json"},
}


@pytest.mark.parametrize("name", REAL)
def test_specs_on_real_data(
    name: str, invoke: Run, tmp_path: Path, trainable: Path, only_some: Callable[[str], str], real_data: Path
) -> None:
    """The spec as shipped, shortened to a few steps of a tiny model."""
    path = tmp_path / f"{name}.yaml"
    path.write_text(only_some((ROOT / "specs" / f"{name}.yaml").read_text("utf-8")), "utf-8")
    files = ",".join(f"{split}={real_data / file}" for split, file in REAL[name].items())
    result = invoke("train", path, "--out", tmp_path / "run", "--data", files, "--model", trainable, "--json")
    assert result.code == 0, result.err
    metrics = json.loads(result.out)["metrics"]
    assert set(metrics) == {"validation", *REAL[name]} - {"train"}
    for found in metrics.values():
        assert set(found) >= ({"em", "f1"} if name == "question-answering-squad" else {"accuracy", "matthews"})
        assert all(-1 <= value <= 1 for key, value in found.items() if key != "loss")


@pytest.fixture
def only_some() -> Callable[[str], str]:
    def shorten(text: str) -> str:
        text = re.sub("epochs: [0-9]+", "steps: 3", text).replace("expect: 24", "expect: 4")
        text = text.replace("max_length: 384", "max_length: 192")  # the tiny model has 256 positions
        return text.replace("data:\n", "data:\n  limit: {train: 64, validation: 32, test: 32}\n")

    return shorten
