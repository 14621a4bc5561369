"""What will change, decided before a byte changes."""

from surgery.planning.inventory import Inventory
from surgery.planning.make import Anatomy, Draft, anatomy, decide, draft_architecture, inventory, plan, sites
from surgery.planning.outline import Outline, outline
from surgery.planning.plan import Edit, Plan, RuleOutcome
from surgery.planning.render import render_plan
from surgery.planning.render_outline import render_outline

__all__ = [
    "Anatomy",
    "Draft",
    "Edit",
    "Inventory",
    "Outline",
    "Plan",
    "RuleOutcome",
    "anatomy",
    "decide",
    "draft_architecture",
    "inventory",
    "outline",
    "plan",
    "render_outline",
    "render_plan",
    "sites",
]
