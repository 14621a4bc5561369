"""Two processes that share one model give what one process gives, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from small import make_tokenizer, sentences, write_lines

from surgery import merge_checkpoint, unmerge_checkpoint
from surgery.errors import StateError, TrainingError
from surgery.operation import load_adapter
from surgery.registry import Registry, load_registry
from surgery.spec import Spec
from surgery.training import train
from surgery.training.fit import last_checkpoint

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="this PyTorch has no gloo"
)
JobOf = Mapping[str, Any]
LAUNCH = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--use_fsdp", "--fsdp_version", "2"]
LORA = {"role": r"attention\.(query|value)", "adapter": "lora", "rank": 4, "dropout": 0.1}
HEAD = {"target": "classifier", "adapter": "full"}
TRAINING = {"steps": 4, "batch_size": 2, "learning_rate": 1e-2, "evaluate_every": 2, "max_grad_norm": 0.05}
"""`max_grad_norm` is low, so that gradients are clipped."""


@pytest.fixture(scope="module")
def everything() -> Registry:
    return load_registry()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Splits whose last evaluation batch is uneven, and whose number of batches is odd."""
    folder = tmp_path_factory.mktemp("data")
    for split, rows in {"train": sentences(30), "validation": sentences(9, 100), "test": sentences(5, 200)}.items():
        write_lines(folder / f"{split}.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT without a head, a GPT-2 with its tied one, a Llama; every share of a tensor fills whole vectors."""
    from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=64, max_position_embeddings=32, **sizes)).save_pretrained(root / "bert")
    gpt2 = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(gpt2).save_pretrained(root / "gpt2")
    llama = LlamaConfig(vocab_size=64, max_position_embeddings=32, num_key_value_heads=1, **sizes)
    LlamaForCausalLM(llama).to(torch.bfloat16).save_pretrained(root / "llama")
    make_tokenizer(["[PAD]", "[UNK]"], unk_token="[UNK]", pad_token="[PAD]").save_pretrained(root / "bert")
    for name in ("gpt2", "llama"):
        make_tokenizer(["<end>", "<unk>"], unk_token="<unk>", eos_token="<end>").save_pretrained(root / name)
    return root


def spec(model: Path, *rules: Mapping[str, Any], **training: Any) -> dict[str, Any]:
    labels = "bert" in model.name
    return {
        "name": "small",
        "model": str(model),
        "task": {"kind": "text-classification" if labels else "causal-lm", "max_length": 24},
        "training": {**TRAINING, **training},
        "rules": [*rules, HEAD] if labels else list(rules),
    }


def in_one(spec: dict[str, Any], out: Path, registry: Registry, data: Path) -> Path:
    """Train in this process, which computes one after the other what two compute at once."""
    train(
        Spec(**{**spec, "training": {**spec["training"], "gradient_accumulation": 2}}),
        out,
        registry=registry,
        data=data,
    )
    return out


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def joined(folder: Path, *jobs: JobOf) -> list[list[dict[str, Any]]]:
    """Make the jobs in two processes that share models; return what each of them saw."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    command = [sys.executable, *LAUNCH, str(Path(__file__).with_name("joined.py")), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(Path(f"{file}.{number}").read_text()) for number in range(2)]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def repeated(folder: Path) -> dict[str, Any]:
    """Return what both worlds must agree in: everything but the clock, the memory of a process, and the spec's batch."""
    result = json.loads((folder / "result.json").read_text())
    for key in ("seconds", "step_times", "memory"):
        del result["fit"][key]
    adapter = json.loads((folder / "adapter" / "adapter.json").read_text())
    del adapter["spec"]["training"]
    del adapter["plan_hash"]
    identity = json.loads((folder / "run.json").read_text())["identity"]
    del identity["spec"]
    return {
        "result": result,
        "curve": (folder / "metrics.jsonl").read_text(),
        "adapter": adapter,
        "identity": identity,
        "tensors": (folder / "adapter" / "adapter.safetensors").read_bytes(),
        "files": files(folder),
    }


def assert_same_run(two: Path, one: Path) -> None:
    ours, theirs = repeated(two), repeated(one)
    for key, value in theirs.items():
        assert ours[key] == value, key


