"""Ratios against peft on this machine: `python benchmarks/against_peft.py [--json] [--quick]`.

Needs the `bench` extra. Everything is random-initialised, offline, and timed interleaved in one process; the figures
are medians of pairwise ratios. `surgery / peft` below 1 means that surgery is faster.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from typing import Any

import peft
import torch
import transformers
from torch import nn

import surgery
from surgery.operation.bits import same_bits
from timing import interleaved, ratio

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
REGISTRY = surgery.load_registry()


def bert(layers: int = 12, width: int = 768) -> nn.Module:
    heads = width // 64
    config = transformers.BertConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width
    )
    return transformers.BertForSequenceClassification(config)


def gpt2(layers: int = 6, width: int = 384) -> nn.Module:
    config = transformers.GPT2Config(n_embd=width, n_layer=layers, n_head=width // 64, vocab_size=5000, n_positions=256)
    config.bos_token_id = config.eos_token_id = 0
    return transformers.GPT2LMHeadModel(config)


def spec(role: str, adapter: str = "lora", **options: Any) -> surgery.Spec:
    return surgery.Spec(name="bench", rules=[surgery.Rule(role=role, adapter=adapter, **options)])


def injection(rounds: int) -> dict[str, float]:
    """BERT-base, LoRA r=8 on query and value: from a plain model to an adapted one (surgery: plan and operate)."""
    model = bert()
    wanted = spec(r"attention\.(query|value)", rank=8)

    def ours() -> None:
        op = surgery.operate(model, surgery.plan(wanted, model, REGISTRY), registry=REGISTRY)
        op.undo()

    config = peft.LoraConfig(r=8, target_modules=["query", "value"])
    ours_times, theirs_times, plan_times = [], [], []
    ours()
    for _ in range(rounds):
        start = time.perf_counter()
        decided = surgery.plan(wanted, model, REGISTRY)
        middle = time.perf_counter()
        op = surgery.operate(model, decided, registry=REGISTRY)
        ours_times.append(time.perf_counter() - middle)
        plan_times.append(middle - start)
        op.undo()
        start = time.perf_counter()
        wrapped = peft.get_peft_model(model, config)
        theirs_times.append(time.perf_counter() - start)
        model = wrapped.unload()
    return {
        "operate_ms": 1e3 * statistics.median(ours_times),
        "plan_ms": 1e3 * statistics.median(plan_times),
        "peft_ms": 1e3 * statistics.median(theirs_times),
        "peft/surgery (operate)": statistics.median(b / a for a, b in zip(ours_times, theirs_times, strict=True)),
        "peft/surgery (plan and operate)": statistics.median(
            b / (a + c) for a, b, c in zip(ours_times, theirs_times, plan_times, strict=True)
        ),
    }


def linearity(rounds: int) -> dict[str, float]:
    """300 Linear modules: cost of the 50th adapter over the first, each added to all that are there."""
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(300)))
    wanted = surgery.Spec(name="bench", rules=[surgery.Rule(target=r"\d+", adapter="lora", rank=2)])
    decided = surgery.plan(wanted, model, REGISTRY)
    ratios = []
    for _ in range(rounds):
        op = surgery.operate(model, decided, name="a0", registry=REGISTRY)
        seconds = []
        for index in range(1, 51):
            start = time.perf_counter()
            op.add(decided, f"a{index}")
            seconds.append(time.perf_counter() - start)
        ratios.append(statistics.median(seconds[-3:]) / statistics.median(seconds[:3]))
        op.undo()
    return {"50th/first": statistics.median(ratios)}


def _step(model: nn.Module, parameters: list[nn.Parameter], batch: dict[str, torch.Tensor]) -> Any:
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(**batch).loss.backward()
        optimizer.step()

    return step


def _batch(kind: str) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 1000, (8, 64))
    return {"input_ids": ids, "labels": torch.randint(0, 2, (8,)) if kind == "bert" else ids}


def training_step(kind: str, role: str, modules: list[str], dropout: float, rounds: int) -> dict[str, float]:
    """One step (forward, backward, fused AdamW): surgery's LoRA r=8 against peft's on the same model and batch."""
    base = bert(6, 384) if kind == "bert" else gpt2()
    other = copy.deepcopy(base)
    op = surgery.operate(base, surgery.plan(spec(role, rank=8, dropout=dropout), base, REGISTRY), registry=REGISTRY)
    wrapped = peft.get_peft_model(other, peft.LoraConfig(r=8, lora_dropout=dropout, target_modules=modules))
    batch = _batch(kind)
    ours = _step(base, list(op.trainable().values()), batch)
    theirs = _step(wrapped, [p for p in wrapped.parameters() if p.requires_grad], batch)
    return {"surgery/peft": ratio(interleaved(ours, theirs, rounds))}


def full_step(kind: str, rounds: int) -> dict[str, float]:
    """A step of full tuning as an adapter against a step of the plain model."""
    base = bert(6, 384) if kind == "bert" else gpt2()
    plain = copy.deepcopy(base)
    op = surgery.operate(base, surgery.plan(spec(".*", "full"), base, REGISTRY), registry=REGISTRY)
    batch = _batch(kind)
    ours = _step(base, list(op.trainable().values()), batch)
    theirs = _step(plain, list(plain.parameters()), batch)
    return {"surgery/plain": ratio(interleaved(ours, theirs, rounds))}


def drift() -> dict[str, float]:
    """Share of elements whose bits differ after merge and unmerge, |dW| about |W|, 512 x 512, three dtypes."""
    result: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        torch.manual_seed(0)
        weight = torch.randn(512, 512).mul(0.02).to(dtype)
        for name in ("surgery", "peft"):
            model = nn.Sequential(nn.Linear(512, 512, bias=False)).to(dtype)
            model[0].weight.data.copy_(weight)
            if name == "surgery":
                decided = surgery.plan(
                    surgery.Spec(name="d", rules=[surgery.Rule(target="0", adapter="lora", rank=8, alpha=8)]),
                    model,
                    REGISTRY,
                )
                op = surgery.operate(model, decided, registry=REGISTRY)
                _scale(op.trainable().values())
                op.merge(), op.unmerge()
                live = model[0].weight
            else:
                wrapped = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=8, target_modules=["0"]))
                _scale(p for p in wrapped.parameters() if p.requires_grad)
                wrapped.merge_adapter(), wrapped.unmerge_adapter()
                live = wrapped.base_model.model[0].base_layer.weight
            result[f"{name} {str(dtype)[6:]}"] = float((~same_bits(live, weight)).double().mean())
    return result


@torch.no_grad()
def _scale(parameters: Any) -> None:
    """Make B A about as large as the weights (std 0.02) at rank 8."""
    for parameter in parameters:
        parameter.copy_(torch.randn_like(parameter) * (0.02 / 8**0.5) ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 6 if options.quick else 20
    figures = {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__},
        "injection into BERT-base": injection(rounds),
        "adding to 300 modules": linearity(3),
        "step, BERT 6x384, q and v, no dropout": training_step(
            "bert", r"attention\.(query|value)", ["query", "value"], 0.0, 2 * rounds
        ),
        "step, BERT 6x384, all linears, dropout 0.1": training_step(
            "bert",
            r"(attention|mlp)\..*",
            ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"],
            0.1,
            2 * rounds,
        ),
        "step, GPT-2 6x384, c_attn (surgery: q and v slices), dropout 0.1": training_step(
            "gpt2", r"attention\.(query|value)", ["c_attn"], 0.1, 2 * rounds
        ),
        "full tuning, BERT 6x384": full_step("bert", 2 * rounds),
        "full tuning, GPT-2 6x384": full_step("gpt2", 2 * rounds),
        "share of elements changed by merge and unmerge": drift(),
    }
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    for title, values in figures.items():
        print(title)
        for name, value in values.items():
            print(f"  {name:<34} {value if isinstance(value, str) else f'{value:.3g}'}")


if __name__ == "__main__":
    main()
