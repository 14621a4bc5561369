"""The study: which arms are compared, on what, with which seeds, and what difference matters."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer
from pydantic_core import InitErrorDetails

from surgery.errors import nearest
from surgery.spec import (
    Catalog,
    DataSpec,
    ModelRef,
    ParameterGroup,
    Rule,
    StrictModel,
    TaskSpec,
    TrainingSpec,
    load_document,
    validate_document,
)
from surgery.spec._catalog import Context
from surgery.spec._fields import Text, at_most, frozen_map, plain_map
from surgery.spec._frozen import MAX_INTEGER
from surgery.spec._spec import MAX_RULES, VERSION, Version
from surgery.spec._strict import said
from surgery.spec._write import to_yaml

__all__ = [
    "FROZEN",
    "MAJORITY",
    "ArmSpec",
    "Axis",
    "BudgetSpec",
    "Forgetting",
    "StudySpec",
    "StudyTraining",
    "load_study",
]

FROZEN = "frozen"
MAJORITY = "majority"
"""Names of the two rows that every study gets of its own accord."""

_OWN_LABELS = ("frozen + head", "frozen (untouched base)", "majority class")
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # control, zero-width and bidirectional, lone halves, separators

_Seed = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
_Rate = Annotated[float, Field(gt=0, le=100)]
# It reaches the JSON Schema, so it is ECMA-262's too; in Pydantic's engine `$` takes no newline before the end.
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,47}$")]
_Rules = Annotated[tuple[Rule, ...], BeforeValidator(at_most(MAX_RULES, "rules"))]


class StudyTraining(TrainingSpec):
    """The training that all arms share. The learning rate is each arm's own, so it has no place here."""

    learning_rate: float = Field(1.0, gt=0, description="Not here: each arm names its own.")

    @classmethod
    def _cross_check(cls, data: Mapping[str, Any], context: Any) -> list[InitErrorDetails]:
        lines = super()._cross_check(data, context)
        # A dump of this model carries the default, which must load back.
        if data.get("learning_rate", 1.0) != 1.0:
            hint = "remove it, and write arms.NAME.learning_rate (a number, or a list to choose from)"
            lines.append(said("must not be shared: each arm has its own", hint, ("learning_rate",)))
        return lines


class ArmSpec(StrictModel):
    """One way to adapt the model."""

    rules: _Rules = Field(min_length=1, description="Rules as in a spec; they follow the study's head rules.")
    learning_rate: tuple[_Rate, ...] = Field(
        min_length=1, max_length=32, description="One learning rate, or a grid from which validation loss chooses."
    )
    label: Text | None = Field(None, description="How tables and plots call the arm; null means its name.")

    @classmethod
    def _prepare(cls, data: dict[str, Any], context: Any) -> tuple[dict[str, Any], list[InitErrorDetails]]:
        rate = data.get("learning_rate")
        if isinstance(rate, int | float) and not isinstance(rate, bool):
            data["learning_rate"] = [rate]
        return super()._prepare(data, context)

    @classmethod
    def _cross_check(cls, data: Mapping[str, Any], _context: Any) -> list[InitErrorDetails]:
        grid = data.get("learning_rate")
        if isinstance(grid, list | tuple) and len(set(map(_alike, grid))) < len(grid):
            return [said("names a learning rate twice", "remove one of them", ("learning_rate",))]
        return []

    @property
    def swept(self) -> bool:
        """Whether the learning rate is chosen from several."""
        return len(self.learning_rate) > 1


def _alike(rate: Any) -> Any:
    """Return what two ways of writing one number share: 1 and 1.0. What is no number is refused elsewhere."""
    return rate if type(rate) in (int, float) else repr(rate)


_Shares = Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(max_length=33)]


