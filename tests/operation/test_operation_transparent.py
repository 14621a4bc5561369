"""An operated model is the same model to everything around it: keys, identities, optimizers, copies, compilers."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from families import build
from operating import LORA, REGISTRY, base_bits, logits, move, operated, planned, unchanged
from torch import nn

from surgery import operate
from surgery.testing import ToyModel, assert_same_state, model_state

MODELS = ("BertForSequenceClassification", "GPT2LMHeadModel", "LlamaForCausalLM", "DistilBertForMaskedLM")
RULES = (
    {"role": r"attention\..*", **LORA},
    {"role": r"mlp\.up", "adapter": "lora", "rank": 2, "dropout": 0.3},
    {"role": r"norm\..*|mlp\..*", "adapter": "full"},
)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_seen_from_outside_stays(name: str) -> None:
    model, batch = build(name)
    before = model_state(model)
    keys, parameters = list(model.state_dict()), dict(model.named_parameters())
    classes = {path: type(module) for path, module in model.named_modules()}
    with operated(model, *RULES):
        assert [key for key in model.state_dict() if "surgery" not in key.split(".")] == keys
        after = dict(model.named_parameters())
        assert all(after[key] is parameter for key, parameter in parameters.items())
        modules = dict(model.named_modules())
        for path, cls in classes.items():
            assert isinstance(modules[path], cls)
            assert type(modules[path]).__name__ == cls.__name__
            assert repr(modules[path]).startswith(f"{cls.__name__}(")
        assert not any(parameter.requires_grad for parameter in parameters.values())
        assert {path: module.training for path, module in modules.items() if path in classes} == dict.fromkeys(
            classes, False
        )
        assert base_bits(model) == before.bits
        model(**batch)
    assert_same_state(before, model_state(model), "after undo")


def test_flags_come_back_as_they_were() -> None:
    model, _ = build("BertForSequenceClassification")
    model.bert.embeddings.requires_grad_(False)
    model.classifier.train()
    with unchanged(model, "by an operation"):
        operated(model, *RULES).undo()


@pytest.mark.parametrize("name", MODELS)
def test_base_checkpoints_load_strictly_while_operated(name: str) -> None:
    model, batch = build(name)
    other, _ = build(name, seed=1)
    state = {key: tensor.clone() for key, tensor in other.state_dict().items()}
    own = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with operated(model, *RULES) as op:
        model.load_state_dict(state, strict=True)
        with op.disabled(), pytest.raises(AssertionError):
            assert torch.equal(logits(model, batch), logits(build(name)[0], batch))
        model.load_state_dict(own, strict=True)
        whole = model.state_dict()
        model.load_state_dict(whole, strict=True)
        missing = {key: tensor for key, tensor in whole.items() if not key.endswith(".A")}
        with pytest.raises(RuntimeError, match="Missing key"):
            model.load_state_dict(missing, strict=True)
        with pytest.raises(RuntimeError, match="Unexpected key"):
            model.load_state_dict({**own, "nonsense": torch.ones(1)}, strict=True)


def test_an_optimizer_made_before_still_means_the_same_parameters() -> None:
    model, batch = build("GPT2LMHeadModel")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    bits = base_bits(model)
    with operated(model, *RULES):
        model.train()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        assert base_bits(model) == bits, "an old optimizer moved the base while operated"
        model.eval()
    assert [id(parameter) for parameter in model.parameters()] == held
    model(**batch, labels=batch["input_ids"]).loss.backward()
    optimizer.step()
    assert base_bits(model) != bits


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("is_merged", [False, True], ids=["live", "merged"])
def test_copies_and_pickles_compute_the_same(name: str, is_merged: bool) -> None:
    model, batch = build(name)
    with operated(model, *RULES) as op:
        if is_merged:
            op.merge()
        expected = logits(model, batch)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        copied = copy.deepcopy(model)
        for other in (loaded, copied):
            assert torch.equal(logits(other, batch), expected)
            assert {type(a) for a in other.modules()} == {type(a) for a in model.modules()}
            with torch.no_grad():  # no tensor is shared with the original
                for parameter in other.parameters():
                    parameter.fill_(0.5)
        assert torch.equal(logits(model, batch), expected)
        if is_merged:
            op.unmerge()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("adapter", ["lora", "full", "bias-only"])
def test_a_compiled_operated_model_follows_every_change(backend: str, adapter: str) -> None:
    """fullgraph=True; nothing that the compiler has cached may outlive a merge, a switch or an undo."""
    if not torch._dynamo.is_dynamo_supported():
        pytest.skip("torch.compile does not support this platform")
    torch._dynamo.reset()
    model, batch = ToyModel().eval(), ToyModel.batch()
    rule = {"target": ".*", "adapter": adapter, "tied": "share", "allow_oversized": True}
    op = operated(model, rule if adapter != "lora" else {**rule, "rank": 2})
    compiled = torch.compile(model, fullgraph=True, backend=backend)

    def same() -> bool:
        with torch.no_grad():
            return torch.equal(compiled(batch), model(batch))

    with torch.no_grad():
        first = compiled(batch).clone()
    assert same()
    op.merge()
    assert same()
    op.unmerge()
    assert same()
    with torch.no_grad():
        assert torch.equal(compiled(batch), first)
    with op.disabled():
        assert same()
    move(op, 1)
    assert same()
    op.undo()
    assert same()


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model, batch = build("GPT2LMHeadModel", attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    with operated(model, {"role": r"attention\..*", **LORA}, {"role": ".*", "adapter": "bias-only"}) as op:
        model.train()
        model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
        plain = {name: parameter.grad for name, parameter in op.trainable().items()}
        model.zero_grad()
        model.gradient_checkpointing_enable()
        model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
        for name, parameter in op.trainable().items():
            assert torch.equal(parameter.grad, plain[name]), name
        model.gradient_checkpointing_disable()


@pytest.mark.parametrize("name", MODELS)
def test_autocast_trains_in_the_adapters_own_dtype(name: str) -> None:
    model, batch = build(name)
    with operated(model, *RULES, {"target": ".*", "adapter": "full", "tied": "share"}) as op:
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch)[0].float().square().sum()
        loss.backward()
        for key, parameter in op.trainable().items():
            if "pooler" in key or "position" in key or "token_type" in key:
                continue
            assert parameter.grad is not None, key
            assert parameter.grad.dtype == parameter.dtype == torch.float32
        model.eval()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_base_in_sixteen_bits_trains_lora_in_float32(dtype: torch.dtype) -> None:
    model, batch = build("LlamaForCausalLM")
    model.to(dtype)
    with unchanged(model, "by training in 16 bits"), operated(model, {"role": r"(attention|mlp)\..*", **LORA}) as op:
        assert {parameter.dtype for parameter in op.trainable().values()} == {torch.float32}
        out = model(**batch)[0]
        assert out.dtype == dtype
        out.float().square().mean().backward()
        assert all(parameter.grad is not None for parameter in op.trainable().values())


def test_slices_of_one_input_share_one_dropout_mask() -> None:
    """With B = 1 and A = identity-like rows, the updates of query, key and value are the same masked sums."""
    from transformers.pytorch_utils import Conv1D

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.ModuleDict({"fused": Conv1D(18, 6)})])
            self.config = ToyModel().config

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.layers[0]["fused"](x)
            return out

    model = Net()
    nn.init.zeros_(model.layers[0]["fused"].weight)
    rule = {"role": r"attention\.(query|key|value)", "adapter": "lora", "rank": 1, "dropout": 0.5, "expect": 3}
    with operate(model, planned(model, rule), registry=REGISTRY) as op:
        with torch.no_grad():
            for parameter in op.trainable().values():
                parameter.fill_(1.0)
        model.train()
        inputs = torch.randn(64, 6)
        query, key, value = model(inputs).chunk(3, dim=-1)
        assert torch.equal(query, key)
        assert torch.equal(key, value)
        model.eval()
        assert not torch.equal(model(inputs)[:, :6], query)


@pytest.mark.parametrize("init", ["kaiming", "gaussian", "orthogonal", "zeros"])
def test_one_sites_bits_do_not_depend_on_what_else_is_targeted(init: str) -> None:
    model, _ = build("GPT2LMHeadModel")

    def initial(*rules: dict[str, object], seed: int = 0) -> dict[str, bytes]:
        with operate(model, planned(model, *rules, seed=seed), registry=REGISTRY) as op:
            return {key: parameter.detach().numpy().tobytes() for key, parameter in op.trainable().items()}

    state = torch.random.get_rng_state()
    lora = {"adapter": "lora", "rank": 2, "init": init}
    every = initial({"role": r"(attention|mlp)\..*", **lora})
    for rule in (
        {"role": r"attention\.value", "layers": [1], **lora},
        {"role": r"mlp\.down", **lora},
        {"target": r"transformer\.h\.1\..*", "role": r"attention\..*", **lora},
    ):
        some = initial(rule)
        assert some
        assert {key: every[key] for key in some} == some
        with_more = initial({"role": r"norm\..*", "adapter": "full"}, rule)
        assert {key: with_more[key] for key in some} == some
    if init != "zeros":
        assert initial({"role": r"mlp\.down", **lora}, seed=1) != initial({"role": r"mlp\.down", **lora})
    assert torch.equal(state, torch.random.get_rng_state())


def test_an_instance_forward_is_respected() -> None:
    """accelerate's hooks put a forward on the instance, past the class: the adapter must be seen there as well."""
    model = nn.Sequential(nn.Linear(4, 3))
    inner, calls = model[0].forward, []

    def wrapped(inputs: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return inner(inputs)

    model[0].forward = wrapped  # type: ignore[method-assign]
    inputs = torch.randn(2, 4)
    plain = model(inputs)
    with operated(model, {"target": "0", "adapter": "lora", "rank": 1}) as op:
        assert op.probe(inputs) == {"0.weight": 1}
        changed = model(inputs)
        assert not torch.equal(changed, plain)
        op.merge()
        assert torch.allclose(model(inputs), changed, atol=1e-6)
    assert torch.equal(model(inputs), plain)
    assert len(calls) == 5


def test_an_input_of_one_dimension_and_an_empty_one() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    with operated(model, {"target": "0", "adapter": "lora", "rank": 1}):
        assert model(torch.randn(4)).shape == (3,)
        assert model(torch.randn(0, 4)).shape == (0, 3)
