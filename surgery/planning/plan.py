"""The plan: pure data that says what will change before a byte changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from surgery.architecture import Site
from surgery.planning.inventory import DTYPE_BYTES
from surgery.spec import Options, Rule, Spec

__all__ = ["INFERRED", "Edit", "Plan", "RuleOutcome"]

INFERRED = "inferred"
"""How the origin of an architecture begins that no plugin supplied: `helium (inferred from names)`."""

OPTIMIZER_STATES = 2
"""Numbers that AdamW keeps for each trainable number (first and second moment), in the parameter's own dtype."""


@dataclass(frozen=True)
class Edit:
    """One site and how it is adapted.

    Attributes:
        site: what is adapted.
        companions: further parameters of the same host that the adapter changes.
        rule: index of the rule that won the site.
        adapter: name of the adapter type.
        options: its validated options.
        parameters: number of trainable numbers.
        dtype: the dtype they are kept in.
        tied: `share` when the edit acts on every name of a tied tensor, `untie` when it cuts one name off, else "".
    """

    site: Site
    companions: tuple[Site, ...]
    rule: int
    adapter: str
    options: Options
    parameters: int
    dtype: str
    tied: str = ""

    @property
    def sites(self) -> tuple[Site, ...]:
        """The site and its companions."""
        return (self.site, *self.companions)

    @property
    def bytes(self) -> int:
        """Bytes of the trainable numbers."""
        return self.parameters * DTYPE_BYTES.get(self.dtype, 4)

    def to_dict(self) -> dict[str, Any]:
        part = self.site.slice
        return {
            "site": self.site.key,
            "role": self.site.role,
            "stack": self.site.stack,
            "layer": self.site.layer,
            "path": self.site.path,
            "parameter": self.site.parameter,
            "shape": list(self.site.shape),
            "dtype": self.site.dtype,
            "host": self.site.host,
            "slice": None if part is None else [part.axis, list(part.view), part.dim, part.start, part.length],
            "companions": [site.parameter for site in self.companions],
            "tied": list(self.site.tied) if self.tied == "share" else [],
            "untied": self.tied == "untie",
            "rule": self.rule,
            "adapter": self.adapter,
            "options": self.options.model_dump(mode="json"),
            "parameters": self.parameters,
            "trainable_dtype": self.dtype,
        }


@dataclass(frozen=True)
class RuleOutcome:
    """What became of one rule.

    Attributes:
        index, rule: which rule.
        won: number of sites that it won.
        lost: index of an earlier rule -> number of sites that it had already won.
        unclaimed: sites that the patterns match and the adapter does not adapt (a bias, for LoRA).
        parameters: trainable numbers of its edits.
    """

    index: int
    rule: Rule
    won: int
    lost: Mapping[int, int]
    unclaimed: int
    parameters: int


@dataclass(frozen=True)
class Plan:
    """Spec x architecture x model, decided. Equal plans have equal `hash`es.

    Attributes:
        spec: the spec it was made from.
        model_type, class_name, origin: what the model said of itself, and what the plan was made from.
        architecture: where the roles came from, e.g. `bert (model-surgery 0.1.0)`; empty without one.
        edits: in module order.
        outcomes: one for each rule.
        model_parameters, model_bytes: size of the base, tied tensors counted once.
    """

    spec: Spec
    model_type: str
    class_name: str
    origin: str
    architecture: str
    edits: tuple[Edit, ...]
    outcomes: tuple[RuleOutcome, ...]
    model_parameters: int
    model_bytes: int

    @property
    def parameters(self) -> int:
        """Trainable numbers, head included."""
        return sum(edit.parameters for edit in self.edits)

    @property
    def head_parameters(self) -> int:
        """Trainable numbers of edits whose role is `head.*`."""
        return sum(edit.parameters for edit in self.edits if edit.site.role.startswith("head."))

    @property
    def adapter_parameters(self) -> int:
        """Trainable numbers outside of heads."""
        return self.parameters - self.head_parameters

    @property
    def gradient_bytes(self) -> int:
        return sum(edit.bytes for edit in self.edits)

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of AdamW's two moments."""
        return OPTIMIZER_STATES * self.gradient_bytes

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of the adapter checkpoint's tensors (its header and the spec add a few kilobytes)."""
        return self.gradient_bytes

    def to_dict(self) -> dict[str, Any]:
        return {
            "spec": json.loads(self.spec.canonical_json()),
            "model": {
                "type": self.model_type,
                "class": self.class_name,
                "origin": self.origin,
                "architecture": self.architecture,
                "parameters": self.model_parameters,
                "bytes": self.model_bytes,
            },
            "rules": [
                {
                    "index": outcome.index,
                    "won": outcome.won,
                    "lost": {str(index): count for index, count in outcome.lost.items()},
                    "unclaimed": outcome.unclaimed,
                    "parameters": outcome.parameters,
                }
                for outcome in self.outcomes
            ],
            "trainable": {
                "adapter": self.adapter_parameters,
                "head": self.head_parameters,
                "total": self.parameters,
                "share_of_model": self.parameters / max(self.model_parameters, 1),
            },
            "bytes": {
                "gradients": self.gradient_bytes,
                "optimizer": self.optimizer_bytes,
                "checkpoint": self.checkpoint_bytes,
            },
            "edits": [edit.to_dict() for edit in self.edits],
            "hash": self.hash,
        }

    def to_json(self, indent: int | None = None) -> str:
        """Return canonical JSON: sorted keys, equal bytes for equal plans."""
        return json.dumps(self.to_dict(), sort_keys=True, indent=indent, ensure_ascii=False)

    @property
    def hash(self) -> str:
        """sha256 of what the plan does (seed and edits), not of where it was made from: headers have an own order."""
        edits = sorted((edit.to_dict() for edit in self.edits), key=lambda edit: str(edit["site"]))
        decided = {"seed": self.spec.seed, "edits": edits}
        return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()

    def __str__(self) -> str:
        from surgery.planning.render import render_plan

        return render_plan(self)
