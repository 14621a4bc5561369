"""What will change, decided before a byte changes."""

from surgery.planning.make import Anatomy, Draft, anatomy, draft_architecture, inventory, plan, sites
from surgery.planning.plan import Edit, Plan, RuleOutcome
from surgery.planning.render import render_plan, render_sites

__all__ = [
    "Anatomy",
    "Draft",
    "Edit",
    "Plan",
    "RuleOutcome",
    "anatomy",
    "draft_architecture",
    "inventory",
    "plan",
    "render_plan",
    "render_sites",
    "sites",
]
