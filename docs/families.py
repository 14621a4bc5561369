"""Which types of models have roles: `python docs/families.py > docs/architectures.md`, from the installed plugins.

`python docs/families.py --coverage > docs/studies/architecture-coverage.md` builds every type of transformers' lists on
the meta device and counts what is described or inferred of it.
"""

from __future__ import annotations

import re
import sys
import textwrap
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from surgery import Architecture, Registry, Site, Slice, load_registry

DISTRIBUTION = "model-surgery"
LISTS = {
    "causal": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "AutoModelForCausalLM"),
    "masked": ("MODEL_FOR_MASKED_LM_MAPPING_NAMES", "AutoModelForMaskedLM"),
    "classes": ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", "AutoModelForSequenceClassification"),
    "seq2seq": ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "AutoModelForSeq2SeqLM"),
}

DECLARED = """\
# Supported types

What the included plugins describe, by `model_type`. Written by `python docs/families.py > docs/architectures.md`.
Roles of other types are [inferred](write-an-architecture.md#what-is-inferred) where names and shapes agree;
[how many](studies/architecture-coverage.md).
"""

COVERAGE = """\
# How many types of models have roles

Written by `python docs/families.py --coverage > docs/studies/architecture-coverage.md` with transformers {version}.

Every type in transformers' lists for causal and masked language models, sequence classification and sequence to
sequence is built on the meta device from its default configuration, once for each list. Counted are the elements of 2-D
and 3-D weights in repeated blocks, embeddings apart: the share that has a role is what a rule with `role:` can reach.
What is *known without a role* has a function that the vocabulary has no word for, such as the gates of attention heads
and decays. Weights that are *open* make such a rule fail, since their layout is not known. Of the rest without a role
even the name says nothing.

{summary}

For described types, `tests/planning/test_planning_inference.py` holds what would be inferred to what is described. For
the others nobody has compared: read `surgery inspect MODEL` before you rely on a role.
"""


def declared(registry: Registry) -> str:
    """Return the page of the types that the project's own plugins describe."""
    rows = [
        "| types | plugin | stacks | families of roles | fused parts |",
        "|---|---|---|---|---|",
    ]
    seen: dict[int, Architecture] = {}
    plugins: dict[int, str] = {}
    for item in registry.architectures.values():
        if item.provenance.distribution == DISTRIBUTION:
            seen[id(item.value)] = item.value
            plugins[id(item.value)] = item.provenance.plugin
    for key, architecture in sorted(seen.items(), key=lambda item: min(item[1].types)):
        cells = (
            _codes(sorted(architecture.types)),
            f"`{plugins[key]}`",
            _codes(architecture.stacks),
            ", ".join(sorted({role.partition(".")[0] for role, *_ in architecture.places()})),
            "; ".join(_fused(architecture)),
        )
        rows.append(f"| {' | '.join(cells)} |")
    types = sum(len(architecture.types) for architecture in seen.values())
    return f"{DECLARED}\n{types} types:\n\n" + "\n".join(rows) + "\n"


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _fused(architecture: Architecture) -> Iterator[str]:
    parts: dict[str, dict[str, None]] = defaultdict(dict)
    for role, path, *_ in architecture.places():
        if isinstance(path, Slice):
            parts[path.path.removeprefix("*.")][role] = None
    for path, roles in parts.items():
        families: dict[str, list[str]] = defaultdict(list)
        for role in roles:
            family, _, name = role.rpartition(".")
            families[family].append(name)
        yield f"`{path}`: " + ", ".join(f"{family} {' '.join(names)}" for family, names in families.items())


@dataclass
class Coverage:
    """What is known of one type, over the models of all lists that could be built."""

    source: str = ""
    lists: list[str] = field(default_factory=list)
    weights: int = 0
    named: int = 0
    plain: dict[str, None] = field(default_factory=dict)
    open: dict[str, None] = field(default_factory=dict)
    without: dict[str, None] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        if not self.lists or not self.weights:
            return "not built" if not self.lists else "no repeated blocks"
        if self.source == "declared":
            return "declared"
        return "inferred fully" if self.named == self.weights else "inferred partly" if self.named else "nothing"


