"""What a model says of its ties: kept in step with a cut, given back by undo, and true of the files of a tuned model.

transformers ties anew, by name, whenever `tie_weights` is called and whenever a checkpoint is loaded whose
configuration says `tie_word_embeddings`. A model with a cut name must not say so; and one that does not say so must
hold every other name that the setting ties as a tensor of its own, or files would lack it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from surgery.errors import Problem
from surgery.operation.host import host_class_of
from surgery.operation.ledger import Ledger
from surgery.operation.reads import code_under
from surgery.planning import Plan

__all__ = ["FLAG", "Loosened", "governing", "keep_ties", "refuse_untying"]

FLAG = "tie_word_embeddings"
_LISTED = "all_tied_weights_keys"


@dataclass(frozen=True)
class Loosened:
    """One configuration that says of a cut model that its tensors are not tied.

    Attributes:
        path: the first module that has the configuration.
        config: it.
        ties: every name that its setting ties -> the name that it is tied to.
        listed: (module, its path with a dot, its `all_tied_weights_keys`): where transformers keeps such names.
    """

    path: str
    config: Any
    ties: dict[str, str]
    listed: list[tuple[nn.Module, str, dict[str, str]]]

    def say(self) -> None:
        """Say that nothing is tied."""
        setattr(self.config, FLAG, False)
        for module, prefix, _ in self.listed:
            known = module.__dict__[_LISTED]
            module.__dict__[_LISTED] = {name: known[name] for name in known if prefix + name not in self.ties}

    def unsay(self) -> None:
        """Say again what the model said before."""
        setattr(self.config, FLAG, True)
        for module, _, known in self.listed:
            module.__dict__[_LISTED] = known

    def cut_the_rest(self, model: nn.Module) -> None:
        """Give every name that the setting tied, and that is tied still, a tensor of its own with the same bits."""
        for name, source in self.ties.items():
            (holder, local), (other, its) = _place(model, name), _place(model, source)
            held, buffer = holder._parameters.get(local), holder._buffers.get(local)
            if held is not None and held is other._parameters.get(its):
                holder._parameters[local] = nn.Parameter(held.detach().clone(), requires_grad=held.requires_grad)
            elif buffer is not None and buffer is other._buffers.get(its):
                holder._buffers[local] = buffer.clone()


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, local = name.rpartition(".")
    return model.get_submodule(path), local


def _cut_names(plan: Plan) -> set[str]:
    """All names of the tensors that the plan cuts a name off."""
    cut = [site for edit in plan.edits if edit.tied == "untie" for site in edit.sites if site.tied]
    return {name for site in cut for name in (site.name, *site.tied)}


def governing(plan: Plan, modules: Mapping[str, nn.Module]) -> list[Loosened]:
    """The configurations that tie what `plan` cuts, with everything else that they tie."""
    names = _cut_names(plan)
    if not names:
        return []
    listed = [
        (module, f"{path}." if path else "", module.__dict__[_LISTED])
        for path, module in modules.items()
        if isinstance(module.__dict__.get(_LISTED), dict)
    ]
    found: dict[int, Loosened] = {}
    told: set[int] = set()
    for path, module in modules.items():
        config = module.__dict__.get("config")
        if config is None or getattr(config, FLAG, False) is not True:
            continue
        one = found.setdefault(id(config), Loosened(path, config, {}, listed))
        expand = getattr(module, "get_expanded_tied_weights_keys", None)
        if callable(expand):
            told.add(id(config))
            prefix = f"{path}." if path else ""
            one.ties.update({prefix + name: prefix + source for name, source in expand().items()})
    # A model that is not transformers' own does not say which names its setting ties.
    return [one for key, one in found.items() if key not in told or names.intersection({*one.ties, *one.ties.values()})]


def refuse_untying(plan: Plan, modules: Mapping[str, nn.Module]) -> list[Problem]:
    """Return why `plan` cannot cut names off: the model computes something else where it says that nothing is tied."""
    if not governing(plan, modules):
        return []
    readers = sorted({cls.__name__ for cls in map(host_class_of, modules.values()) if _reads_the_flag(cls)})
    if not readers:
        return []
    site = next(edit.site for edit in plan.edits if edit.tied == "untie")
    what = f"{readers[0]} computes something else where its configuration says {FLAG}=False, as it must with a cut name"
    return [Problem(what, site.name, "say `tied: share`, or exclude it")]


def _reads_the_flag(cls: type[nn.Module]) -> bool:
    return any(FLAG in code.co_names for code, _ in code_under(cls, "forward"))


def keep_ties(plan: Plan, modules: Mapping[str, nn.Module], ledger: Ledger) -> None:
    """Make `tie_weights` leave the ties as the operation has them; recorded in `ledger`."""
    if not any(edit.tied for edit in plan.edits):
        return
    for module in _tiers(modules):

        def put(module: nn.Module = module) -> None:
            module.__dict__["tie_weights"] = _ties_are_kept

        def drop(module: nn.Module = module) -> None:
            module.__dict__.pop("tie_weights", None)

        ledger.act(put, drop)


def _tiers(modules: Mapping[str, nn.Module]) -> Iterator[nn.Module]:
    for module in modules.values():
        if callable(getattr(type(module), "tie_weights", None)) and "tie_weights" not in module.__dict__:
            yield module


def _ties_are_kept(*args: Any, **kwargs: Any) -> None:
    """Stand in for `tie_weights` while a model is operated: what is tied is, and what is cut stays cut."""
