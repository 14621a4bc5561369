"""The demonstration material of model-surgery: text collections, a sentence encoder's weights and a small GPT-2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from surgery import DataSource, ModelSource, Rows, hookimpl


class DemoModels(ModelSource):
    """`demo:minilm`, from an installed distribution, and `demo:gpt2`, which this package carries."""

    name = "demo"
    names = ("demo:gpt2", "demo:minilm")
    summary = "demo:minilm (all-MiniLM-L6-v2, extra `demo`) and demo:gpt2 (1.3 M parameters, shipped)"

    def resolve(self, ref: str) -> Path | str | None:
        if ref == "demo:gpt2":
            return Path(__file__).parent / "gpt2"
        if ref == "demo:minilm":
            from surgery_demo.minilm import find_minilm

            return find_minilm()
        return None


class StdlibDocstrings(DataSource):
    """First paragraphs of docstrings -> chapter of the library reference."""

    name = "demo:stdlib-docstrings"
    summary = "docstrings of Python's standard library, labelled with their chapter of the reference"

    def load(self) -> Mapping[str, Rows]:
        from surgery_demo.corpora import stdlib_docstrings

        return stdlib_docstrings()


class StdlibText(DataSource):
    """What the small GPT-2 was pretrained on, with held-out files."""

    name = "demo:stdlib-text"
    summary = "source text of Python's standard library, as demo:gpt2 saw it; held-out files for forgetting"

    def load(self) -> Mapping[str, Rows]:
        from surgery_demo.corpora import stdlib_text

        return stdlib_text()


class TorchDocstrings(DataSource):
    """Another domain for the small GPT-2."""

    name = "demo:torch-docstrings"
    summary = "docstrings of the installed torch package: a new domain for demo:gpt2"

    def load(self) -> Mapping[str, Rows]:
        from surgery_demo.corpora import torch_docstrings

        return torch_docstrings()


class TorchPairs(DataSource):
    """A retrieval probe for encoders that are tuned on anything but documentation."""

    name = "demo:torch-pairs"
    summary = "query and passage from docstrings of the installed torch package: a probe of forgetting for encoders"

    def load(self) -> Mapping[str, Rows]:
        from surgery_demo.pairs import torch_pairs

        return torch_pairs()


@hookimpl
def surgery_models() -> list[ModelSource]:
    return [DemoModels()]


@hookimpl
def surgery_datasets() -> list[DataSource]:
    return [StdlibDocstrings(), StdlibText(), TorchDocstrings(), TorchPairs()]
