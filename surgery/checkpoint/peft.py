"""LoRA adapters that PEFT has saved: `adapter_config.json` and `adapter_model.safetensors`, both untrusted.

The format is described in PEFT's documentation, "PEFT checkpoint format"; read against version 0.21.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from surgery.architecture import Site
from surgery.checkpoint.digest import sha256_of
from surgery.checkpoint.peft_more import ExpertsActs, Pair, WholeActs, experts_of
from surgery.checkpoint.saved import Acts, Factor, SavedAdapter, TensorFile
from surgery.checkpoint.weights import Weights
from surgery.errors import CheckpointError, Problem, StateError, nearest
from surgery.exact import Product
from surgery.operation.change import Step
from surgery.planning.headers import read_json

__all__ = ["PeftAdapter", "is_peft"]

_CONFIG, _TENSORS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(
    r"base_model\.model\.(?P<path>.+)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B)(?P<end>\.weight)?"
)
_MOST_PROBLEMS = 8
_LITERAL = re.compile(r"\^?[A-Za-z0-9_.-]+")
_UNKNOWN = {
    "use_dora": "DoRA", "use_qalora": "QALoRA", "use_bdlora": "BD-LoRA", "alora_invocation_tokens": "activated LoRA",
    "trainable_token_indices": "trainable tokens", "arrow_config": "Arrow", "lora_bias": "a bias of LoRA's own",
    "layer_replication": "layers that were repeated",
}  # fmt: skip
"""Settings under which an adapter is more than a low-rank sum."""
_MOVES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Beginnings for which PEFT takes something off the base: the sum is on what is left of it."""


def is_peft(folder: Path) -> bool:
    """Whether the folder says that PEFT wrote it."""
    return (folder / _CONFIG).is_file()


class _PeftActs(Acts):
    def __init__(self, name: str, product: Product, key: str) -> None:
        self.order, self._product = (True, name, key), product

    def steps(self, index: int, shape: tuple[int, int]) -> Sequence[Step] | None:
        return [Step((), self._product)]


