"""Each verb's answer, for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import LORA, TASK, Run

Golden = Callable[[str, str], None]
Write = Callable[..., Path]

FEW = {"SURGERY_DISABLE_PLUGIN_AUTOLOAD": "1"}
HEAD = r"- {role: head\.(transform|classifier), adapter: full}"
SPEC = r"""- {role: attention\.(query|value), layers: [0], adapter: lora, rank: 2}
  - {role: '.*', adapter: bias-only}
  - {role: head\.lm, adapter: full, tied: share}"""
STUDY = """\
version: 1
name: two-arms
model: bert-base-uncased
task: {kind: text-classification}
data: {train: train.csv, validation: validation.csv, test: test.csv}
training: {steps: 10}
seeds: [1, 2]
reference: full
margin: 0.01
arms:
  full: {rules: [{role: .*, adapter: full}], learning_rate: 2e-5}
  lora: {rules: [{role: 'attention\\.query', adapter: lora, rank: 2}], learning_rate: 1e-3}
"""


def test_check(invoke: Run, spec: Write, tmp_path: Path, golden: Golden) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(STUDY, "utf-8")
    result = invoke("check", spec(LORA), study)
    assert result.code == 0
    golden("check", result.out + result.err)


def test_check_json(invoke: Run, spec: Write) -> None:
    path = spec(LORA)
    result = invoke("check", path, "--json")
    assert result.err == ""
    wanted = {"file": str(path), "kind": "spec", "name": "tiny", "problems": [], "rules": 1, "valid": True}
    assert json.loads(result.out) == [wanted]


def test_check_tells_all_mistakes_of_all_files(invoke: Run, spec: Write, golden: Golden) -> None:
    bad = spec("- {role: '(', adapter: lora, rank: -3}", name="bad")
    worse = spec("- {role: .*, adapter: lorra}\n  - {role: .*, adapter: lora, rnak: 2}", name="worse")
    result = invoke("check", bad, spec(LORA), worse)
    assert result.code == 3
    golden("check-bad", result.out + result.err)
    told = invoke("check", bad, spec(LORA), worse, "--json")
    assert [item["valid"] for item in json.loads(told.out)] == [False, True, False]
    assert told.error["exit_code"] == 3


def test_schema_is_stable(invoke: Run) -> None:
    result = invoke("schema")
    assert result.code == 0
    assert result == invoke("--json", "schema")
    assert {"rank", "alpha"} <= set(json.loads(result.out)["$defs"]["Rule.lora"]["properties"])
    assert "rank" not in json.loads(invoke("schema", "--no-plugin", "lora").out)["$defs"]


def test_schema_of_a_study(invoke: Run) -> None:
    found = json.loads(invoke("schema", "--study").out)
    assert "arms" in found["properties"]
    assert "Rule.lora" in found["$defs"]


def test_plugins(invoke: Run, golden: Golden) -> None:
    chosen = [part for name in ("bert", "bias", "full", "lora") for part in ("--plugin", name)]
    result = invoke("plugins", *chosen, **FEW)
    assert result.code == 0
    golden("plugins", result.out + result.err)


def test_plugins_json(invoke: Run) -> None:
    rows = json.loads(invoke("--plugin", "lora", "plugins", "--json", **FEW).out)
    assert [(row["name"], row["kind"], row["plugin"], row["distribution"]) for row in rows] == [
        ("lora", "adapter", "lora", "model-surgery")
    ]


def test_no_plugin_blocks(invoke: Run) -> None:
    names = {row["name"] for row in json.loads(invoke("plugins", "--json").out)}
    left = {row["name"] for row in json.loads(invoke("--no-plugin", "lora", "plugins", "--json").out)}
    assert names - left == {"lora"}


@pytest.mark.parametrize("model", ["gpt2", "bert/model.safetensors", "llama/config.json", "persimmon"])
def test_inspect(model: str, invoke: Run, models: Path, golden: Golden) -> None:
    result = invoke("inspect", models / model)
    assert result.code == 0
    golden(f"inspect-{model.partition('/')[0]}", result.out + result.err)


def test_inspect_json(invoke: Run, models: Path) -> None:
    result = invoke("inspect", models / "gpt2", "--json")
    assert result.err == ""
    found = json.loads(result.out)
    sites = found["sites"]
    key = next(site for site in sites if site["role"] == "attention.key" and site["parameter"] == "weight")
    assert key["path"] == "transformer.h.0.attn.c_attn"
    assert key["shape"] == [16, 16]
    assert key["slice"] == {"axis": 1, "dim": 0, "length": 1, "start": 1, "view": [3, 16]}


def test_inspect_json_is_golden(invoke: Run, models: Path, golden: Golden) -> None:
    golden("inspect-json", invoke("inspect", models / "persimmon", "--json").out)


def test_inspect_counts_every_byte_once(invoke: Run, models: Path) -> None:
    for model in ("bert", "gpt2", "llama", "persimmon"):
        found = json.loads(invoke("inspect", models / model, "--json").out)
        assert sum(group["bytes"] for group in found["groups"]) == found["model"]["bytes"]
        assert sum(site["bytes"] for site in found["sites"] if not site["is_alias"]) == found["model"]["bytes"]


@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_inspect_marks_what_a_spec_touches(model: str, invoke: Run, spec: Write, models: Path, golden: Golden) -> None:
    path = spec(SPEC)
    result = invoke("inspect", models / model, "--spec", path)
    assert result.code == 0
    golden(f"inspect-spec-{model}", result.out + result.err)
    told = json.loads(invoke("plan", path, models / model, "--json").out)
    sites = json.loads(invoke("inspect", models / model, "--spec", path, "--json").out)["sites"]
    marked = [site["mark"] for site in sites if site["mark"]]
    assert sum(mark["parameters"] for mark in marked) == told["trainable"]["total"]
    for rule in told["rules"]:
        assert any(mark["rule"] == rule["index"] for mark in marked)


def test_inspect_of_a_spec_has_the_plans_errors_and_its_head(invoke: Run, spec: Write, models: Path) -> None:
    for rules in ("- {role: '(', adapter: full}", "- {role: attention.querry, adapter: full}"):
        path = spec(rules, TASK)
        asked, planned = invoke("inspect", models / "bert", "--spec", path), invoke("plan", path, models / "bert")
        assert asked == planned
        assert asked.code in (3, 4)
    shown = invoke("inspect", models / "bert", "--spec", spec(LORA, TASK), "--quiet")
    assert "head.classifier" in shown.out


def test_inspect_writes_a_page(invoke: Run, models: Path, spec: Write, tmp_path: Path) -> None:
    page = tmp_path / "a page.html"
    result = invoke("inspect", models / "gpt2", "--spec", spec(SPEC), "--html", page)
    assert (result.code, result.out) == (0, f"{page}\n")
    assert result.err == f"next: open '{page}' in a browser\n"
    assert page.read_text("utf-8").startswith("<!doctype html>")
    again = invoke("inspect", models / "gpt2", "--html", page)
    assert again.code == 6
    assert again.err == f"error: {page}: the file exists already\n  hint: name another file, or add --overwrite\n"
    assert json.loads(invoke("inspect", models / "gpt2", "--html", page, "--overwrite", "--json").out) == {
        "page": str(page)
    }
    assert invoke("inspect", models / "gpt2", "--overwrite").code == 2
    weights = models / "gpt2" / "model.safetensors"
    before = weights.read_bytes()
    assert invoke("inspect", weights, "--html", weights, "--overwrite").code == 6
    assert weights.read_bytes() == before


def test_inspect_with_the_head_of_a_task(invoke: Run, models: Path) -> None:
    found = json.loads(invoke("inspect", models / "llama", "--task", "text-classification", "--json").out)["sites"]
    assert [site["path"] for site in found if site["role"] == "head.classifier"] == ["score"]


def test_plan(invoke: Run, spec: Write, models: Path, golden: Golden) -> None:
    result = invoke("plan", spec(rf"{LORA}{chr(10)}  {HEAD}", TASK), models / "bert")
    assert result.code == 0
    assert "trainable  562 = 256 adapter + 306 head" in result.out
    golden("plan-task", result.out + result.err)


def test_plan_from_headers(invoke: Run, spec: Write, models: Path, golden: Golden) -> None:
    rules = (
        r"- {role: attention\.(query|value), adapter: lora, rank: 2, expect: 4}"
        "\n  - {role: .*, adapter: bias-only}"
    )
    result = invoke("plan", spec(rules, TASK), models / "gpt2", "--from-headers")
    assert result.code == 0
    golden("plan-headers", result.out + result.err)


def test_plan_with_the_cost_of_a_step(invoke: Run, spec: Write, models: Path, golden: Golden) -> None:
    path = spec(rf"{LORA}{chr(10)}  {HEAD}", TASK)
    result = invoke("plan", path, models / "bert", "--cost", "--batch-size", 4, "--length", 8)
    assert result.code == 0
    golden("plan-cost", result.out + result.err)
    told = json.loads(invoke("plan", path, models / "bert", "--cost", "--batch-size", 4, "--length", 8, "--json").out)
    cost = told["cost"]
    assert cost["batch"] == {"size": 4, "length": 8, "padded": False}
    assert (cost["gradients"], cost["optimizer"]) == (told["bytes"]["gradients"], told["bytes"]["optimizer"])
    assert cost["trainable"] == told["trainable"]["total"]
    assert set(cost["activations"]) >= {"attention", "adapters", "norms"}
    assert "cost" not in json.loads(invoke("plan", path, models / "bert", "--json").out)


def test_the_cost_of_headers_is_that_of_the_configuration(invoke: Run, spec: Write, models: Path) -> None:
    path = spec(r"- {role: attention\.(query|value), adapter: lora, rank: 2}")
    for options in ((), ("--device", "cuda")):
        asked = ("plan", path, models / "gpt2", "--cost", "--length", 8, *options, "--json")
        plain = json.loads(invoke(*asked, "--from-headers").out)["cost"]
        assert plain["why"] == ""
        found = json.loads(invoke(*asked).out)["cost"]
        assert {name: found[name] for name in ("forward", "backward")} == {
            name: plain[name] for name in ("forward", "backward")
        }


def test_what_goes_with_cost_only(invoke: Run, spec: Write, models: Path) -> None:
    for option in (("--batch-size", 4), ("--length", 8), ("--device", "cuda")):
        result = invoke("plan", spec(LORA), models / "bert", *option)
        assert result.code == 2
        assert "go with --cost" in result.err


def test_plan_says_what_it_cannot_predict(invoke: Run, spec: Write, models: Path) -> None:
    result = invoke("plan", spec("- {role: attention.query, adapter: ia3}"), models / "bert", "--cost")
    assert result.code == 0
    assert "not predicted: the adapter 'ia3' does not say what it computes" in result.out


def test_plan_tells_of_a_head_that_nobody_trains(invoke: Run, spec: Write, models: Path) -> None:
    def notes(rules: str, model: str, task: str) -> list[str]:
        result = invoke("plan", spec(rules, task), models / model)
        assert result.code == 0
        return [line for line in result.err.splitlines() if line.startswith("note: no rule trains")]

    assert notes(LORA, "bert", TASK) == [
        "note: no rule trains head.transform and head.classifier (bert.pooler.dense.weight, bert.pooler.dense.bias, "
        "classifier.weight, classifier.bias), which the checkpoint may not hold; add  "
        r"- {role: head\.(transform|classifier), adapter: full}"
    ]
    assert notes(f"{LORA}\n  {HEAD}", "bert", TASK) == []
    classifier = notes(f"{LORA}\n  {HEAD.replace('(transform|classifier)', 'transform')}", "bert", TASK)
    assert classifier[0].endswith(r"- {role: head\.classifier, adapter: full}")
    for model in ("gpt2", "llama"):
        assert notes(LORA, model, "task: {kind: causal-lm}\n") == []


TRAINED = TASK + "training: {steps: 2, learning_rate: 1e-3}\n"


@pytest.mark.parametrize(
    ("data", "is_asked"),
    [
        ("", True),
        ("data: {columns: {text: sentence}}\n", True),
        ("data: {train: a.csv}\n", False),
        ("data: {name: demo:x}\n", False),
    ],
)
def test_the_next_step_of_a_plan_can_be_taken(
    data: str,
    is_asked: bool,
    invoke: Run,
    spec: Write,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = spec(f"{LORA}\n  {HEAD}", TRAINED + data)
    told = invoke("plan", path, models / "bert").err.splitlines()[-1]
    assert f"--out runs/tiny --model {models / 'bert'}" in told
    assert told.endswith("--data FILE") == is_asked
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    assert "--out runs/tiny " in invoke("plan", path, models / "bert").err
    (tmp_path / "runs" / "tiny" / "run.json").write_text("{}")
    assert "--out runs/tiny-2 " in invoke("plan", path, models / "bert").err


def test_plan_uses_the_specs_own_model(invoke: Run, spec: Write, models: Path) -> None:
    result = invoke("plan", spec(LORA, f"model: {models / 'gpt2'}\n"), "--json")
    assert result.err == ""
    trainable = json.loads(result.out)["trainable"]
    assert trainable == {"adapter": 256, "head": 0, "share_of_model": 256 / 8128, "total": 256}


def test_plan_json_is_the_plan(invoke: Run, spec: Write, models: Path) -> None:
    import surgery

    path = spec(LORA)
    decided = surgery.plan(surgery.load_spec(path), models / "gpt2")
    assert json.loads(invoke("plan", path, models / "gpt2", "--json").out) == json.loads(decided.to_json())


def test_quiet_leaves_the_answer(invoke: Run, spec: Write, models: Path) -> None:
    path = spec(LORA)
    loud, quiet = invoke("plan", path, models / "gpt2"), invoke("plan", path, models / "gpt2", "-q")
    assert quiet.out == loud.out
    assert quiet.err == ""
    assert invoke("--quiet", "check", path).err == ""
