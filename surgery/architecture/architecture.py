"""An architecture as data: role -> module path, or slice of one. No model class, no import of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from surgery.architecture.roles import ROLES
from surgery.errors import PluginError, nearest

__all__ = ["Architecture", "Paths", "Slice"]


@dataclass(frozen=True, slots=True)
class Slice:
    """One part of a fused weight.

    Attributes:
        path: module path, written as in `Architecture.roles`.
        view: the fused axis seen as an array; one entry may be -1 and is inferred.
        dim: the dimension of the view that is narrowed.
        start, length: what of that dimension belongs to the role.
        axis: the weight's axis that is fused (0 for `nn.Linear`, 1 for `Conv1D`); a bias is cut on its only axis.
    """

    path: str
    view: tuple[int, ...]
    dim: int = 0
    start: int = 0
    length: int = 1
    axis: int = 0


Paths: TypeAlias = str | Slice | tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    """Where a family of models keeps what.

    Attributes:
        types: the `model_type` values of `config.json` that it describes.
        base: name of the base model inside task models (`bert`, `transformer`), or several where task classes differ;
            a bare base model works too.
        stacks: stack name -> path of its list of layers, relative to the base model.
        roles: role -> path relative to the base model (`*` stands for a layer: `*.mlp.up_proj`), a `Slice`, or
            several paths. A path names a module, whose parameters all get the role, or a parameter.
        heads: role -> path relative to the whole model, for what stands outside the base model.
        conv1d: whether linear weights inside layers are stored (fan_in, fan_out). Live models tell this themselves;
            file headers cannot.
        ties: parameter name -> the name it is tied to when a file leaves it out. Live models tell this themselves.
    """

    types: tuple[str, ...]
    base: str | tuple[str, ...]
    stacks: Mapping[str, str]
    roles: Mapping[str, Paths]
    heads: Mapping[str, Paths] = field(default_factory=dict)
    conv1d: bool = False
    ties: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.types, str):  # its letters would be taken for types
            raise PluginError("types must be a tuple of names", f"architecture {self.types}", f'("{self.types}",)')
        for role in (*self.roles, *self.heads):
            if role not in ROLES:
                raise PluginError(
                    f"unknown role {role!r}", f"architecture {'/'.join(self.types)}", nearest(role, ROLES)
                )
