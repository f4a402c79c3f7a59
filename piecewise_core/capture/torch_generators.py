"""How graphs of a torch device come to advance a generator when they are replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

__all__ = ["Generators", "registration"]

Generators = Literal["register", "automatic", "none"]
"""As TorchGraphDriver has it."""

Register = Callable[[Any, torch.Generator], None]


def registration(graph_class: Any, way: Generators) -> Register | None:
    """What is done for a generator before a capture; None where operators cannot draw in one.

    Raises ValueError for an unknown way.
    """
    if way == "automatic":
        return _advances_itself
    if way not in ("register", "none"):
        raise ValueError(f"generators={way!r}: give 'register', 'automatic' or 'none'")
    known = way == "register" and hasattr(graph_class, "register_generator_state")
    return _register if known else None


def _register(graph: Any, generator: torch.Generator) -> None:
    """Let replays of ``graph`` advance ``generator``; call it before capture_begin."""
    graph.register_generator_state(generator)


def _advances_itself(graph: Any, generator: torch.Generator) -> None:
    """Nothing: replays of this device's graphs advance the generator unasked."""
