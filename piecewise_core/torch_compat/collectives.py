"""Collectives of compiled programs; known in 2.11 to 2.13, none where nobody imported them."""

from __future__ import annotations

import sys
from types import ModuleType

__all__ = ["functional_collectives"]


def functional_collectives() -> ModuleType | None:
    """The module of collectives that wait when their result is first used, once imported."""
    return sys.modules.get("torch.distributed._functional_collectives")
