"""The page of `surgery inspect --html` in a real browser: what lights up is what the planner plans, and nothing else."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from headless import NEEDS_BROWSER, browse, drive, framed
from PIL import Image
from torch import nn

from surgery.architecture import Site
from surgery.errors import SurgeryError
from surgery.planning import Outline, Plan, anatomy, decide, inventory, outline
from surgery.planning.sites import sites_of
from surgery.registry import load_registry
from surgery.report.explorer import build_page
from surgery.spec import Spec, parse_spec

pytestmark = NEEDS_BROWSER

REGISTRY = load_registry()
HOSTILE = "</script><script>document[`title`]=1</script>"
SPEC = r"""
- {role: 'attention\.value', layers: [0], adapter: lora, rank: 1}
- {role: '.*', layers: last 1, adapter: bias-only}
- {target: '.*wte', adapter: full, tied: share}
"""


class Hostile(nn.Module):
    """Names that would break out of markup, turn text around, or fold to ASCII letters."""

    def __init__(self) -> None:
        super().__init__()
        for name in (HOSTILE, "é_ä-1", "\u212aeys", "a\u202eb", "x\ny", "٣", "<b>&amp;", "a'b", "1\u00a0_"):
            self.add_module(name, nn.Linear(3, 3))
        self.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
        self.scales = nn.ParameterList([torch.zeros(2), torch.zeros(3)])
        self.root = nn.Parameter(torch.zeros(2))


def _skeleton(name: str) -> Any:
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        GPT2Config,
        GPT2LMHeadModel,
        PersimmonConfig,
        PersimmonForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    if name == "hostile":
        return Hostile()
    if name == "bert":
        small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        return BertForMaskedLM(BertConfig(vocab_size=50, num_hidden_layers=12, **small))
    if name in ("gpt2", "gpt2 with a spec"):
        return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=20, n_embd=16, n_layer=3, n_head=2))
    if name == "t5":
        return T5ForConditionalGeneration(
            T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=4, num_heads=2)
        )
    small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 3}
    return PersimmonForCausalLM(PersimmonConfig(vocab_size=40, **small))


MODELS = ("bert", "gpt2", "gpt2 with a spec", "t5", "persimmon", "hostile")


@dataclass(frozen=True)
class Shown:
    """A model, its page, and the planner for it."""

    outline: Outline
    page: str
    above: tuple[Any, ...]

    def plan(self, rules: Iterable[Any]) -> Plan:
        spec = Spec(name="tried", rules=[*self.above, *rules])
        return decide(spec, self.outline.inventory, anatomy(self.outline.inventory, REGISTRY), REGISTRY)

    def takes(self, rules: list[Any]) -> bool:
        try:
            self.plan(Spec(name="tried", rules=rules).rules)
        except SurgeryError:
            return False
        return True

    def planned(self, text: str) -> list[str]:
        """The sites that the last rule wins, a rule as the page has written it."""
        rules = parse_spec("version: 1\nname: tried\nrules:\n" + text, REGISTRY).rules
        plan = self.plan(rules)
        by_name: dict[str, list[Site]] = {}
        for site in self.outline.sites:
            by_name.setdefault(site.name, []).append(site)
        won = [edit for edit in plan.edits if edit.rule == len(self.above)]
        joined = [[edit.site] if edit.site.slice else by_name[edit.site.name] for edit in won]
        keys = sorted(site.key for sites in joined for site in sites)
        assert len(keys) == plan.outcomes[-1].won
        return keys


@cache
def shown(name: str) -> Shown:
    model = _skeleton(name)
    # Without its configuration nothing can be measured, and what a name does not tell stays open.
    found = replace(inventory(model, REGISTRY), **({"config": None} if name == "persimmon" else {}))
    described = anatomy(found, REGISTRY)
    above = parse_spec(f"version: 1\nname: above\nrules:{SPEC}", REGISTRY).rules if "spec" in name else ()
    plan = decide(Spec(name="above", rules=above), found, described, REGISTRY) if above else None
    lines = outline(found, sites_of(found, described.architecture), described, plan)
    return Shown(lines, build_page(lines, REGISTRY), tuple(above))


APPLY = """
return %s.map(([role, target, layers, adapter, tied]) => {
  const {model, applyRule, readLayers, ruleYaml, Refusal} = view.explorer;
  try {
    const rule = {role, target, layers: readLayers(layers), adapter, tied};
    const result = applyRule(model, rule);
    return {keys: [...result.sites].map((site) => site.key), yaml: ruleYaml(model, rule, result), trains: result.trains};
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    return {refused: error.message};
  }
});
"""
ROLES = [
    "", ".*", r"attention\.(query|value)", r"attention\..*", r"mlp\.(?:up|down)", r"(?i)ATTENTION\.Q\w+", r"head\..*",
    r"embedding\.token|head\.lm", "embedding.token", r"other\..*", r"(?!attention).*", r"norm\..{3,}", "attention",
    r"cross_attention\.\w+",
]  # fmt: skip
TARGETS = [
    "", r".*\.\d+\..*", ".*bias", r".*(?<!bias)", r".*attn\.c_attn", ".*weight", r"[^.]*\.[^.]+", r".*[.]1[.].*",
    r"(?s:.*)\Z",
    "a'b.*|.*dense", r"(?:\w|[.])+", ".*(wte|wpe|query)", r"layers\.\d+", r"root|scales\..*|(?i).*KEYS",
]  # fmt: skip
LAYERS = ["all", "0", "last 2", "[0, -1]", "1-2", "first 1", "0-2,-1", "9", "[2,]"]


def _cases() -> list[tuple[str, str, str, str, str]]:
    adapters = REGISTRY.adapter_names()
    every = [
        (role, target, layers, adapter, tied)
        for role, target in itertools.product(ROLES, TARGETS)
        if role or target
        for layers, adapter, tied in itertools.product(LAYERS, adapters, ("error", "share", "untie"))
    ]
    # Every pair of patterns with some layers, adapter and answer to ties; 31 goes evenly into none of their numbers.
    return every[::31]


@pytest.mark.parametrize("name", MODELS)
def test_what_lights_up_is_what_the_planner_plans(name: str, tmp_path: Path) -> None:
    one = shown(name)
    cases = _cases()
    answers = drive(tmp_path, one.page, APPLY % json.dumps(cases))
    lit = 0
    for case, answer in zip(cases, answers, strict=True):
        if "refused" not in answer:
            lit += 1
            assert one.planned(answer["yaml"]) == sorted(answer["keys"]), case
            rules = parse_spec("version: 1\nname: tried\nrules:\n" + answer["yaml"], REGISTRY).rules
            assert one.plan(rules).outcomes[-1].parameters == answer["trains"], case
            continue
        role, target, layers, adapter, tied = case
        if "understood here" in answer["refused"]:  # the page's own limits
            continue
        rule = {"role": role or None, "target": target or None, "adapter": adapter, "tied": tied}
        options = REGISTRY.adapter(adapter).defaults()
        selector = {"[0, -1]": [0, -1], "[2,]": [2]}.get(layers, layers)
        assert not one.takes([{**rule, **options, "layers": selector}]), f"the page refuses {case}: {answer['refused']}"
    assert lit > (5 if name == "hostile" else 40)


TYPED = """
const type = (field, text) => {
  page.getElementById(field).value = text;
  page.getElementById(field).dispatchEvent(new view.Event("input", {bubbles: true}));
};
type("role", %s); type("layers", %s); type("adapter", %s);
page.getElementById("open-all").click();
for (const row of page.querySelectorAll(".row")) row.open = true;
await new Promise((done) => view.setTimeout(done, 50));
return {
  status: page.getElementById("status").textContent,
  yaml: page.getElementById("yaml").textContent,
  names: [...page.querySelectorAll(".row li.lit")].map((item) => item.textContent),
  rows: page.querySelectorAll(".row.lit").length,
  copy: page.getElementById("copy").disabled,
};
"""


@pytest.mark.parametrize(
    ("name", "role", "layers", "adapter"),
    [
        ("bert", r"attention\.(query|value)", "last 4", "lora"),
        ("gpt2", r"attention\.(query|value)", "[0, -1]", "lora"),
        ("persimmon", r"mlp\.up", "0-1", "lora"),
        ("hostile", r"other\..*", "all", "bias-only"),
    ],
)
def test_typing_lights_up_the_names_on_the_page(
    name: str, role: str, layers: str, adapter: str, tmp_path: Path
) -> None:
    one = shown(name)
    found = drive(tmp_path, one.page, TYPED % tuple(map(json.dumps, (role, layers, adapter))))
    keys = one.planned(found["yaml"])
    assert found["status"].startswith(f"{len(keys)} sites light up with ")
    names = [key.partition(":")[0] for key in keys]
    visible = [name.replace("\u202e", "\\u202e").replace("\n", "\\u000a") for name in names]
    assert sorted(found["names"]) == sorted(visible)
    assert 0 < found["rows"] <= len(keys)
    assert found["copy"] is False


OVERLAPS = """
page.getElementById("open-all").click();
for (const row of page.querySelectorAll(".row")) row.open = true;
page.getElementById("role").value = %s;
page.getElementById("role").dispatchEvent(new view.Event("input"));
await new Promise((done) => view.setTimeout(done, 50));
const boxes = (parent) => [...parent.children].filter((one) => one.offsetWidth).map((one) => [one, one.getBoundingClientRect()]);
const found = [];
for (const parent of page.querySelectorAll("summary, .notes, .inside dl, .fields, .field, .bar, .tools, .yaml, header, dl, .checks li")) {
  const all = boxes(parent), outer = parent.getBoundingClientRect();
  all.forEach(([one, a], index) => {
    if (a.right > outer.right + 1 || a.left < outer.left - 1) found.push(["outside", one.textContent]);
    if (one.scrollWidth > one.clientWidth + 1 && !one.matches("span, pre, label, small")) found.push(["cut", one.textContent]);
    for (const [other, b] of all.slice(index + 1)) {
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left), high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 1 && high > 1) found.push(["over", one.textContent, other.textContent]);
    }
  });
}
return {found, rows: page.querySelectorAll(".inside").length};
"""


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("name", MODELS)
def test_no_text_lies_over_another(name: str, width: int, tmp_path: Path) -> None:
    found = drive(
        tmp_path, shown(name).page, OVERLAPS % json.dumps(r"attention\..*|other\..*"), width=width, height=9000
    )
    assert found["found"] == []
    assert found["rows"] > 8


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_is_drawn(width: int, dark: bool, tmp_path: Path) -> None:
    page = shown("gpt2 with a spec").page
    if dark:
        page = page.replace("@media (prefers-color-scheme: dark)", "@media all")
        page = re.sub(r"style-src 'sha256-[^']*'", "style-src 'unsafe-inline'", page)
    picture = tmp_path / "page.png"
    frame = framed(tmp_path, page, width, 1600)
    browse(tmp_path, frame, f"--window-size={max(width, 500)},1600", f"--screenshot={picture}")
    with Image.open(picture) as image:
        seen = image.convert("RGB").crop((0, 0, width, 1600))
    background = max(seen.getcolors(1 << 24) or [])[1]
    assert isinstance(background, tuple)
    assert (sum(background) < 200) == dark
    for quarter in range(4):
        part = seen.crop((0, quarter * 400, width, quarter * 400 + 400))
        assert len(part.getcolors(1 << 24) or []) > 40


KEYS = """
const inputs = [...page.querySelectorAll("summary, input, select, button")];
let copied = "";
Object.defineProperty(view.navigator, "clipboard", {value: {writeText: async (text) => { copied = text; }}});
page.getElementById("close-all").click();
const group = page.querySelector(".group"), before = group.open;
group.querySelector("summary").click();
await new Promise((done) => view.setTimeout(done, 50));
const row = group.querySelector(".row");
row.querySelector("summary").click();
await new Promise((done) => view.setTimeout(done, 50));
const opened = [before, group.open, row.open, group.querySelectorAll(".row").length];
[...row.querySelectorAll("button")].find((one) => one.textContent === "Use this path").click();
page.getElementById("adapter").value = "full";
page.getElementById("adapter").dispatchEvent(new view.Event("input"));
page.getElementById("copy").click();
await new Promise((done) => view.setTimeout(done, 50));
return {
  opened, copied, target: page.getElementById("target").value, said: page.getElementById("copy").textContent,
  reachable: inputs.every((one) => one.tabIndex >= 0), title: page.title, scripts: page.scripts.length,
};
"""


@pytest.mark.parametrize("name", ["gpt2", "hostile"])
def test_lines_open_and_a_rule_is_copied(name: str, tmp_path: Path) -> None:
    one = shown(name)
    found = drive(tmp_path, one.page, KEYS)
    assert found["opened"] == [False, True, True, len(one.outline.groups[1].rows)]
    assert found["reachable"]
    assert found["said"] == "Copied"
    assert found["scripts"] == 2
    assert found["title"] == f"{one.outline.inventory.class_name}: anatomy"
    layers = len(one.outline.groups[1].layers or [])
    assert len(one.planned(found["copied"])) == layers
    assert found["copied"].startswith(f"- target: '{found['target']}'\n")


REFUSALS = [
    ("gpt2", r"attention\.(query|value)++", "all", "role at character 26: a possessive repeat is not understood here"),
    ("gpt2", r"(?<n>a)(?P=n)", "all", "role at character 8: a back reference is not understood here"),
    ("gpt2", "(a+)+", "[]", "layers must name at least one layer"),
    ("gpt2", ".*", "3", "layers layer 3 does not exist: the layers are 0 to 2"),
    ("gpt2", "embedding.tokn", "all", "no site matches; the pattern must match the whole role"),
    ("gpt2", "head.lm", "all", "tied lm_head.weight is tied to transformer.wte.weight"),
    ("persimmon", r"attention\.query", "all", "model.layers.0.self_attn.query_key_value.weight (and 2 more) may hold"),
    ("hostile", "attention.*", "all", "no site matches: nobody knows this model's roles; write a target"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "role", "layers", "words"), REFUSALS)
def test_what_cannot_be_meant_is_refused_in_words(
    name: str, role: str, layers: str, words: str, tmp_path: Path
) -> None:
    found = drive(tmp_path, shown(name).page, TYPED % tuple(map(json.dumps, (role, layers, "full"))))
    assert found["status"].startswith(f"Nothing lights up: {words}"), found["status"]
    assert (found["yaml"], found["names"], found["rows"], found["copy"]) == ("", [], 0, True)
