"""What each weight of a model means: the vocabulary that architecture authors write in."""

from surgery.architecture.architecture import Architecture, Slice, When
from surgery.architecture.roles import ROLES, is_role
from surgery.architecture.site import Part, Site

__all__ = ["ROLES", "Architecture", "Part", "Site", "Slice", "When", "is_role"]