def assert_nearly_the_same_run(two: Path, one: Path) -> None:
    """The documented bounds, where parts of tensors do not fill whole vectors."""
    from safetensors.torch import load_file

    ours, theirs = ({**repeated(path)["result"]["fit"]} for path in (two, one))
    assert ours["order_hash"] == theirs["order_hash"]
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-6)
    tensors = [load_file(path / "adapter" / "adapter.safetensors") for path in (two, one)]
    assert tensors[0].keys() == tensors[1].keys()
    for name, tensor in tensors[1].items():
        assert float((tensors[0][name] - tensor).abs().max()) < TRAINING["learning_rate"] / 100


def test_the_page_says_the_command() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text("utf-8")
    assert f"accelerate launch {' '.join(LAUNCH[2:])} -m surgery train notes.yaml --out runs/notes" in page


def test_a_study_is_no_job_of_several(everything: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from surgery.study import compare

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(StateError, match="a study runs each cell in one process, and a launcher started 2"):
        compare("specs/demo-bert.yaml", tmp_path / "study", registry=everything)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("FSDP_VERSION", "1", "FSDP1 is not supported"),
        ("FSDP_OFFLOAD_PARAMS", "true", "--fsdp_offload_params is not supported"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "--fsdp_activation_checkpointing is not supported"),
    ],
)
def test_what_the_launcher_may_not_ask_for(name: str, value: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from surgery.training import shards

    monkeypatch.setenv("FSDP_VERSION", "2")
    shards._refuse_settings()
    monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError) as caught:
        shards._refuse_settings()
    assert caught.value.what == what