def measure(registry: Registry, types: Iterable[str] | None = None) -> dict[str, Coverage]:
    """Return type -> what is known of it, for the given types or all of transformers' lists."""
    import transformers
    from transformers.models.auto import modeling_auto

    found: dict[str, Coverage] = {}
    wanted = None if types is None else set(types)
    for name, (mapping, auto_class) in LISTS.items():
        for model_type in getattr(modeling_auto, mapping):
            if wanted is None or model_type in wanted:
                coverage = found.setdefault(model_type, Coverage())
                try:
                    config = transformers.CONFIG_MAPPING[model_type]()
                    _measure(registry, config, auto_class, coverage)
                except Exception as error:  # whatever a type's code raises is a row of the table
                    said = textwrap.shorten(str(error), 120, placeholder=" ...")
                    coverage.failures.append(f"{name}: {type(error).__name__}: {said}")
                else:
                    coverage.lists.append(name)
    return dict(sorted(found.items()))


def _measure(registry: Registry, config: Any, auto_class: str, coverage: Coverage) -> None:
    import torch
    import transformers

    from surgery.planning import anatomy, inventory
    from surgery.planning.sites import plain_names, sites_of

    with torch.device("meta"):
        model = getattr(transformers, auto_class).from_config(config)
    taken = inventory(model, registry)
    described = anatomy(taken, registry)
    coverage.source = "inferred" if described.inference or not described.architecture else "declared"
    plain = plain_names(taken, described.architecture)
    for site in sites_of(taken, described.architecture):
        if taken.canonical(site.name) == site.name and _counts(site):
            coverage.weights += site.size
            if site.role.startswith("other.") and site.name in plain:
                coverage.plain.setdefault(_inside(site), None)
            elif not site.role.startswith("other."):
                coverage.named += site.size
            else:
                (coverage.open if site.open else coverage.without).setdefault(_inside(site), None)


def _counts(site: Site) -> bool:
    is_weight = len(site.shape) in (2, 3) and site.host != "embedding"
    return is_weight and (site.layer is not None or re.search(r"\.\d+\.", f".{site.path}.") is not None)


def _inside(site: Site) -> str:
    """Return the name inside the layer, numbers as stars."""
    inside = re.sub(r"^.*?(^|\.)\d+\.", "", site.name).removesuffix(".weight")
    return re.sub(r"(^|(?<=\.))\d+(?=\.|$)", "*", inside)


def coverage_page(found: Mapping[str, Coverage], version: str) -> str:
    """Return the page of the study."""
    counts = Counter(coverage.status for coverage in found.values())
    order = ("declared", "inferred fully", "inferred partly", "nothing", "no repeated blocks", "not built")
    shares: dict[str, list[float]] = defaultdict(list)
    for one in found.values():
        if one.weights:
            shares[one.status].append(100 * one.named / one.weights)
    summary = ["| types | what is known | median share of weights with a role |", "|---|---|---|"]
    for status in order:
        if counts[status]:
            share = f"{median(shares[status]):.0f} %" if status in shares else ""
            summary.append(f"| {counts[status]} | {status} | {share} |")
    summary.append(f"| {len(found)} | all | |")
    page = [COVERAGE.format(version=version, summary="\n".join(summary))]
    page += ["## Types", ""]
    page.append("| type | lists | known | share of weights with a role | known without a role | open | nothing known |")
    page.append("|---|---|---|---|---|---|---|")
    for model_type, one in found.items():
        if one.lists and one.weights:
            share = f"{100 * one.named / one.weights:.0f} %" if one.named in (0, one.weights) else _share(one)
            names = (_first(one.plain), _first(one.open), _first(one.without))
            cells = (f"`{model_type}`", ", ".join(one.lists), one.status, share, *names)
            page.append(f"| {' | '.join(cells)} |")
    empty = [name for name, one in found.items() if one.status == "no repeated blocks"]
    if empty:
        page += ["", f"Without 2-D or 3-D weights in repeated blocks: {_codes(empty)}."]
    page += ["", "## Not built from the default configuration", "", "| type | list and error |", "|---|---|"]
    page += [f"| `{name}` | {_escaped(text)} |" for name, one in found.items() for text in one.failures]
    return "\n".join(page) + "\n"


def _share(one: Coverage) -> str:
    """Return a percentage that says neither none nor all."""
    return f"{min(99.9, max(0.1, 100 * one.named / one.weights)):.1f} %"


def _first(names: Iterable[str], most: int = 4) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return _codes(listed[:most]) + more


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[").replace("`", "'")


def main() -> None:
    """Print one of the two pages."""
    registry = load_registry()
    if sys.argv[1:] == ["--coverage"]:
        import transformers

        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()
        print(coverage_page(measure(registry), transformers.__version__), end="")
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        print(declared(registry), end="")


if __name__ == "__main__":
    main()
