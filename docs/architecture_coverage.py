"""How many of transformers' types have roles.

    python docs/architecture_coverage.py > docs/studies/architecture-coverage.md

Every type of four of transformers' lists is built on the meta device, and what is described or inferred of it is
counted. Small models of it are measured, and what was measured is held against what is described, or inferred from
names and shapes alone. Names of types as arguments: only these.
"""

from __future__ import annotations

import re
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from surgery import Registry, Site, load_registry

LISTS = {
    "causal": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "AutoModelForCausalLM"),
    "masked": ("MODEL_FOR_MASKED_LM_MAPPING_NAMES", "AutoModelForMaskedLM"),
    "classes": ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", "AutoModelForSequenceClassification"),
    "seq2seq": ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "AutoModelForSeq2SeqLM"),
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
OVERRIDES: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 32},
}
"""Settings of types whose default configuration builds no model."""

PAGE = """\
# How many types of models have roles

Written by `python docs/architecture_coverage.py > docs/studies/architecture-coverage.md` with transformers {version}.

Every type in transformers' lists for causal and masked language models, sequence classification and sequence to
sequence is built on the meta device from its default configuration, once for each list ({overridden} types with one
setting changed, without which they build none). Counted are the elements of matrices in repeated blocks: linear maps
and weights of experts; embeddings, convolutions and tables of positions are none. What is *known without a role* has a
function that the vocabulary has no word for, such as the gates of attention heads. Weights that are *open* make a rule
that may mean them fail, since their layout is not known. Of the rest without a role even the name says nothing.

{summary}

{built} types can be built. In {complete} of them ({complete_share:.0f} %) every matrix in repeated blocks has its role,
or is known to have none; in {core} ({core_share:.0f} %) attention (or the block in its place) and MLP (or experts) have
theirs. {named} of all elements have a role.

## Are the roles right?

Small models of {measured} types could be measured: a row of a map's output is moved, and what moves first says what the
row is ([how](../decisions/0018-layouts-are-measured.md)). {maps} linear maps were told in this way, and {agreed} of
them have the same role, row for row, by their description or, where there is none, by names and shapes alone; {new}
had none by these. {contradictions}

{against}## Types

*Measured* is the number of linear maps of a layer that were measured, with those that names and shapes leave without
a role in brackets.
"""