class PeftAdapter(SavedAdapter):
    """A folder that PEFT's `save_pretrained` wrote: LoRA on linear maps, Conv1D, embeddings and stacks of experts.

    Modules that were saved whole take the place of the base's.

    Raises:
        CheckpointError: another kind of adapter, settings that change more than a sum, or a damaged folder.
    """

    format = "peft"

    def __init__(self, folder: Path, name: str, factor: Factor) -> None:
        super().__init__(folder, name, factor)
        self._config: Mapping[str, Any] = read_json(folder / _CONFIG)
        self._refuse_unknown()
        if not (folder / _TENSORS).is_file():
            pickled = (folder / "adapter_model.bin").is_file()
            what = (
                "only pickled tensors here, which can run code and are not read" if pickled else f"no {_TENSORS} here"
            )
            hint = "load it where you trust it, and save it again with PEFT, which writes safetensors"
            raise CheckpointError(what, str(folder), hint if pickled else "get the folder anew")
        self._tensors = TensorFile(folder / _TENSORS)
        if self._tensors.not_finite:
            what = f"the adapter's tensor {min(self._tensors.not_finite)!r} holds NaN or inf"
            raise StateError(what, str(folder), "nothing was merged; repair the adapter")
        said = json.dumps(self._config, sort_keys=True).encode("utf-8", "surrogatepass")
        self.sums = {_CONFIG: sha256_of(folder / _CONFIG), _TENSORS: self._tensors.sha256}
        self.digest = hashlib.sha256(said).hexdigest() + self._tensors.sha256
        self._pairs: dict[str, tuple[str, str, Site]] = {}
        self._experts: dict[str, Pair] = {}
        self._sites: dict[str, Site] = {}
        self._counts: dict[str, int] = {}
        self._whole: dict[str, str] = {}

    @property
    def files(self) -> Mapping[str, Path]:
        return {name: self.folder / name for name in (_CONFIG, _TENSORS)}

    @property
    def changed(self) -> frozenset[str]:
        return frozenset({*self._pairs, *self._experts, *self._whole})

    def _refuse_unknown(self) -> None:
        where = str(self.folder / _CONFIG)
        kind = self._config.get("peft_type")
        if kind != "LORA":
            hint = "merge it with PEFT, and save the whole model"
            raise CheckpointError(f"adapters of PEFT's type {str(kind)[:40]!r} are not read; LORA is", where, hint)
        for key, what in _UNKNOWN.items():
            if self._config.get(key):
                raise CheckpointError(
                    f"{what} ({key}) is not read", where, "merge it with PEFT, and save the whole model"
                )
        begun = str(self._config.get("init_lora_weights")).lower()
        if begun.startswith(_MOVES_BASE):
            what = f"init_lora_weights: {begun[:40]!r} has changed the base that the factors are added to"
            raise CheckpointError(what, where, "save it again with path_initial_model_for_weight_conversion")
        for key in ("rank_pattern", "alpha_pattern"):
            patterns = self._config.get(key) or {}
            if not isinstance(patterns, dict) or not all(_LITERAL.fullmatch(str(name)) for name in patterns):
                raise CheckpointError(
                    f"{key} holds regular expressions, which are not run", where, "write names of modules in it"
                )

    def fit(self, weights: Weights) -> None:
        problems, halves = list[Problem](), dict[str, dict[str, str]]()
        for key in sorted(self._tensors.headers):
            match = _KEY.fullmatch(key)
            if match is None:
                problems += self._fit_whole(key, weights)
            elif (other := halves.setdefault(match["path"], {}).setdefault(match["kind"], key)) != key:
                what = f"the tensors {other!r} and {key!r} are the same factor"
                problems.append(Problem(what, str(self.folder), "get the folder anew"))
        stacked = dict[str, Pair]()
        for path, found in halves.items():
            is_table = "lora_embedding_A" in found
            down, up = (found.get(f"lora_{'embedding_' if is_table else ''}{half}") for half in "AB")
            if down is None or up is None or len(found) != 2:
                what = f"{path} lacks one of its two factors"
                problems.append(Problem(what, str(self.folder), "get the folder anew"))
            elif self._config.get("target_parameters") and _home(f"{path}.weight", weights) not in weights.sites:
                stacked[path] = (down, up)
            else:
                problems += self._fit_pair(path, down, up, weights)
        if stacked and not problems:
            self._fit_experts(stacked, weights)
        problems += self._doubtful()
        if problems:
            raise CheckpointError.of(self._fewer(problems))

    def _fewer(self, problems: list[Problem]) -> list[Problem]:
        """Return a few of them: of another base each tensor has one."""
        rest = len(problems) - _MOST_PROBLEMS
        if rest <= 0:
            return problems
        hint = "this adapter was trained on another base: name that one"
        last = Problem(f"and {rest} more problems of the same adapter", str(self.folder), hint)
        return [*problems[:_MOST_PROBLEMS], last]

    def _fit_pair(self, path: str, down: str, up: str, weights: Weights) -> list[Problem]:
        """Find a home for two factors of a plain map."""
        name = _home(f"{path}.weight", weights)
        site = None if name is None else weights.sites.get(name)
        if name is None or site is None:
            hint = nearest(path, {known.rpartition(".")[0] for known in weights.sites})
            if not hint.startswith("did you mean"):
                hint = "this adapter was trained on another base: name that one"
            return [Problem(f"the tensor {down!r} has no home: no {path} in the base", str(self.folder), hint)]
        stored = weights.stored_name(name)
        assert stored is not None
        if stored in self._pairs:
            what = f"{path} and {self._pairs[stored][2].path} are one tied tensor, and both are adapted"
            return [Problem(what, str(self.folder), "merge an adapter of one of them")]
        self._pairs[stored] = (down, up, site)
        return self._misfit(path, down, up, site, weights)

    def _fit_experts(self, pairs: Mapping[str, Pair], weights: Weights) -> None:
        where = str(self.folder / _CONFIG)
        if self._config.get("alpha_pattern"):
            raise CheckpointError("alpha_pattern beside target_parameters is not read", where, "merge it with PEFT")
        found = experts_of(pairs, self._config["target_parameters"], self._tensors, weights, where)
        for name, pair in found.items():
            stored = weights.stored_name(name)
            assert stored is not None
            self._experts[stored] = pair
            self._sites[stored] = weights.sites[name]
            self._counts[stored] = next(e.shape[0] for e in weights.inventory.entries if e.name == name)

    def _fit_whole(self, key: str, weights: Weights) -> list[Problem]:
        """Find a home for a tensor of `modules_to_save`, which PEFT saves whole."""
        saved = self._config.get("modules_to_save")
        plain = key.removeprefix("base_model.model.")
        parts = plain.split(".")
        if not isinstance(saved, list) or not any(str(one) in parts or f".{one}." in f".{plain}" for one in saved):
            return [Problem(f"the tensor {key!r} has no home: it is no LoRA factor", str(self.folder), _HINT)]
        name = _home(plain, weights)
        if name is None:
            hint = "modules_to_save: it was made for the task in training: merge into a checkpoint that holds it"
            return [Problem(f"the tensor {key!r} has no home: no {plain} in the base", str(self.folder), hint)]
        if weights.inventory.ties.get(name):
            what = f"modules_to_save: {plain} is tied in the base, and would be cut off"
            return [Problem(what, str(self.folder), "merge it with PEFT, and save the whole model")]
        entry = next(entry for entry in weights.inventory.entries if entry.name == name)
        if entry.shape != self._tensors.headers[key].shape:
            theirs = list(self._tensors.headers[key].shape)
            what = f"{plain} is {list(entry.shape)} in the base and {theirs} in the adapter"
            return [Problem(what, str(self.folder), "this adapter was trained on another base: name that one")]
        if name in self._whole:
            what = f"the tensors {self._whole[name]!r} and {key!r} are both for {name}"
            return [Problem(what, str(self.folder), "get the folder anew")]
        self._whole[name] = key
        return []

    def _doubtful(self) -> list[Problem]:
        """What no single tensor tells."""
        twice = [
            Problem(f"modules_to_save: {name} is saved whole, and adapted", str(self.folder), "merge it with PEFT")
            for name in sorted(self._whole.keys() & {*self._pairs, *self._experts})
        ]
        if not self._tensors.headers:
            return [Problem("the adapter holds no tensor", str(self.folder), "get the folder anew")]
        return twice + self._misturned()

    def _misturned(self) -> list[Problem]:
        """PEFT sets `fan_in_fan_out` where a weight is stored as (in, out), and only there."""
        plain = [pair for pair in self._pairs.values() if "lora_embedding_A" not in pair[0]]
        if not plain or not self._config.get("fan_in_fan_out") or any(site.is_transposed for _, _, site in plain):
            return []
        what = f"fan_in_fan_out says that weights are stored as (in, out), and {plain[0][2].name} is not known to be"
        hint = "give config.json its model_type, install the architecture's plugin, or merge it with PEFT"
        return [Problem(what, str(self.folder / _CONFIG), hint)]

    def _misfit(self, path: str, down: str, up: str, site: Site, weights: Weights) -> list[Problem]:
        first, second = self._tensors.headers[down].shape, self._tensors.headers[up].shape
        whole = next(entry.shape for entry in weights.inventory.entries if entry.name == site.name)
        if len(whole) != 2 or len(first) != 2 or len(second) != 2 or first[0] != second[1] or not first[0]:
            return [
                Problem(f"{path}: factors {list(first)} and {list(second)} of a weight {list(whole)}", str(self.folder))
            ]
        made = (second[0], first[1])
        wanted = whole[::-1] if site.is_transposed else whole
        if made == tuple(wanted):
            return []
        what = f"{path} is {wanted[0]}x{wanted[1]} in the base and {made[0]}x{made[1]} in the adapter"
        return [Problem(what, str(self.folder), "this adapter was trained on another base: name that one")]

    def acts(self, parameter: str, base: Mapping[str, torch.Tensor] | None) -> list[Acts]:
        if parameter in self._whole:
            key = self._whole[parameter]
            return [WholeActs(self.name, self._tensors.read(key), key)]
        if parameter in self._experts:
            down, up = (self._tensors.read(key) for key in self._experts[parameter])
            site = self._sites[parameter]
            scale = self._scale("", down.shape[0] // self._counts[parameter]) * self.factor
            return [ExpertsActs(self.name, down, up, scale, site, self._counts[parameter])]
        down_key, up_key, site = self._pairs[parameter]
        down, up = self._tensors.read(down_key), self._tensors.read(up_key)
        path = (_KEY.fullmatch(down_key) or {"path": ""})["path"]
        scale = self._scale(path, down.shape[0]) * self.factor
        left, right = (down.mT, up.mT) if site.is_transposed else (up, down)
        return [_PeftActs(self.name, Product(left.contiguous(), right.contiguous(), scale), site.key)]

    def _scale(self, path: str, rank: int) -> float:
        alpha = self._number("lora_alpha", self._config.get("lora_alpha", 8))
        for pattern, value in (self._config.get("alpha_pattern") or {}).items():
            plain = pattern.removeprefix("^")
            if path == plain or (path.endswith(f".{plain}") and plain == pattern):
                alpha = self._number("alpha_pattern", value)
                break
        return alpha / math.sqrt(rank) if self._config.get("use_rslora") else alpha / rank

    def _number(self, key: str, value: object) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) <= sys.float_info.max:  # type: ignore[arg-type]
            raise CheckpointError(f"{key} is {str(value)[:40]!r}, no number", str(self.folder / _CONFIG))
        return float(value)  # type: ignore[arg-type]


_HINT = "surgery merges LoRA factors and modules_to_save; what else was trained, such as biases, merge with PEFT"


def _home(name: str, weights: Weights) -> str | None:
    """Return what the files call it: the same, or with one prefix more or fewer, as base models are kept in files."""
    if name in weights.sites:
        return name
    shorter = name.partition(".")[2]
    if shorter in weights.sites:
        return shorter
    longer = [known for known in weights.sites if known.partition(".")[2] == name]
    return longer[0] if len(longer) == 1 else None
