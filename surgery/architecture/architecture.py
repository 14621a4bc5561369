"""An architecture as data: role -> module path, or slice of one. No model class, no import of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from surgery.architecture.counts import Count, check_count
from surgery.architecture.roles import ROLES
from surgery.errors import PluginError, nearest

__all__ = ["Architecture", "Paths", "Slice", "When"]


@dataclass(frozen=True, slots=True)
class Slice:
    """One part of a fused weight.

    Attributes:
        path: module path, written as in `Architecture.roles`.
        view: the fused axis seen as an array; one entry may be -1 and is inferred. A count may be an expression of
            configuration names, such as `"num_attention_heads"` or `"num_attention_heads // num_key_value_heads + 2"`;
            `"attn_config.kv_n_heads"` is a name in a part of the configuration.
        dim: the dimension of the view that is narrowed.
        start, length: what of that dimension belongs to the role; counts as in `view`.
        axis: the weight's axis that is fused (0 for `nn.Linear`, 1 for `Conv1D`); a bias is cut on its only axis.
    """

    path: str
    view: tuple[Count, ...]
    dim: int = 0
    start: Count = 0
    length: Count = 1
    axis: int = 0


@dataclass(frozen=True, slots=True)
class When:
    """A path, or slice of one, that holds for some configurations or in some layers only.

    Attributes:
        path: what `Architecture.roles` may hold.
        settings: configuration name -> the value it must have.
        beside: path, as in `Architecture.roles`, of a module or parameter that the same layer must have: layers of one
            stack may differ.
    """

    path: str | Slice
    settings: Mapping[str, Any] = field(default_factory=dict)
    beside: str = ""


Paths: TypeAlias = str | Slice | When | tuple[str | Slice | When, ...]


@dataclass(frozen=True)
class Architecture:
    """Where a family of models keeps what.

    Attributes:
        types: the `model_type` values of `config.json` that it describes.
        base: name of the base model inside task models (`bert`, `transformer`), or several where task classes differ;
            a bare base model works too.
        stacks: stack name -> path of its list of layers, relative to the base model. A list inside a list is written
            with a star, `encoder.groups.*.layers`, or `encoder.blocks.*` where a list holds lists; its layers are
            counted through.
        roles: role -> path relative to the base model (`*` stands for a layer: `*.mlp.up_proj`; `decoder:*.norm` is
            for one stack only), a `Slice`, a `When`, or several of them. A path names a module, whose parameters all
            get the role, or a parameter. A further `*` stands for any index of a list inside a layer, `3` or
            `expert_3`, or a language's code, `de_DE`: `*.attention.norms.*`.
        heads: role -> path relative to the whole model, for what stands outside the base model.
        conv1d: whether linear weights inside layers are stored (fan_in, fan_out). Live models tell this themselves;
            file headers cannot.
        ties: parameter name -> the name it is tied to when a file leaves it out, or several where task classes differ.
            Live models tell this themselves.
        uncalled: paths, as in `roles` or `heads`, of linear modules and embeddings whose weight the model reads without
            calling the module, always or for some configurations (a `When`).
        transposed_experts: whether expert tensors are stored (experts, fan_in, fan_out).
        plain: paths, as in `roles`, of what is known and has no role of the vocabulary: decays, sinks, and with a
            `Slice` the rest of a fused weight, such as the gates of attention heads. Their role is `other.<path>`.
        open: path, as in `roles` -> roles that the weight there may hold, in a layout that is not known. A rule that
            may mean it fails instead of missing it.
        defaults: configuration name -> value, or count in terms of other names, that holds where a `config.json`
            does not say. Live configurations know their defaults themselves.
        files: name in the model -> its name in checkpoint files, where the two differ. Both are runs of whole name
            parts; the rest of a name stays as it is, and a `^` before the first part means the beginning of a name.
            They are applied in order. A tuple of names is put together along the first axis; `*` stands for a
            number, and tensors that differ in that number only are stacked first, as experts are:
            `{"experts.gate_up_proj": ("experts.*.gate_proj.weight", "experts.*.up_proj.weight")}`. With
            `When(name, beside=other)` a name is renamed only in files that have another, written in the same way.
        shared: module that several layers share -> (what those layers have beside it, how many there are in turn), for
            files that store it once: `{"layers.*.shared": ("layers.*.linear", 1)}`. Names are written as in `files`.
            Live models tell this themselves.
        ignored: names, written as in `files`, of tensors in files that are no parameters of the model: buffers, and
            what it does not read.
    """

    types: tuple[str, ...]
    base: str | tuple[str, ...]
    stacks: Mapping[str, str]
    roles: Mapping[str, Paths]
    heads: Mapping[str, Paths] = field(default_factory=dict)
    conv1d: bool = False
    ties: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    uncalled: tuple[str | When, ...] = ()
    transposed_experts: bool = False
    plain: tuple[str | Slice | When, ...] = ()
    open: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str | tuple[str, ...] | When] = field(default_factory=dict)
    shared: Mapping[str, tuple[str, Count]] = field(default_factory=dict)
    ignored: tuple[str | When, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.types, str):  # its letters would be taken for types
            raise PluginError("types must be a tuple of names", f"architecture {self.types}", f'("{self.types}",)')
        where = f"architecture {'/'.join(self.types)}"
        if not isinstance(self.base, str | tuple):
            raise PluginError(f"base must be a name or a tuple of names, not {self.base!r}", where)
        for role, path, _ in self.places():
            if role not in ROLES:
                raise PluginError(f"unknown role {role!r}", where, nearest(role, ROLES))
            _check_place(path, f"{where}, {role}")
        for path, (beside, count) in self.shared.items():
            if path.split(".").count("*") != 1 or beside.split(".").count("*") != 1:
                raise PluginError(
                    f"{path!r} or {beside!r} is not of one layer", f"{where}, shared", '"layers.*.shared"'
                )
            check_count(count, where)
        for place in self.plain:
            _check_place(place.path if isinstance(place, When) else place, f"{where}, plain")

    @property
    def bases(self) -> tuple[str, ...]:
        """The possible names of the base model."""
        return (self.base,) if isinstance(self.base, str) else self.base

    def tied_names(self) -> Iterator[tuple[str, str]]:
        """Yield (name, a name it may be tied to)."""
        for name, targets in self.ties.items():
            for target in (targets,) if isinstance(targets, str) else targets:
                yield name, target

    def places(self, *, heads: bool | None = None) -> Iterator[tuple[str, str | Slice, When]]:
        """Yield (role, path or slice, condition) of everything that is described, or of heads, or of all but heads."""
        tables = {None: (self.roles, self.heads), True: (self.heads,), False: (self.roles,)}[heads]
        for table in tables:
            for role, paths in table.items():
                for path in paths if isinstance(paths, tuple) else (paths,):
                    when = path if isinstance(path, When) else When(path)
                    yield role, when.path, when


def _check_place(path: Any, where: str) -> None:
    """Refuse what is no place: an author's slip would otherwise be a weight without a role."""
    name = path.path if isinstance(path, Slice) else path
    if not isinstance(name, str):
        raise PluginError(f"{path!r} is no path", where, "give a path, a Slice, a When, or a tuple of them")
    if any("*" in part and part != "*" for part in name.partition(":")[2 if ":" in name else 0].split(".")):
        raise PluginError(f"{name!r} has a star inside a name", where, "`*` stands for a layer, or for an index")
    if isinstance(path, Slice):
        if not isinstance(path.view, tuple) or not path.view or not -1 < path.dim < len(path.view):
            raise PluginError(f"view={path.view!r} has no dimension {path.dim}", where, "view=(3, -1), dim=0 is thirds")
        for count in (*path.view, path.start, path.length):
            check_count(count, where)
