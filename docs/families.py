"""Which types of models plugins describe: `python docs/families.py > docs/architectures.md`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from surgery import Architecture, Registry, Slice, load_registry

DISTRIBUTION = "model-surgery"

DECLARED = """\
# Supported types

What the included plugins describe, by `model_type`. Written by `python docs/families.py > docs/architectures.md`.
Roles of other types are [inferred](write-an-architecture.md#what-is-inferred) from names and shapes, or measured;
[how many](studies/architecture-coverage.md).
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


if __name__ == "__main__":
    print(declared(load_registry()), end="")
