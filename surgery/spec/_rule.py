"""One rule: which parameters it speaks of, and which adapter, with which options, takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from pydantic_core import InitErrorDetails

from surgery.spec._catalog import Catalog
from surgery.spec._fields import Layers, PatternText, Text
from surgery.spec._flat import Flat
from surgery.spec._strict import Options, StrictModel, said

__all__ = ["Exclude", "Rule", "needs_pattern"]


def needs_pattern(data: Mapping[str, Any], what: str) -> list[InitErrorDetails]:
    """Return the problem of a selection that names neither role nor target, if it does not."""
    if data.get("role") is None and data.get("target") is None:
        return [
            said(f"{what} needs 'role' or 'target'", "write role: attention\\.query, or target: with a module path")
        ]
    return []


class Exclude(StrictModel):
    """What a rule leaves out, although its own patterns match."""

    role: PatternText | None = Field(default=None, description="Regular expression on the role, full match.")
    target: PatternText | None = Field(default=None, description="Regular expression on the module path, full match.")

    @classmethod
    def _cross_check(cls, data: Mapping[str, Any], context: Any) -> list[InitErrorDetails]:
        return needs_pattern(data, "exclude")


class Rule(Flat):
    r"""Which weights are adapted and how. Keys that are not listed are options of the adapter.

    >>> Rule(role=r"attention\.query", adapter="lora", rank=8).options["rank"]
    8
    """

    _plugin_key: ClassVar[str] = "adapter"
    _plugin_word: ClassVar[str] = "adapter"

    role: PatternText | None = Field(default=None, description="Regular expression on the canonical role, full match.")
    target: PatternText | None = Field(default=None, description="Regular expression on the module path, full match.")
    exclude: Exclude | None = Field(default=None, description="What to leave out of the matches.")
    layers: Layers = Field(default="all", description='Which layers: all, "0-5", [0, 3, -1], "first 4" or "last 4".')
    adapter: Text = Field(description="The name of an installed adapter.")
    expect: int | None = Field(
        default=None, gt=0, description="How many sites the rule must win; anything else is an error."
    )
    tied: Literal["error", "share", "untie"] = Field(
        "error", description="What to do with a weight that has two names."
    )
    allow_oversized: bool = Field(default=False, description="Allow an adapter that costs more than the weight itself.")

    if TYPE_CHECKING:
        # Type checkers would refuse the options, which lie flat; at run time StrictModel's constructor is used.
        def __init__(self, /, **keys: Any) -> None: ...

    @classmethod
    def _cross_check(cls, data: Mapping[str, Any], context: Any) -> list[InitErrorDetails]:
        return needs_pattern(data, "a rule")

    @classmethod
    def _names(cls, catalog: Catalog) -> Sequence[str]:
        return catalog.adapter_names()

    @classmethod
    def _model(cls, catalog: Catalog, name: str) -> type[Options]:
        return catalog.adapter_options(name)
