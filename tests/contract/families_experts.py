"""Tiny models with experts, latent attention or state spaces."""

from __future__ import annotations

from typing import Any

from family import Family

__all__ = ["CONFIGS", "FAMILIES"]

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {}

FAMILIES: tuple[Family, ...] = ()
