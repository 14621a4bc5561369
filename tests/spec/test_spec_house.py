"""The layer keeps to itself, its door is sorted, and its page in the docs is true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import surgery.spec
from surgery.errors import SpecError
from surgery.spec import DataSpec, ModelRef, ParameterGroup, Rule, Spec, TaskSpec, TrainingSpec, parse_spec

DOCS = (Path(__file__).parents[2] / "docs" / "spec.md").read_text("utf-8")


def test_the_door_is_sorted_and_complete() -> None:
    assert surgery.spec.__all__ == sorted(surgery.spec.__all__)
    assert all(hasattr(surgery.spec, name) for name in surgery.spec.__all__)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, surgery.spec\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'rich', 'typer'} & set(sys.modules)\n"
        "layers = {n for n in sys.modules if n.startswith('surgery.')}\n"
        "assert not heavy, heavy\n"
        "assert all(n.split('.')[1] in ('spec', 'errors') for n in layers), layers\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_files_stay_small() -> None:
    for path in Path(surgery.spec.__file__).parent.glob("*.py"):
        assert len(path.read_text("utf-8").splitlines()) < 400


@pytest.mark.parametrize("model", [Spec, ModelRef, TaskSpec, DataSpec, TrainingSpec, ParameterGroup, Rule])
def test_every_key_is_documented(model: type[surgery.spec.StrictModel]) -> None:
    for key in model.model_fields:
        if key != "options":
            assert f"`{key}`" in DOCS, f"{model.__name__}.{key}"


def test_the_examples_in_the_docs_load() -> None:
    blocks = re.findall(r"```yaml\n(version: .*?)```", DOCS, re.DOTALL)
    assert blocks
    for block in blocks:
        parse_spec(block)


def test_the_errors_in_the_docs_are_real(catalog: surgery.spec.Catalog) -> None:
    wrong, told = re.search(r"```yaml\n# file\.yaml\n(.*?)```.*?```text\n(.*?)```", DOCS, re.DOTALL).groups()  # type: ignore[union-attr]
    with pytest.raises(SpecError) as caught:
        parse_spec(wrong, "file.yaml", catalog)
    assert f"{caught.value}\n" == told
