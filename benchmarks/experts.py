"""LoRA on 3-D experts: small products against folding the whole weight: `python benchmarks/experts.py [--json]`.

One training step (forward and backward) of one layer's experts, timed interleaved in one process; the figures are
medians of pairwise ratios. `fold / products` above 1 means that the products are faster. Memory is the peak of what
one step allocates, as torch's profiler sees the allocator.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn
from torch.profiler import ProfilerActivity, profile

import surgery
from surgery.operation import host
from timing import interleaved, ratio

transformers.logging.set_verbosity_error()
REGISTRY = surgery.load_registry()
SIZES = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8}
EXPERTS, CHOSEN, RANK = 8, 2, 8


def layer(way: str, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """Return the experts of a Mixtral of one layer, and the operation that put LoRA on all of their weights."""
    config = transformers.MixtralConfig(
        **SIZES, num_hidden_layers=1, vocab_size=64, num_local_experts=EXPERTS, num_experts_per_tok=CHOSEN
    )
    model = transformers.MixtralForCausalLM(config).to(dtype)
    model.set_experts_implementation(way)
    rule = surgery.Rule(role=r"moe\.experts\..*", adapter="lora", rank=RANK)
    op = surgery.operate(
        model, surgery.plan(surgery.Spec(name="bench", rules=[rule]), model, REGISTRY), registry=REGISTRY
    )
    with torch.no_grad():
        for tensor in op.trainable().values():
            tensor.add_(torch.randn_like(tensor) * 0.02)
    return next(module for module in model.modules() if hasattr(module, "gate_up_proj")), op


@contextmanager
def folding(wanted: bool) -> Iterator[None]:
    """Within the block weights are folded, as on hosts whose forward is not known, if `wanted`."""
    original = host.factored_chain
    if wanted:
        host.factored_chain = lambda *_: None
    try:
        yield
    finally:
        host.factored_chain = original


def step(module: nn.Module, tokens: int, dtype: torch.dtype, *, folds: bool) -> Callable[[], None]:
    hidden = torch.randn(tokens, SIZES["hidden_size"], dtype=dtype, requires_grad=True)
    chosen = torch.stack([torch.randperm(EXPERTS)[:CHOSEN] for _ in range(tokens)])
    weights = torch.rand(tokens, CHOSEN).to(dtype)

    def act() -> None:
        for parameter in module.parameters():
            parameter.grad = None
        with folding(folds):
            module(hidden, chosen, weights).square().sum().backward()

    return act


def peak(act: Callable[[], None]) -> int:
    """Return the largest number of bytes that `act` held beyond what was there before."""
    act()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        act()
    events = sorted(
        (event.start_ns(), event.nbytes())
        for event in found.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    held = most = 0
    for _, size in events:
        held += size
        most = max(most, held)
    return most


def measure(way: str, tokens: int, dtype: torch.dtype, rounds: int) -> dict[str, float]:
    module, op = layer(way, dtype)
    folded = step(module, tokens, dtype, folds=True)
    products = step(module, tokens, dtype, folds=False)
    times = interleaved(folded, products, rounds)
    weight = sum(module._parameters[name].nbytes for name in ("gate_up_proj", "down_proj"))
    return {
        "fold / products": ratio(times),
        "products ms": 1e3 * sorted(times[1])[len(times[1]) // 2],
        "fold MiB": peak(folded) / 2**20,
        "products MiB": peak(products) / 2**20,
        "weights MiB": weight / 2**20,
        "trained": float(sum(parameter.numel() for parameter in op.trainable().values())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=6)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        for way, counts in (("eager", (64, 1024)), ("grouped_mm", (64, 1024)), ("batched_mm", (8, 32))):
            for tokens in counts:
                name = f"{way}, {str(dtype).removeprefix('torch.')}, {tokens} tokens"
                results[name] = measure(way, tokens, dtype, given.rounds)
                if not given.json:
                    print(name, {key: round(value, 2) for key, value in results[name].items()}, flush=True)
    if given.json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
