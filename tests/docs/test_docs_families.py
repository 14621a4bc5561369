"""The pages about types of models are what `docs/families.py` and `docs/architecture_coverage.py` write today."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from types import ModuleType

import pytest
from pages import ROOT

from surgery import Architecture, Registry, Slice, load_registry
from surgery.registry import Provenance, Registered

DOCS = ROOT / "docs"


def script(name: str) -> ModuleType:
    """A script of the docs under a name of its own: tests have a module `families` too."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def families() -> ModuleType:
    return script("families")


def test_types_that_plugins_describe(families: ModuleType) -> None:
    written = (DOCS / "architectures.md").read_text("utf-8")
    assert written == families.declared(load_registry()), "python docs/families.py > docs/architectures.md"


def test_a_row_says_types_stacks_families_and_fused_parts(families: ModuleType) -> None:
    roles = {"attention.query": Slice("*.qk", (2, -1)), "attention.key": Slice("*.qk", (2, -1), start=1)}
    mine = Architecture(("b", "a"), "", {"decoder": "layers"}, {**roles, "mlp.up": "*.up"})
    own = Registered(mine, Provenance("mine", families.DISTRIBUTION, "1"))
    other = Registered(Architecture(("c",), "", {}, {}), Provenance("theirs", "elsewhere", "1"))
    page = families.declared(Registry({}, {"a": own, "b": own, "c": other}, {}, {}, {}))
    assert page.splitlines()[-1] == "| `a`, `b` | `mine` | `decoder` | attention, mlp | `qk`: attention query key |"
    assert "\n2 types:" in page


def test_coverage_tells_what_is_described_inferred_and_measured() -> None:
    coverage = script("architecture_coverage")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = coverage.measure(load_registry(), ["bert", "gemma4_text", "dots1", "persimmon", "xlnet"])
    statuses = {name: one.status for name, one in found.items()}
    assert statuses == {
        "bert": "declared",
        "gemma4_text": "inferred partly",
        "dots1": "not built",
        "persimmon": "inferred fully",
        "xlnet": "declared",
    }
    assert list(found["gemma4_text"].without) == ["per_layer_input_gate", "per_layer_projection"]
    assert list(found["xlnet"].plain) == ["rel_attn.seg_embed"]
    assert found["bert"].lists == ["causal", "masked", "classes"]
    assert (found["persimmon"].agreed, found["persimmon"].new) == (3, 1)
    assert not any(one.contradictions for one in found.values())
    page = coverage.page(found, "1.2.3")
    assert "4 types can be built. In 3 of them (75 %)" in page
    assert "| `persimmon` | causal, classes | inferred fully | 100 % | 4 (1) |  |  |  |" in page
    assert "| 2 | `rel_attn.seg_embed` |" in page
    assert "None contradicts." in page
    assert "| `dots1` | causal: TypeError" in page


def test_coverage_tells_what_contradicts() -> None:
    coverage = script("architecture_coverage")
    registry = load_registry()
    bert = registry.architectures["bert"].value
    roles = {**bert.roles, "mlp.up": bert.roles["mlp.down"], "mlp.down": bert.roles["mlp.up"]}
    wrong = Architecture(("bert",), bert.base, bert.stacks, roles, bert.heads)
    table = {"bert": Registered(wrong, Provenance("wrong", "elsewhere", "1"))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = coverage.measure(Registry({}, table, registry.models, {}, {}), ["bert"])
    assert len(found["bert"].contradictions) == 2
    assert "These contradict (2):\n\n- " in coverage.page(found, "1.2.3")


@pytest.mark.slow
def test_coverage_page() -> None:
    import transformers

    page = DOCS / "studies" / "architecture-coverage.md"
    written = page.read_text("utf-8").partition("\n## Not built")[0]  # errors differ with what else is installed
    if f"with transformers {transformers.__version__}." not in written:
        pytest.skip("written with another version of transformers")
    done = subprocess.run(
        [sys.executable, str(DOCS / "architecture_coverage.py")], capture_output=True, text=True, check=True
    )
    assert written == done.stdout.partition("\n## Not built")[0], f"python docs/architecture_coverage.py > {page.name}"
