"""What the cost model says where it cannot say a number."""

from __future__ import annotations

__all__ = ["Unknown"]


class Unknown(Exception):  # noqa: N818 - an answer, not a failure: it ends as a line of the table
    """Something about a model that the cost model does not know; the text completes 'not predicted: ...'."""
