"""The optimizer's groups: who decays, and who learns at which rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from surgery.architecture import Site
from surgery.errors import Problem, TrainingError, nearest
from surgery.spec import ParameterGroup, TrainingSpec, compile_pattern
from surgery.training.result import GroupInfo

__all__ = ["Group", "parameter_groups"]


@dataclass(frozen=True)
class Group:
    """Parameters with one learning rate and one weight decay."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    learning_rate: float
    weight_decay: float

    def for_optimizer(self) -> dict[str, Any]:
        return {"params": list(self.parameters), "lr": self.learning_rate, "weight_decay": self.weight_decay}

    def info(self) -> GroupInfo:
        count = sum(parameter.numel() for parameter in self.parameters)
        return GroupInfo(self.name, len(self.parameters), count, self.learning_rate, self.weight_decay)


def parameter_groups(
    trainable: Mapping[str, nn.Parameter], sites: Mapping[str, Site], training: TrainingSpec
) -> tuple[Group, ...]:
    """Sort the trainable parameters into groups: for each of the spec's, and for the rest, with and without decay.

    Biases, norm weights and other vectors do not decay, unless a group states a weight decay of its own. The first
    group that matches a parameter wins it.

    Raises:
        TrainingError: a group that wins nothing.
    """
    matchers = [_Matcher(group) for group in training.groups]
    chosen: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in trainable.items():
        index = next((index for index, matcher in enumerate(matchers) if matcher(sites[name])), len(matchers))
        states_decay = index < len(matchers) and training.groups[index].weight_decay is not None
        decays = states_decay or _decays(parameter, sites[name])
        chosen.setdefault((index, decays), []).append(parameter)
    _refuse_empty(training.groups, {index for index, _ in chosen}, sites)
    return tuple(
        _group(training, key, parameters) for key, parameters in sorted(chosen.items(), key=lambda item: item[0])
    )


class _Matcher:
    def __init__(self, group: ParameterGroup) -> None:
        self._role = compile_pattern(group.role) if group.role is not None else None
        self._target = compile_pattern(group.target) if group.target is not None else None

    def __call__(self, site: Site) -> bool:
        return (self._role is None or bool(self._role.fullmatch(site.role))) and (
            self._target is None or self._target.fullmatch(site.path) or self._target.fullmatch(site.name)
        )


def _decays(parameter: nn.Parameter, site: Site) -> bool:
    return parameter.ndim >= 2 and site.host != "norm"


def _group(training: TrainingSpec, key: tuple[int, bool], parameters: Sequence[nn.Parameter]) -> Group:
    index, decays = key
    own = training.groups[index] if index < len(training.groups) else None
    rate = training.learning_rate if own is None or own.learning_rate is None else own.learning_rate
    decay = training.weight_decay if own is None or own.weight_decay is None else own.weight_decay
    name = "rest" if own is None else " ".join(text for text in (own.role, own.target) if text)
    return Group(name if decays else f"{name}, without decay", tuple(parameters), rate, decay if decays else 0.0)


def _refuse_empty(groups: Sequence[ParameterGroup], won: set[int], sites: Mapping[str, Site]) -> None:
    problems = []
    for index, group in enumerate(groups):
        if index not in won:
            text, known = (group.role, "role") if group.role is not None else (group.target or "", "path")
            hint = nearest(text or "", {getattr(site, known) for site in sites.values()})
            what = "the group wins no trainable parameter: none matches, or earlier groups took them"
            problems.append(Problem(what, f"training.groups[{index}]", hint))
    if problems:
        raise TrainingError.of(problems)
