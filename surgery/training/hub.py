"""Data sets by their name on the Hugging Face hub."""

from __future__ import annotations

import os
from typing import Any

from surgery.errors import DataError, nearest
from surgery.spec import DataSpec
from surgery.training.table import Table

__all__ = ["is_offline", "load_from_hub"]

_SPLITS = ("train", "validation", "test")


def is_offline() -> bool:
    """Whether the environment forbids the hub."""
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in names)


def load_from_hub(spec: DataSpec, known: tuple[str, ...] = ()) -> dict[str, Table]:
    """Load `spec.name`: its train split, its validation split where there is one, and a test split that is asked for.

    Test splits on the hub often come without labels; that is why one is read only when the spec names it. Where it
    names the validation split as the test, that is not the validation, too.
    """
    assert spec.name is not None
    loaded = _load(spec, known)
    names = {"train": spec.train or "train", "validation": spec.validation or "validation", "test": spec.test or ""}
    if names["test"] == "validation" and spec.validation is None:
        names["validation"] = ""
    tables: dict[str, Table] = {}
    for split in _SPLITS:
        name = names[split]
        if name in loaded:
            rows = loaded[name]
            tables[split] = Table(rows, f"{spec.name}[{name}]", range(1, len(rows) + 1), "row ")
        elif split == "train" or getattr(spec, split) is not None:
            raise DataError(f"the data set has no split {name!r}", spec.name, nearest(name, loaded))
    return tables


def _load(spec: DataSpec, known: tuple[str, ...]) -> Any:
    # Imported late: datasets is slow to import, and files do not need it.
    import datasets

    before = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(spec.name, spec.config, revision=spec.revision)
    except Exception as error:  # The library raises a dozen kinds; the user needs the name, the cause and the way out.
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        state = "; this process is offline" if is_offline() else ""
        hint = nearest(spec.name or "", known) if known else ""
        hint = f"{hint}{'; ' if hint else ''}local files need no network: --data FOLDER, or train: FILE without name:"
        raise DataError(f"the data set cannot be loaded{state}: {cause}", spec.name or "", hint) from error
    finally:
        if before:
            datasets.enable_progress_bars()
