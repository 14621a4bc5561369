"""The spec itself: what is adapted, how, on which data, with which seed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, WithJsonSchema
from pydantic_core import InitErrorDetails

from surgery.spec._catalog import Catalog, Context
from surgery.spec._fields import Text, TextMap, frozen_map, in_words, plain_map, some
from surgery.spec._flat import Flat
from surgery.spec._frozen import MAX_INTEGER, FrozenMap
from surgery.spec._quote import quoted
from surgery.spec._rule import Rule
from surgery.spec._strict import Options, StrictModel, said
from surgery.spec._training import TrainingSpec
from surgery.spec._write import to_yaml

__all__ = ["MAX_RULES", "DataSpec", "ModelRef", "Spec", "TaskSpec", "Version"]

MAX_RULES = 256
VERSION: Literal[1] = 1


class ModelRef(StrictModel):
    """Which pretrained model. A plain text stands for `{ref: text}`."""

    ref: Text = Field(description="A name on a model hub, a folder, or a model of a plugin such as demo:minilm.")
    revision: Text | None = Field(default=None, description="A branch, tag or commit of the hub's repository.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="The dtype to load it in."
    )

    @classmethod
    def _shorthand(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"ref": data}
        if not isinstance(data, Mapping):
            raise in_words(
                "must be the name of a model, or a mapping with 'ref'", "write for example model: bert-base-uncased"
            )
        return data


class TaskSpec(Flat):
    """What the model is trained to do. Keys other than `kind` are options of the task."""

    _plugin_key: ClassVar[str] = "kind"
    _plugin_word: ClassVar[str] = "task"

    kind: Text = Field(description="The name of an installed task.")

    if TYPE_CHECKING:
        # Type checkers would refuse the options, which lie flat; at run time StrictModel's constructor is used.
        def __init__(self, /, **keys: Any) -> None: ...

    @classmethod
    def _names(cls, catalog: Catalog) -> Sequence[str]:
        return catalog.task_names()

    @classmethod
    def _model(cls, catalog: Catalog, name: str) -> type[Options]:
        return catalog.task_options(name)


_Limit = Annotated[
    Mapping[Literal["train", "validation", "test"], Annotated[int, Field(gt=0, le=MAX_INTEGER)]],
    BeforeValidator(plain_map),
    AfterValidator(frozen_map),
]


def _no_limit() -> Mapping[Any, int]:
    return FrozenMap()


class DataSpec(StrictModel):
    """Where the examples come from. What is left out can be given on the command line."""

    name: Text | None = Field(
        default=None, description="A data set on a hub, or a plugin's such as demo:stdlib-docstrings."
    )
    config: Text | None = Field(default=None, description="The configuration of the data set.")
    revision: Text | None = Field(default=None, description="A branch, tag or commit of the data set.")
    train: Text | None = Field(
        None, description="A split of the data set; without a name, a .csv, .jsonl or .json file."
    )
    validation: Text | None = Field(default=None, description="The same for validation.")
    test: Text | None = Field(default=None, description="The same for the test.")
    columns: TextMap = Field(
        default_factory=FrozenMap, description="What the task calls a column -> the column's name."
    )
    limit: _Limit = Field(default_factory=_no_limit, description="At most so many examples of a split.")


def _version(value: Any) -> Literal[1]:
    if type(value) is int and value == VERSION:
        return VERSION
    if type(value) is int:
        what, hint = f"this version of surgery reads version {VERSION}, not {value}", f"write version: {VERSION}"
    else:
        what, hint = f"must be the number {VERSION}", f"write version: {VERSION}"
    raise in_words(what, hint)


Version = Annotated[Literal[1], PlainValidator(_version), WithJsonSchema({"const": VERSION})]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""No folder above (`..`) and no option (`-rf`): the name becomes a folder's, and stands in commands."""


def _name(value: str) -> str:
    if _NAME.fullmatch(value):
        return value
    what = f"must be 1 to 64 letters, digits, dots, dashes or underscores, not {quoted(value, 70)}"
    if value[0:1] in (".", "-", "_"):
        what = f"must begin with a letter or a digit, unlike {quoted(value, 70)}"
    suggestion = re.sub(r"[^A-Za-z0-9._-]+", "-", value).lstrip("._-")[:64].strip("-")
    hint = f"write name: {suggestion}" if suggestion else "write for example name: bert-lora"
    raise in_words(what, hint)


_Name = Annotated[str, AfterValidator(_name), WithJsonSchema({"type": "string", "pattern": f"^{_NAME.pattern}$"})]


class Spec(StrictModel):
    """A whole spec. `surgery.load_spec` reads one from a file.

    >>> Spec(name="demo", rules=[Rule(role=".*", adapter="full")]).seed
    0
    """

    version: Version = Field(default=VERSION, description="The version of the format; a file must state it.")
    name: _Name = Field(description="Letters, digits, dot, dash and underscore; names the run folder.")
    seed: int = Field(default=0, ge=0, le=MAX_INTEGER, description="Decides every random draw.")
    model: ModelRef | None = Field(default=None, description="The pretrained model; may be given on the command line.")
    task: TaskSpec | None = Field(default=None, description="What to train for.")
    data: DataSpec | None = Field(default=None, description="What to train on.")
    training: TrainingSpec | None = Field(default=None, description="How to train.")
    rules: Annotated[tuple[Rule, ...], BeforeValidator(some(MAX_RULES, "rules"))] = Field(
        json_schema_extra={"minItems": 1, "maxItems": MAX_RULES},
        description="Read top to bottom: the first rule that matches a parameter wins it.",
    )

    if TYPE_CHECKING:
        # Type checkers would refuse lists and plain mappings, which become tuples and models.
        def __init__(self, /, **keys: Any) -> None: ...

    @classmethod
    def _cross_check(cls, data: Mapping[str, Any], context: Any) -> list[InitErrorDetails]:
        if isinstance(context, Context) and context.from_file and "version" not in data:
            return [said("key 'version' is missing", f"write version: {VERSION} in the first line")]
        return []

    def canonical_json(self) -> str:
        """Return the spec as JSON with sorted keys, no spaces and all defaults: equal specs give equal text."""
        data = self.model_dump(mode="json")
        return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    def to_yaml(self) -> str:
        """Return readable YAML that loads back to an equal spec."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        head = {"version": self.version, "name": self.name, "seed": self.seed}
        return to_yaml({**head, **data})