@dataclass
class Coverage:
    """What is known of one type, over the models of all lists that could be built."""

    source: str = ""
    lists: list[str] = field(default_factory=list)
    weights: int = 0
    named: int = 0
    known: int = 0
    roles: set[str] = field(default_factory=set)
    plain: dict[str, None] = field(default_factory=dict)
    open: dict[str, None] = field(default_factory=dict)
    without: dict[str, None] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    agreed: int = 0
    new: int = 0
    contradictions: list[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        if not self.lists or not self.weights:
            return "not built" if not self.lists else "no repeated blocks"
        if self.source == "declared":
            return "declared" if self.is_complete else "declared partly"
        return "inferred fully" if self.is_complete else "inferred partly" if self.named else "nothing"

    @property
    def is_complete(self) -> bool:
        return self.named + self.known == self.weights

    @property
    def has_core(self) -> bool:
        """Whether attention and MLP have their roles; what stands in the place of either counts."""
        mixers = ("attention.query", "attention.value", "attention.output")
        is_attention = self.roles >= set(mixers) and bool(self.roles & {"attention.key", "attention.kv_down"})
        is_mixer = is_attention or bool(self.roles & {"ssm.output", "linear_attention.output"})
        inner = any(self.roles >= {f"{kind}.up", f"{kind}.down"} for kind in ("mlp", "moe.experts"))
        return self.is_complete or (is_mixer and inner)


def measure(registry: Registry, types: Iterable[str] | None = None) -> dict[str, Coverage]:
    """Return type -> what is known of it, for the given types or all of transformers' lists."""
    import transformers
    from transformers.models.auto import modeling_auto

    found: dict[str, Coverage] = {}
    wanted = None if types is None else set(types)
    for name, (mapping, auto_class) in LISTS.items():
        for model_type, classes in getattr(modeling_auto, mapping).items():
            if wanted is None or model_type in wanted:
                coverage = found.setdefault(model_type, Coverage())
                try:
                    config = transformers.CONFIG_MAPPING[model_type](**OVERRIDES.get(model_type, {}))
                    _count(registry, config, auto_class, coverage)
                except Exception as error:  # whatever a type's code raises is a row of the table
                    said = textwrap.shorten(str(error), 120, placeholder=" ...")
                    coverage.failures.append(f"{name}: {type(error).__name__}: {said}")
                    continue
                coverage.lists.append(name)
                if len(coverage.lists) == 1:
                    _compare(registry, config, classes if isinstance(classes, str) else classes[0], coverage)
                    print(f"{model_type}: {coverage.status}", file=sys.stderr)
    return dict(sorted(found.items()))


def _count(registry: Registry, config: Any, auto_class: str, coverage: Coverage) -> None:
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
        if taken.canonical(site.name) != site.name or not _is_matrix(site):
            continue
        coverage.weights += site.size
        coverage.roles.add(site.role)
        if not site.role.startswith("other."):
            coverage.named += site.size
        elif site.name in plain:
            coverage.known += site.size
            coverage.plain.setdefault(_inside(site), None)
        else:
            (coverage.open if site.open else coverage.without).setdefault(_inside(site), None)


def _is_matrix(site: Site) -> bool:
    """Whether a site is a matrix, or several, in a repeated block."""
    is_convolution = site.host == "other" and len(site.shape) == 3 and site.parameter == "weight"
    is_weight = len(site.shape) in (2, 3) and site.host != "embedding" and not site.parameter.endswith("bias")
    is_weight = is_weight and not is_convolution
    return is_weight and (site.layer is not None or re.search(r"\.\d+\.", f".{site.path}.") is not None)


def _inside(site: Site) -> str:
    """Return the name inside the layer, numbers as stars."""
    inside = re.sub(r"^.*?(^|\.)\d+\.", "", site.name).removesuffix(".weight")
    return re.sub(r"(^|(?<=\.))\d+(?=\.|$)", "*", inside)


def _compare(registry: Registry, config: Any, class_name: str, coverage: Coverage) -> None:
    """Hold what is measured against the description, or against what names and shapes say without a measurement."""
    from surgery.planning import inventory
    from surgery.planning.infer import infer
    from surgery.planning.measured import measured_on_twins
    from surgery.testing.check_measured import contradictions

    twins, found = measured_on_twins(config, class_name, registry)
    if twins is None:
        return
    taken = inventory(twins.models[0].model, registry)
    declared = registry.architecture(taken.model_type)
    architecture = declared.value if declared else infer(taken).architecture
    said = contradictions(found, twins, taken, architecture)
    for path in found:
        if path not in said:
            coverage.agreed += 1
        elif said[path].is_new:
            coverage.new += 1
        else:
            coverage.contradictions.append(f"{path}: {said[path].what}")


def page(found: Mapping[str, Coverage], version: str) -> str:
    """Return the page of the study."""
    built = [one for one in found.values() if one.lists and one.weights]
    order = ("declared", "declared partly", "inferred fully", "inferred partly", "nothing", "no repeated blocks",
             "not built")  # fmt: skip
    counts = Counter(one.status for one in found.values())
    summary = ["| types | what is known | median share of matrices with a role |", "|---|---|---|"]
    for status in order:
        if counts[status]:
            shares = [100 * one.named / one.weights for one in built if one.status == status]
            summary.append(f"| {counts[status]} | {status} | {f'{median(shares):.0f} %' if shares else ''} |")
    summary.append(f"| {len(found)} | all | |")
    complete, core = (sum(getattr(one, name) for one in built) for name in ("is_complete", "has_core"))
    agreed, new = sum(one.agreed for one in built), sum(one.new for one in built)
    against = [f"`{name}` {text}" for name, one in found.items() for text in one.contradictions]
    lines = [
        PAGE.format(
            version=version,
            summary="\n".join(summary),
            overridden=sum(name in OVERRIDES for name in found),
            built=len(built),
            complete=complete,
            complete_share=100 * complete / max(1, len(built)),
            core=core,
            core_share=100 * core / max(1, len(built)),
            named=f"{100 * sum(one.named for one in built) / max(1, sum(one.weights for one in built)):.1f} %",
            measured=sum(bool(one.agreed + one.new + len(one.contradictions)) for one in built),
            maps=agreed + new + len(against),
            agreed=agreed,
            new=new,
            against="".join(f"- {_escaped(text)}\n" for text in against) + ("\n" if against else ""),
            contradictions=f"These contradict ({len(against)}):" if against else "None contradicts.",
        )
    ]
    lines += [
        "",
        "| type | lists | known | share with a role | measured | known without a role | open | nothing known |",
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, one in found.items():
        if one.lists and one.weights:
            share = f"{100 * one.named / one.weights:.0f} %" if one.named in (0, one.weights) else _share(one)
            told = f"{one.agreed + one.new} ({one.new})" if one.new else str(one.agreed or "")
            names = (_first(one.plain), _first(one.open), _first(one.without))
            cells = (f"`{name}`", ", ".join(one.lists), one.status, share, told, *names)
            lines.append(f"| {' | '.join(cells)} |")
    empty = [name for name, one in found.items() if one.status == "no repeated blocks"]
    if empty:
        lines += ["", f"Without matrices in repeated blocks: {_codes(empty)}."]
    lines += ["", "## Not built from the default configuration", "", "| type | list and error |", "|---|---|"]
    lines += [f"| `{name}` | {_escaped(text)} |" for name, one in found.items() for text in one.failures]
    return "\n".join(lines) + "\n"


def _share(one: Coverage) -> str:
    """Return a percentage that says neither none nor all."""
    return f"{min(99.9, max(0.1, 100 * one.named / one.weights)):.1f} %"


def _first(names: Iterable[str], most: int = 4) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return _codes(listed[:most]) + more


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


def main() -> None:
    """Print the page."""
    import torch
    import transformers

    torch.set_num_threads(1)  # on small models threads wait for one another longer than they work
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    print(page(measure(load_registry(), sys.argv[1:] or None), transformers.__version__), end="")


if __name__ == "__main__":
    main()
