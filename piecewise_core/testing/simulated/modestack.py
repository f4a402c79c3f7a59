"""A mode below all others, which sees what is left when every other one has had its turn."""

from __future__ import annotations

from piecewise_core.torch_compat.dispatcher import (
    TorchDispatchMode,
    count_dispatch_modes,
    pop_mode,
    push_mode,
)

__all__ = ["push_below", "take_out"]


def push_below(mode: TorchDispatchMode) -> None:
    """Make ``mode`` see what is left when every mode that is active has had its turn.

    ``push_mode`` and ``pop_mode`` are torch's own, the same in 2.11 and 2.13.
    """
    above = _popped()
    push_mode(mode)
    for other in reversed(above):
        push_mode(other)


def take_out(mode: TorchDispatchMode) -> None:
    """Undo ``push_below``, also when modes have come or gone since."""
    for other in reversed(_popped()):
        if other is not mode:
            push_mode(other)


def _popped() -> list[TorchDispatchMode]:
    """All active modes, taken off, the top one first."""
    return [pop_mode() for _ in range(count_dispatch_modes())]
