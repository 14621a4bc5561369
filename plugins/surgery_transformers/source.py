"""The source of models that transformers itself can load."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery import ModelSource

if TYPE_CHECKING:
    import torch

    from surgery import Twins

__all__ = ["TransformersSource"]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


class TransformersSource(ModelSource):
    """A folder with a `config.json`, or the name of a model on the hub."""

    name = "transformers"
    summary = "a local folder with config.json, or a name on the Hugging Face hub"

    def resolve(self, ref: str) -> Path | str | None:
        folder = Path(ref).expanduser()
        if (folder / "config.json").is_file():
            return folder
        if folder.exists() or not _HUB_NAME.fullmatch(ref):
            return None
        return ref

    def skeleton(self, ref_or_config: Any, auto_class: str | None = None) -> torch.nn.Module | None:
        # The import of transformers waits until a skeleton is wanted: plugins load with every command.
        from surgery_transformers.skeleton import meta_model

        return meta_model(ref_or_config, auto_class)

    def twins(self, config: Any, class_name: str) -> Twins | None:
        from surgery_transformers.twins import twins_of

        return twins_of(config, class_name)
