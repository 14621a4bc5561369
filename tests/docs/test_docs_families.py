"""The pages about types of models are what `docs/families.py` writes today."""

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


@pytest.fixture(scope="module")
def families() -> ModuleType:
    """The script under a name of its own: tests have a module `families` too."""
    spec = importlib.util.spec_from_file_location("docs_families", DOCS / "families.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


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


def test_coverage_tells_what_is_described_inferred_and_open(families: ModuleType) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = families.measure(load_registry(), ["bert", "helium", "persimmon", "xlnet", "nemotron"])
    statuses = {name: one.status for name, one in found.items()}
    assert statuses == {
        "bert": "declared",
        "helium": "inferred fully",
        "nemotron": "not built",
        "persimmon": "inferred partly",
        "xlnet": "declared",
    }
    assert found["persimmon"].named / found["persimmon"].weights == pytest.approx(0.75, abs=0.01)
    assert list(found["persimmon"].open) == ["self_attn.query_key_value"]
    assert not found["persimmon"].without
    assert found["bert"].lists == ["causal", "masked", "classes"]
    page = families.coverage_page(found, "1.2.3")
    assert "| 2 | declared | 100 % |" in page
    assert list(found["xlnet"].plain) == [
        f"rel_attn.{name}" for name in ("r_r_bias", "r_s_bias", "r_w_bias", "seg_embed")
    ]
    assert not found["xlnet"].open and not found["xlnet"].without
    assert "| `xlnet` | causal, classes | declared | 99.9 % | `rel_attn.r_r_bias`, `rel_attn.r_s_bias`" in page
    assert "| `persimmon` | causal, classes | inferred partly | 75.0 % |  | `self_attn.query_key_value` |  |" in page
    assert "| `nemotron` | causal: TypeError" in page


@pytest.mark.slow
def test_coverage_page() -> None:
    import transformers

    page = DOCS / "studies" / "architecture-coverage.md"
    written = page.read_text("utf-8").partition("\n## Not built")[0]  # errors differ with what else is installed
    if f"with transformers {transformers.__version__}." not in written:
        pytest.skip("written with another version of transformers")
    command = [sys.executable, str(DOCS / "families.py"), "--coverage"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert written == done.stdout.partition("\n## Not built")[0], f"python docs/families.py --coverage > {page.name}"
