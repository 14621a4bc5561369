"""What a rule on everything cannot adapt: weights whose bias alone is tied."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from surgery.adapter import AdapterType
from surgery.architecture import Site

__all__ = ["spared"]


def spared(found: Sequence[Site], kind: AdapterType[Any]) -> dict[str, Any]:
    """Return `exclude` of a rule on all sites, for a type that changes what stands beside its site; {} for nothing.

    LUKE's head has a weight of its own and a bias that is tied; a plan refuses to change the one by the other.
    """
    if type(kind).companions is AdapterType.companions:
        return {}
    tied = {site.path for site in found if site.tied}
    names = sorted({site.name for site in found if site.path in tied and not site.tied and kind.claims(site)})
    return {"exclude": {"target": "|".join(map(re.escape, names))}} if names else {}