def test_the_documented_command(models: Path, data: Path, everything: Registry, tmp_path: Path) -> None:
    """A run, its merge in memory and on disk, and the way back, as one process has them."""
    told = spec(models / "bert", LORA, save_every=2)
    (tmp_path / "spec.yaml").write_text(json.dumps({"version": 1, **told}))
    two = tmp_path / "two"
    command = [sys.executable, *LAUNCH, "-m", "surgery", "train", str(tmp_path / "spec.yaml")]
    command += ["--out", str(two), "--data", str(data), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained small: 4 steps, 16 examples") == 1  # one process speaks for all
    one = in_one(told, tmp_path / "one", everything, data)
    assert_same_run(two, one)
    memory = [json.loads((folder / "result.json").read_text())["fit"]["memory"] for folder in (two, one)]
    assert memory[0]["weights"] < 0.6 * memory[1]["weights"]
    assert memory[0]["gradients"] * 2 == memory[1]["gradients"]
    norms = json.loads((one / "result.json").read_text())["fit"]["clip_norms"]
    assert min(norms) > TRAINING["max_grad_norm"]
    assert json.loads((two / "run.json").read_text())["machine"]["processes"] == 2
    from transformers import AutoModelForSequenceClassification

    base = tmp_path / "base"  # with a head, as a checkpoint to merge into must have
    model = AutoModelForSequenceClassification.from_pretrained(models / "bert", num_labels=2)
    model.save_pretrained(base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with load_adapter(model, two / "adapter", registry=everything) as operation:
        operation.merge()
        merged = {name: tensor.clone() for name, tensor in model.state_dict().items() if ".surgery." not in name}
        assert sum(not torch.equal(merged[name], tensor) for name, tensor in before.items()) == 6
        operation.unmerge()
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    merge_checkpoint(base, two / "adapter", tmp_path / "merged", registry=everything)
    merge_checkpoint(base, one / "adapter", tmp_path / "merged1", registry=everything)
    from safetensors.torch import load_file

    on_disk = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.equal(on_disk[name], tensor) for name, tensor in merged.items())
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() == (
        tmp_path / "merged1" / "model.safetensors"
    ).read_bytes()
    unmerge_checkpoint(tmp_path / "merged", tmp_path / "unmerged", registry=everything)
    assert (tmp_path / "unmerged" / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


def test_jobs_of_two_processes(models: Path, bert: Path, data: Path, everything: Registry, tmp_path: Path) -> None:
    """One launch, since starting takes most of the time: tied weights, full tuning, bfloat16, refusals, the operation."""
    full = {"role": ".*", "adapter": "full"}
    tied = {"role": r"embedding\.token", "adapter": "lora", "rank": 4, "tied": "share"}
    told = {
        "full": spec(models / "bert", {**full, "exclude": {"target": "classifier"}}),
        "tied": spec(models / "gpt2", tied, {"role": r"norm\..*", "adapter": "full"}, LORA, gradient_accumulation=1),
        "half": spec(models / "llama", LORA, precision="bf16"),
    }
    odd = spec(bert, {**full, "exclude": {"target": "classifier"}}, steps=20)  # a bias of 16, of which each has 8
    mixed = spec(models / "llama", {"role": r"norm\..*", "adapter": "full"}, LORA)
    jobs: list[JobOf] = [
        *({"job": "train", "spec": one, "out": str(tmp_path / name), "data": str(data)} for name, one in told.items()),
        {"job": "other_data", "spec": spec(models / "bert", LORA)},
        {"job": "train", "spec": mixed, "out": str(tmp_path / "mixed"), "data": str(data)},
        {"job": "memory", "spec": told["tied"], "data": str(data)},
        {"job": "by_hand", "spec": told["tied"], "data": str(data)},
        {"job": "train", "spec": odd, "out": str(tmp_path / "odd"), "data": str(data)},
    ]
    first, second = joined(tmp_path, *jobs)
    for name, one in told.items():
        assert_same_run(tmp_path / name, in_one(one, tmp_path / f"{name}-one", everything, data))
    other, mixture, memory, by_hand, _ = first[3:]
    assert other["error"] == second[3]["error"]
    assert other["error"][:2] == ["TrainingError", "processes 0 and 1 do not start from the same: data.train differ"]
    assert mixture["error"][1].startswith("the trainable tensors are bfloat16 and float32")
    assert not (tmp_path / "mixed" / "result.json").exists()
    # Every process has the whole operation before, while and after its copy is trained.
    assert memory["moved"]
    assert (memory["changed"], memory["differ"]) == (
        14,
        [],
    )  # of the norms 10, two of c_attn, both names of the tied one
    for key in ("start", "changed", "differ", "live", "pristine"):
        assert memory[key] == second[5][key]
    assert by_hand["copy"]
    assert by_hand["base"]
    assert by_hand["itself"]
    assert by_hand["merged"] < 1e-5
    for act, refusal in by_hand["refused"].items():
        assert refusal[0] == "StateError", act
        assert "sharded" in refusal[1] or "FSDPModule" in refusal[1], act
    assert "copy.deepcopy(op.model)" in by_hand["refused"]["merge"][2]
    assert_nearly_the_same_run(tmp_path / "odd", in_one(odd, tmp_path / "odd-one", everything, data))


def test_a_killed_process_and_going_on(models: Path, data: Path, everything: Registry, tmp_path: Path) -> None:
    """kill -9 of one process ends the other; a second launch goes on and gives what a whole run of one process gives."""
    told = spec(models / "bert", LORA, steps=40, evaluate_every=20, save_every=5)
    job = {"job": "train", "spec": told, "out": str(tmp_path / "two"), "data": str(data)}
    (tmp_path / "first.json").write_text(json.dumps([job]))
    command = [sys.executable, *LAUNCH, str(Path(__file__).with_name("joined.py")), str(tmp_path / "first.json")]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait(lambda: last_checkpoint(tmp_path / "two" / "checkpoints") is not None)
        os.kill(_second_of(process.pid), signal.SIGKILL)
        assert process.wait(timeout=60) != 0
    finally:
        process.kill()
    assert not (tmp_path / "two" / "result.json").exists()
    assert not list((tmp_path / "two").glob("adapter*"))
    checkpoint = last_checkpoint(tmp_path / "two" / "checkpoints")
    assert checkpoint is not None
    assert sorted(path.name for path in checkpoint.iterdir() if "rng" in path.name) == []
    with pytest.raises(TrainingError, match="the run began with 2 processes, and this is one process") as caught:
        train(Spec(**told), tmp_path / "two", registry=everything, data=data, resume=True)
    assert caught.value.hint == "start it with accelerate launch --num_processes 2"
    joined(tmp_path, {**job, "resume": True})
    assert_same_run(tmp_path / "two", in_one(told, tmp_path / "one", everything, data))


def wait(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _second_of(launcher: int) -> int:
    """Return the process that works as number 1."""
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == launcher and "RANK=1" in (path / "environ").read_text().split("\0"):
                    return int(path.name)
            except OSError:
                continue
    raise AssertionError("no second process")
