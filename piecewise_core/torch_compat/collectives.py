"""Collectives and groups of processes; known in 2.11 to 2.13, none where nobody began them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

__all__ = [
    "default_group",
    "default_group_reader",
    "default_store",
    "functional_collectives",
    "group_named",
    "group_of",
]


def functional_collectives() -> ModuleType | None:
    """The module of collectives that wait when their result is first used, once imported."""
    return sys.modules.get("torch.distributed._functional_collectives")


def default_group() -> Any:
    """The group of all processes; None where there is none, or one that is a stand-in."""
    dist: Any = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return None
    return None if dist.get_backend() == "fake" else dist.group.WORLD


def default_group_reader() -> Callable[[], Any]:
    """What reads the group of all processes, in a fraction of a microsecond."""
    dist: Any = sys.modules["torch.distributed"]
    world = dist.distributed_c10d._world
    return lambda: world.default_pg


def default_store() -> Any:
    """A connection of its own to the store in which the processes met."""
    dist: Any = sys.modules["torch.distributed"]
    return dist.distributed_c10d._get_default_store().clone()


def group_named(name: str) -> Any:
    """The group that functional collectives call by ``name``."""
    dist: Any = sys.modules["torch.distributed"]
    return dist.distributed_c10d._resolve_process_group(name)


def group_of(value: Any) -> Any:
    """The group in an argument of an operator; None where it holds none."""
    dist: Any = sys.modules["torch.distributed"]
    if isinstance(value, dist.ProcessGroup):
        return value
    try:
        return dist.ProcessGroup.unbox(value)
    except (RuntimeError, TypeError):  # no object of torch's, or of another class
        return None