class Forgetting(StrictModel):
    """What the base model can do apart from the task; measured before and after, and at parts of what was learned."""

    data: DataSpec = Field(description="The rows of the probe: texts, or pairs of query and passage.")
    probe: Literal["loss", "masked-lm", "retrieval"] | None = Field(
        None,
        description="The task's loss, the loss of the checkpoint's masked-LM head, or MRR; null: by task and rows.",
    )
    mask_rate: float | None = Field(None, gt=0, lt=1, description="Share of tokens that masked-lm hides; null: 0.15.")
    max_length: int | None = Field(
        None, gt=0, le=1_000_000, description="Tokens after which masked-lm and retrieval cut a text; null: 128."
    )
    along: _Shares = Field(
        (0.0, 0.25, 0.5, 0.75, 1.0),
        description="Shares t at which W0 + t (W - W0) is measured, 1 among them; empty: only before and after.",
    )
    examples: int = Field(256, gt=0, le=MAX_INTEGER, description="Validation examples that say what is learned at t.")

    @classmethod
    def _cross_check(cls, data: Mapping[str, Any], _context: Any) -> list[InitErrorDetails]:
        lines = []
        probe = data.get("probe")
        for key, kinds in (("mask_rate", ("masked-lm",)), ("max_length", ("masked-lm", "retrieval"))):
            if data.get(key) is not None and probe not in kinds:
                hint = f"write probe: {' or '.join(kinds)} beside it, or remove it"
                lines.append(said(f"belongs to the probe {' or '.join(kinds)}", hint, (key,)))
        shares = data.get("along")
        if isinstance(shares, list | tuple) and shares and all(type(share) in (int, float) for share in shares):
            if list(shares) != sorted(set(shares)):
                lines.append(said("must ascend, each share once", "write along: [0, 0.25, 0.5, 0.75, 1]", ("along",)))
            elif 1 not in shares:
                lines.append(said("must hold 1, which is the run itself", "add 1 at its end", ("along",)))
        if isinstance(shares, list | tuple) and not shares and data.get("examples") is not None:
            lines.append(said("has nothing to be measured along", "remove it, or along: []", ("examples",)))
        return lines

    @model_serializer(mode="wrap")
    def _told(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is at its default: a study written before these keys keeps its hash, and so its results."""
        told: dict[str, Any] = handler(self)
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        return {key: value for key, value in told.items() if getattr(self, key) != defaults[key]}


Axis: TypeAlias = Literal["steps", "tokens", "flops", "seconds"]
"""In what arms are given the same: updates, tokens, floating-point operations, or seconds of this machine."""


class BudgetSpec(StrictModel):
    """What all arms get the same amount of."""

    axis: Axis = Field(
        "steps",
        description="Equal steps (and tokens); or as many steps as cost the reference's FLOPs, or seconds.",
    )


_Arms = Annotated[
    Mapping[_Name, ArmSpec], BeforeValidator(plain_map), AfterValidator(frozen_map), Field(min_length=1, max_length=64)
]


class StudySpec(StrictModel):
    """A whole study. `load_study` reads one from a file."""

    version: Version = Field(VERSION, description="The version of the format; a file must state it.")
    name: _Name = Field(description="Letters, digits, dot, dash and underscore.")
    model: ModelRef = Field(description="The pretrained model that every arm starts from.")
    task: TaskSpec = Field(description="What every arm is trained and scored on.")
    data: DataSpec = Field(description="Three splits: train, validation (chooses), test (is read once per final run).")
    training: StudyTraining = Field(description="Budget, optimizer and schedule of every arm.")
    seeds: tuple[_Seed, ...] = Field(min_length=1, max_length=100, description="Each seed runs every arm once.")
    tuning_seed: _Seed = Field(0, description="The seed on which learning rates are chosen; not among seeds.")
    head: _Rules = Field((), description="Rules added in front of every arm's; the frozen row trains these alone.")
    head_learning_rate: _Rate | None = Field(
        None, description="Learning rate of what the head rules train, in every arm."
    )
    arms: _Arms = Field(description="Name -> rules and learning rate.")
    reference: _Name = Field(description="The arm that the others are compared with.")
    margin: float = Field(gt=0, description="Differences smaller than this do not matter; in the unit of the metric.")
    forgetting: Forgetting | None = Field(None, description="What the base can do, measured before and after.")
    budget: BudgetSpec = Field(
        BudgetSpec(axis="steps"), description="What every arm gets the same amount of; the rest is re-read."
    )
    metrics: tuple[Text, ...] = Field(
        (), max_length=16, description="Further metrics of the task, shown with intervals; no verdict rests on them."
    )
    extend_grids: int = Field(
        2, ge=0, le=8, description="Most learning rates tried beyond each arm's grid while the best lies at its edge."
    )
    resamples: int = Field(10_000, ge=1000, le=1_000_000, description="Draws of the bootstrap.")
    probe: int = Field(32, gt=0, le=4096, description="Validation examples on which merging is measured.")
    weights: Literal["first", "all", "none"] = Field(
        "first", description="On which seeds it is measured what changed in the weights: the first, all, or none."
    )

    @classmethod
    def _cross_check(cls, data: Mapping[str, Any], context: Any) -> list[InitErrorDetails]:
        lines = []
        if isinstance(context, Context) and context.from_file and "version" not in data:
            lines.append(said("key 'version' is missing", f"write version: {VERSION} in the first line"))
        return [
            *lines,
            *_data_lines(data),
            *_arm_lines(data),
            *_seed_lines(data),
            *_head_lines(data),
            *_metric_lines(data),
        ]

    def canonical_json(self) -> str:
        """Return the study as JSON with sorted keys, no spaces and all defaults: equal studies give equal text."""
        data = self.model_dump(mode="json")
        # Keys that came later: a study that does not use them keeps the hash it had.
        for name in ("budget", "metrics", "extend_grids"):
            if data[name] == _LATER[name]:
                del data[name]
        return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    def to_yaml(self) -> str:
        """Return the study as it was written, in its own order and without what was left to a default."""
        return to_yaml({"version": self.version, **self.model_dump(mode="json", exclude_unset=True)})

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()

    def on(self, *, data: Mapping[str, str] | None = None, model: str | None = None) -> Self:
        """Return the same study of other files (split -> path; columns and limits stay), or of another model.

        Raises:
            SpecError: there is no test file among them.
        """
        changes: dict[str, Any] = {} if model is None else {"model": model}
        if data is not None:
            kept = {key: getattr(self.data, key) for key in ("columns", "limit") if key in self.data.model_fields_set}
            changes["data"] = {**data, **kept}
        return type(self)(**{**{key: getattr(self, key) for key in self.model_fields_set}, **changes})

    def looks_at(self, seed: int) -> bool:
        """Whether it is measured what changed in the weights of a final run on `seed`."""
        return self.weights == "all" or (self.weights == "first" and seed == self.seeds[0])

    def label(self, arm: str) -> str:
        """Return how tables and plots call `arm`, the rows of the study's own included."""
        if arm in self.arms:
            return self.arms[arm].label or arm
        with_head, untouched, majority = _OWN_LABELS
        if arm == MAJORITY:
            return majority
        return with_head if self.head else untouched

    def training_of(self, rate: float, steps: int | None = None) -> TrainingSpec:
        """Return the shared training at one learning rate, the head at its own; `steps` in place of the shared ones."""
        shared = self.training.model_dump()
        if steps is not None:
            shared |= {"steps": steps, "epochs": None}
        heads = [
            ParameterGroup(role=rule.role, target=rule.target, learning_rate=self.head_learning_rate, weight_decay=None)
            for rule in self.head
        ]
        groups = tuple(heads) + self.training.groups
        return TrainingSpec(**{**shared, "learning_rate": rate, "groups": groups})


_LATER = {"budget": {"axis": "steps"}, "metrics": [], "extend_grids": 2}


def _metric_lines(data: Mapping[str, Any]) -> list[InitErrorDetails]:
    metrics = data.get("metrics")
    if isinstance(metrics, list | tuple) and len(set(map(repr, metrics))) < len(metrics):
        return [said("names a metric twice", "remove one of them", ("metrics",))]
    return []


def _arm_lines(data: Mapping[str, Any]) -> list[InitErrorDetails]:
    arms, reference = data.get("arms"), data.get("reference")
    if not isinstance(arms, Mapping):
        return []
    lines = [
        said(f"the name {name!r} belongs to a row that every study has", "choose another name", ("arms", name))
        for name in (FROZEN, MAJORITY)
        if name in arms
    ]
    lines += _label_lines(arms)
    if isinstance(reference, str) and reference not in arms:
        names = [str(name) for name in arms]
        lines.append(said(f"no arm is called {reference!r}", nearest(reference, names), ("reference",)))
    return lines


def _data_lines(data: Mapping[str, Any]) -> list[InitErrorDetails]:
    """A data set's own test split is found when it is loaded; files must be named."""
    given = data.get("data")
    plain = given.model_dump() if isinstance(given, DataSpec) else given
    if not isinstance(plain, Mapping) or plain.get("name") is not None or plain.get("test") is not None:
        return []
    hint = "write data.test: FILE; it is read once for every final run, and validation only chooses learning rates"
    return [said("names no test file, and a study needs one", hint, ("data",))]


def _label_lines(arms: Mapping[Any, Any]) -> list[InitErrorDetails]:
    """Refuse labels that cannot be read, and two rows that a reader of tables and plots would take for one."""
    called = {_as_read(label): f"a row that every study can have ({label!r})" for label in _OWN_LABELS}
    places: dict[str, tuple[Any, ...]] = {}
    lines = []
    for name, arm in arms.items():
        given = arm.get("label") if isinstance(arm, Mapping) else getattr(arm, "label", None)
        place = ("arms", name, "label") if isinstance(given, str) else ("arms", name)
        label = given if isinstance(given, str) else str(name)
        if not label.strip() or any(unicodedata.category(sign) in _UNSEEN for sign in label):
            what = f"is blank or holds line breaks or invisible characters: {label!a}"
            lines.append(said(what, "write one line of visible characters", place))
            continue
        read = _as_read(label)
        if read in called:
            # The label is the one to change: the other arm may be called by its name alone.
            at = place if isinstance(given, str) else places.get(read, place)
            what = f"the arm {str(name)!r} is called {label!r}, as is {called[read]}"
            lines.append(said(what, "give each arm a label of its own; case and spaces tell none apart", at))
        called.setdefault(read, f"the arm {str(name)!r}")
        places.setdefault(read, place)
    return lines


def _as_read(label: str) -> str:
    """Return what labels share that look alike: case, compatibility forms and spaces aside."""
    return " ".join(unicodedata.normalize("NFKC", label).casefold().split())


def _seed_lines(data: Mapping[str, Any]) -> list[InitErrorDetails]:
    seeds = data.get("seeds")
    if not isinstance(seeds, list | tuple):
        return []
    lines = []
    if len(set(map(repr, seeds))) < len(seeds):
        lines.append(said("names a seed twice", "every seed runs once; remove one of them", ("seeds",)))
    if data.get("tuning_seed", 0) in seeds and ("tuning_seed" in data or _sweeps(data)):
        what = f"the tuning seed {data.get('tuning_seed', 0)} is also a seed that is reported"
        hint = "learning rates must be chosen on a seed that reports nothing; change tuning_seed or seeds"
        lines.append(said(what, hint, ("tuning_seed",) if "tuning_seed" in data else ("seeds",)))
    return lines


def _sweeps(data: Mapping[str, Any]) -> bool:
    arms = data.get("arms")
    grids = (
        [arm.get("learning_rate") for arm in arms.values() if isinstance(arm, Mapping)]
        if isinstance(arms, Mapping)
        else []
    )
    return any(isinstance(grid, list | tuple) and len(grid) > 1 for grid in grids)


def _head_lines(data: Mapping[str, Any]) -> list[InitErrorDetails]:
    head, rate = data.get("head"), data.get("head_learning_rate")
    if head and rate is None:
        hint = "write head_learning_rate: 5e-3; the same in every arm, or the head decides the comparison"
        return [said("key 'head_learning_rate' is missing", hint)]
    if rate is not None and not head:
        return [said("has no head rules to apply to", "write head:, or remove it", ("head_learning_rate",))]
    return []


def load_study(path: Path | str, catalog: Catalog | None = None) -> StudySpec:
    """Return the study in the YAML or JSON file `path`.

    Raises:
        SpecError: the file cannot be read, or every problem in it at once, located as file:line:col.
    """
    return validate_document(load_document(path, defer=True), StudySpec, catalog)
